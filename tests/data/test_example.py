"""The example case: five files in BraTS geometry, masks as in the challenge, the same bytes every time."""

import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brats_inpainting.cli import main
from brats_inpainting.data.example import SCAN, write_example
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.errors import ConfigError

NAMES = ["mask", "mask-healthy", "mask-unhealthy", "t1n", "t1n-voided"]
LEVELS = {"person": (np.uint8, 250), "template": (np.int16, 1000)}  # data type and 99.9 percentile of the brain


@pytest.fixture(scope="module", params=LEVELS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def case(kind, tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("example"), brain=kind)


@pytest.fixture(scope="module")
def images(case):
    return {name: nib.load(case / f"{case.name}-{name}.nii.gz") for name in NAMES}


@pytest.fixture(scope="module")
def volumes(images):
    return {name: np.asarray(image.dataobj) for name, image in images.items()}


@pytest.fixture
def without_nilearn(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)


def test_the_case_holds_the_five_files_and_nothing_else(case):
    assert case.name == "BraTS-GLI-00000-000"
    assert {path.name for path in case.iterdir()} == {f"{case.name}-{name}.nii.gz" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_the_geometry_of_brats(images, name, kind):
    header = images[name].header
    assert header.get_data_shape() == (240, 240, 155)
    assert header.get_data_dtype() == (LEVELS[kind][0] if name.startswith("t1n") else np.uint8)
    for affine, code in (header.get_qform(coded=True), header.get_sform(coded=True)):
        assert code == 1
        assert affine.tolist() == [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_the_brain_lies_where_brats_brains_lie_on_a_background_of_exactly_zero(volumes, kind):
    brain = volumes["t1n"] > 0
    assert volumes["t1n"].min() == 0
    assert np.percentile(volumes["t1n"][brain], 99.9) == pytest.approx(LEVELS[kind][1], abs=1)  # whole numbers
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


def test_the_healthy_mask_is_of_moderate_size_in_the_brain_and_away_from_the_tumour(volumes):
    healthy = volumes["mask-healthy"] > 0
    assert 10_000 < healthy.sum() < 25_000
    assert (volumes["t1n"][healthy] > 0).mean() >= 0.75  # the challenge's bound: a sulcus may lie inside
    assert ndimage.distance_transform_edt(volumes["mask-unhealthy"] == 0)[healthy].min() >= 5


def test_only_the_persons_hemispheres_differ(volumes, kind):
    brain = ndimage.find_objects((volumes["t1n"] > 0).astype(np.uint8))[0]
    left = volumes["t1n"][brain].astype(int)
    assert (np.abs(left - left[::-1]).sum() > 0.1 * left.sum()) == (kind == "person")  # 0.32 and 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_masks(case, volumes, kind, tmp_path):
    again = write_example(tmp_path / "again", brain=kind)
    other = write_example(tmp_path / "other", seed=1, brain=kind)
    for path in case.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    healthy = np.asarray(nib.load(other / f"{case.name}-mask-healthy.nii.gz").dataobj)
    assert (healthy & volumes["mask-healthy"]).sum() < 0.9 * healthy.sum()


@pytest.mark.usefixtures("without_nilearn")
def test_without_nilearn_the_person_is_the_packaged_scan(tmp_path):
    case = write_example(tmp_path)
    written, packaged = (np.asarray(nib.load(path).dataobj) for path in (case / f"{case.name}-t1n.nii.gz", SCAN))
    np.testing.assert_array_equal(written, packaged)


@pytest.mark.usefixtures("without_nilearn")
def test_without_nilearn_the_template_is_an_error_that_says_what_to_install(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"pip install 'brats-inpainting\[example\]'"):
        write_example(tmp_path, brain="template")
    with pytest.raises(SystemExit):
        main(["example", "--template", "--output-path", str(tmp_path)])
    assert "the template needs nilearn" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_packaged_scan_is_the_one_of_which_its_notice_speaks():
    assert checkpoint.sha256(SCAN) in (SCAN.parent / "README.md").read_text()
