"""The example case: five files in BraTS geometry, masks as in the challenge, the same bytes every time."""

import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brats_inpainting.data.example import write_example
from brats_inpainting.errors import ConfigError

NAMES = ["mask", "mask-healthy", "mask-unhealthy", "t1n", "t1n-voided"]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def images(case):
    return {name: nib.load(case / f"{case.name}-{name}.nii.gz") for name in NAMES}


@pytest.fixture(scope="module")
def volumes(images):
    return {name: np.asarray(image.dataobj) for name, image in images.items()}


def test_the_case_holds_the_five_files_and_nothing_else(case):
    assert case.name == "BraTS-GLI-00000-000"
    assert {path.name for path in case.iterdir()} == {f"{case.name}-{name}.nii.gz" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_the_geometry_of_brats(images, name):
    header = images[name].header
    assert header.get_data_shape() == (240, 240, 155)
    assert header.get_data_dtype() == (np.int16 if name.startswith("t1n") else np.uint8)
    for affine, code in (header.get_qform(coded=True), header.get_sform(coded=True)):
        assert code == 1
        assert affine.tolist() == [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_the_brain_lies_where_brats_brains_lie_on_a_background_of_exactly_zero(volumes):
    brain = volumes["t1n"] > 0
    assert volumes["t1n"].min() == 0
    assert np.percentile(volumes["t1n"][brain], 99.9) == pytest.approx(1000, abs=1)  # rounding to whole numbers
    assert not any(brain.take([0, 1, -2, -1], axis).any() for axis in range(3))
    # The centres of eight open brains in BraTS space scatter by 2 voxels around this one.
    np.testing.assert_allclose(ndimage.center_of_mass(brain), (119, 136, 74), atol=3)


def test_the_cerebellum_lies_below_and_behind(volumes):
    low_slices = volumes["t1n"][:, :, :40] > 0
    assert low_slices[:, 150:].sum() > 4 * low_slices[:, :110].sum()  # open brains in BraTS space: 5 to 20 times


def test_the_mask_is_the_union_of_both_and_void_in_the_voided_scan(volumes):
    mask, healthy, unhealthy = (volumes[name] for name in ("mask", "mask-healthy", "mask-unhealthy"))
    np.testing.assert_array_equal(mask, healthy + unhealthy)  # a sum of 2 would betray an overlap
    np.testing.assert_array_equal(volumes["t1n-voided"], volumes["t1n"] * (mask == 0))


def test_the_healthy_mask_is_of_moderate_size_inside_the_brain_and_away_from_the_tumour(volumes):
    healthy = volumes["mask-healthy"] > 0
    assert 10_000 < healthy.sum() < 25_000
    assert (volumes["t1n"][healthy] > 0).all()
    assert ndimage.distance_transform_edt(volumes["mask-unhealthy"] == 0)[healthy].min() >= 5


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_masks(case, volumes, tmp_path):
    again, other = write_example(tmp_path / "again"), write_example(tmp_path / "other", seed=1)
    for path in case.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    healthy = np.asarray(nib.load(other / f"{case.name}-mask-healthy.nii.gz").dataobj)
    assert (healthy != volumes["mask-healthy"]).any()


def test_without_nilearn_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'brats-inpainting\[example\]'"):
        write_example(tmp_path)
    assert not list(tmp_path.iterdir())
