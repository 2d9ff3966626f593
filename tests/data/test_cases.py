"""Bad input gets a clear error that names the file and what to do, and everything at once."""

import gzip
import logging
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting.data import cases, validation, volume
from brats_inpainting.data.cases import Case
from brats_inpainting.data.lesion import MaskReading
from brats_inpainting.data.nifti import LPS
from brats_inpainting.errors import CaseError, ConfigError

from ..conftest import ball, brain, lesion, write_case

SHAPE = (64, 64, 12)


@pytest.fixture
def case(tmp_path):
    write_case(tmp_path, "BraTS-GLI-00001-000")
    return cases.find(tmp_path)[0]


def write(path, array, affine=LPS):
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("x/x-t1n-voided.nii.gz", "x/x-mask.nii.gz"),
        ("x/x_t1n_voided.nii.gz", "x/x_mask.nii.gz"),
        ("x/x-t1n-voided.nii", "x/x-mask.nii.gz"),
        ("x-t1n-voided.nii.gz", "x-mask.nii.gz"),
        ("x/x-t1n-voided.mgz", "x/x_mask.mgz"),
    ],
)
def test_every_way_to_name_the_files_is_understood(tmp_path, image, mask):
    (tmp_path / "x").mkdir()
    for name in (image, mask, "x/x-mask-healthy.nii.gz", "x/notes.txt", "x/.x-mask.nii.gz"):
        (tmp_path / name).touch()
    assert cases.find(tmp_path) == [Case("x", tmp_path / image, tmp_path / mask)]


def test_a_folder_without_cases_says_what_was_looked_for(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        cases.find(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"ID-t1n-voided.nii.gz"):
        cases.find(tmp_path)


def test_an_incomplete_case_names_the_missing_file(tmp_path):
    folder = write_case(tmp_path, "BraTS-GLI-00001-000")
    (folder / "BraTS-GLI-00001-000-mask.nii.gz").unlink()
    with pytest.raises(CaseError, match=r"BraTS-GLI-00001-000-mask.nii.gz: no such file"):
        cases.load(cases.find(tmp_path)[0])


def test_a_sound_case_loads_without_a_word(case):
    loaded = cases.load(case)
    assert loaded.warnings == []
    assert loaded.image_XYZ.dtype == np.float32
    assert (loaded.mask_XYZ == lesion(SHAPE)).all()


def test_different_shapes_and_affines_are_shown_side_by_side(case):
    write(case.mask, np.zeros((64, 64, 11), np.uint8))
    with pytest.raises(CaseError, match=r"64×64×12(.|\n)*64×64×11(.|\n)*Resample"):
        cases.load(case)
    moved = LPS.copy()
    moved[0, 3] = 0.01
    write(case.mask, lesion(SHAPE).astype(np.uint8), moved)
    with pytest.raises(CaseError, match="different grids"):
        cases.load(case)
    moved[0, 3] = 0.0005
    write(case.mask, lesion(SHAPE).astype(np.uint8), moved)
    assert (cases.load(case).mask_XYZ == lesion(SHAPE)).all()


@pytest.mark.parametrize(("row", "column"), [(0, 3), (1, 1)])
def test_the_tolerance_of_affines_is_the_same_far_from_the_origin(case, row, column):
    far = LPS.copy()
    far[:3, 3] = 1000, -1000, 500
    write(case.image, brain(SHAPE), far)
    for off, fits in ((0.0005, True), (0.005, False)):
        moved = far.copy()
        moved[row, column] += off
        write(case.mask, lesion(SHAPE).astype(np.uint8), moved)
        if fits:
            assert (cases.load(case).mask_XYZ == lesion(SHAPE)).all()
        else:
            with pytest.raises(CaseError, match="different grids"):
                cases.load(case)


def test_both_files_are_reported_when_both_are_broken(case):
    case.image.write_bytes(b"not a NIfTI file")
    case.mask.write_bytes(case.mask.read_bytes()[:200])
    with pytest.raises(CaseError, match=r"voided(.|\n)*mask"):
        cases.load(case)


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_a_case_error(case, share):
    whole = case.image.read_bytes()
    case.image.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CaseError, match=r"truncated|damaged"):
        cases.load(case)


def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(case):
    raw = bytearray(gzip.decompress(case.image.read_bytes()))
    raw[40:48] = np.array([3, 500, 500, 500], "<i2").tobytes()
    case.image.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(CaseError, match="header requires"):
        cases.load(case)
    raw[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    case.image.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(CaseError, match="Crop it"):
        cases.load(case)


def test_other_formats_and_dimensions_are_refused(case):
    write(case.image, np.ones((*SHAPE, 3), np.float32))
    with pytest.raises(CaseError, match="64×64×12×3"):
        cases.load(case)
    write(case.image, np.ones(SHAPE, np.complex64))
    with pytest.raises(CaseError, match="complex64"):
        cases.load(case)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_counted(case, value):
    image = brain(SHAPE)
    image[:3, 0, 0] = value
    write(case.image, image)
    with pytest.raises(CaseError, match="3 NaN or infinite voxels"):
        cases.load(case)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_is_refused(case, value):
    write(case.image, np.full(SHAPE, value, np.float32))
    with pytest.raises(CaseError, match="everywhere"):
        cases.load(case)


def test_a_mask_of_probabilities_is_cut_at_one_half_with_a_warning(case):
    nested = [lesion(SHAPE, radius=radius) for radius in (0.15, 0.2, 0.3)]
    write(case.mask, np.select(nested, [0.8, 0.5, 0.3]).astype(np.float32))  # exactly one half is none
    loaded = cases.load(case)
    assert any("voxels above 0.5 are filled" in warning for warning in loaded.warnings)
    assert (loaded.mask_XYZ == lesion(SHAPE)).all()


@pytest.mark.parametrize("value", [-1, np.nan])
def test_a_negative_or_nan_mask_is_refused(case, value):
    mask = lesion(SHAPE).astype(np.float32)
    mask[0, 0, 0] = value
    write(case.mask, mask)
    with pytest.raises(CaseError, match="negative or NaN"):
        cases.load(case)


def test_a_mask_over_everything_is_refused(case):
    write(case.mask, np.ones(SHAPE, np.uint8))
    with pytest.raises(CaseError, match="whole brain"):
        cases.load(case)


def test_an_empty_mask_warns_that_the_output_is_the_input(case):
    write(case.mask, np.zeros(SHAPE, np.uint8))
    assert any("empty" in warning for warning in cases.load(case).warnings)


def test_unusual_scans_are_warned_about(case):
    def warnings_of(image, mask, affine=LPS):
        write(case.image, image, affine)
        write(case.mask, mask.astype(np.uint8), affine)
        return " ".join(cases.load(case).warnings)

    mask, slab = lesion(SHAPE), np.zeros(SHAPE, bool)
    slab[:, :, 5] = True
    noise = np.random.default_rng(0).uniform(100, 1000, SHAPE).astype(np.float32)
    big = np.where(ball((170, 170, 150), (0.5, 0.5, 0.5), 0.49), 500, 0).astype(np.float32)
    cropped = np.where(ball(SHAPE, (0.15, 0.5, 0.5), 0.3), noise, 0).astype(np.float32)
    assert "no background" in warnings_of(noise, mask)
    assert "skull" in warnings_of(big, lesion(big.shape), np.diag([1.1, 1.1, 1.1, 1]))
    assert "cropped" in warnings_of(cropped, mask)
    assert "no brain in 1 of its axial slices" in warnings_of(brain(SHAPE), slab)
    assert "right mask" in warnings_of(brain(SHAPE), lesion(SHAPE, (0.05, 0.05, 0.5), 0.05))


def test_an_offset_without_end_is_a_case_error(case):
    raw = bytearray(gzip.decompress(case.image.read_bytes()))
    raw[108:112] = np.array([np.inf], "<f4").tobytes()
    case.image.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(CaseError, match="damaged"):
        cases.load(case)


def test_the_voxel_size_is_the_affines(case, caplog):
    for path in (case.image, case.mask):
        image = nib.load(path)
        image = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([2, 2, 2, 1]), image.header)
        image.header["pixdim"][1:4] = 1
        nib.save(image, path)
    loaded = cases.load(case)
    assert loaded.spacing == (2, 2, 2)
    with caplog.at_level(logging.INFO):
        assert not volume.prepare(loaded).loaded.warnings
    assert "voxels of 2 × 2 × 2 mm are filled at 1 mm" in caplog.text
    assert "voxels of 2 × 2 × 2 mm are not resampled" in volume.prepare(loaded, resample=False).loaded.warnings[-1]


def test_one_id_in_two_folders_is_refused(tmp_path):
    write_case(tmp_path, "a")
    (tmp_path / "a").rename(tmp_path / "b")
    write_case(tmp_path, "a")
    with pytest.raises(ConfigError, match="twice"):
        cases.find(tmp_path)


def test_a_folder_with_images_but_no_case_is_an_incomplete_case(tmp_path):
    write_case(tmp_path, "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b-t1n.nii.gz").touch()
    with pytest.raises(CaseError, match=r"b-t1n-voided.nii.gz: no such file"):
        cases.load(cases.find(tmp_path)[1])


def test_other_files_beside_a_complete_case_are_ignored(tmp_path):
    folder = write_case(tmp_path, "a")
    (folder / "a-brain_mask.nii.gz").touch()
    assert [case.id for case in cases.find(tmp_path)] == ["a"]


def test_a_trailing_axis_is_mentioned(case):
    write(case.image, brain(SHAPE)[..., None])
    assert any("trailing axis" in warning for warning in cases.load(case).warnings)


@pytest.mark.parametrize("name", ["a-brain-mask.nii.gz", "a_brain_mask.nii", "a-brain-mask.mgz"])
def test_a_brain_mask_belongs_to_its_case_and_makes_none(tmp_path, name):
    folder = write_case(tmp_path, "a")
    (folder / name).touch()
    write_case(tmp_path, "b")
    (tmp_path / "b" / "c-brain-mask.nii.gz").touch()
    assert [(case.id, case.brain) for case in cases.find(tmp_path)] == [("a", folder / name), ("b", None)]


def test_an_id_may_end_in_brain(tmp_path):
    folder = write_case(tmp_path, "a-brain")
    assert cases.find(tmp_path) == [
        Case("a-brain", folder / "a-brain-t1n-voided.nii.gz", folder / "a-brain-mask.nii.gz")
    ]


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        ("a-mask.nii", "mask"),
        ("a_mask.nii.gz", "mask"),
        ("a-t1n_voided.nii", "scan"),
        ("a_brain-mask.nii", "brain mask"),
    ],
)
def test_two_files_of_one_kind_fail_their_case_only(tmp_path, second, kind):
    folder = write_case(tmp_path, "a")
    write_case(tmp_path, "b")
    for name in ("a-brain-mask.nii.gz", second):
        (folder / name).touch()
    first, other = cases.find(tmp_path)
    with pytest.raises(CaseError, match=f"more than one {kind}. Keep one of them") as error:
        cases.load(first)
    assert second in str(error.value)
    assert f"a-{ {'scan': 't1n-voided'}.get(kind, kind.replace(' ', '-')) }.nii.gz" in str(error.value)
    assert cases.load(other).warnings == []


@pytest.mark.parametrize(
    ("there", "advice"),
    [
        (["x-t1n.nii.gz", "x-t2w.nii.gz", "x-mask.nii.gz"], "Found x-t1n.nii.gz: rename or copy it to x-t1n-voided"),
        (["x-t1n-voided.nii.gz", "x-seg.nii.gz"], "copy it to x-mask.nii.gz, and choose its labels with --label"),
        (["x-t1n-voided.nii.gz", "x-mask-healthy.nii.gz"], "Found x-mask-healthy.nii.gz: rename or copy it to x-mask"),
        (
            ["T1.nii.gz", "lesion.nii.gz"],
            "Found T1.nii.gz, lesion.nii.gz: rename or copy to x-t1n-voided.nii.gz and x-mask.nii.gz, or use --image",
        ),
    ],
)
def test_the_error_of_a_missing_file_suggests_the_renaming(tmp_path, there, advice):
    (tmp_path / "x").mkdir()
    for name in there:
        (tmp_path / "x" / name).touch()
    with pytest.raises(CaseError, match="no such file") as error:
        cases.load(cases.find(tmp_path)[0])
    assert advice in str(error.value)
    assert len(str(error.value).splitlines()) <= 4


def test_an_inverted_mask_is_refused_with_the_option_that_inverts_it(case):
    write(case.image, brain(SHAPE))  # not voided, so that the mask leaves tissue
    write(case.mask, (~lesion(SHAPE)).astype(np.uint8))
    with pytest.raises(
        CaseError, match=r"would replace 9\d.* % of the brain\n  .*use --invert-mask; .*--threshold 0.5"
    ):
        cases.load(case)
    assert (cases.load(replace(case, reading=MaskReading(invert=True))).mask_XYZ == lesion(SHAPE)).all()
    large = cases.load(replace(case, reading=MaskReading(threshold=0.5)))
    assert any("the mask replaces 9" in warning for warning in large.warnings)


def test_half_of_a_brain_may_be_masked(case):
    half = (brain(SHAPE) > 0) & (np.arange(64) < 32)[:, None, None]
    for image in (brain(SHAPE), np.where(half, 0, brain(SHAPE))):
        write(case.image, image)
        write(case.mask, half.astype(np.uint8))
        assert not any("replaces" in warning for warning in cases.load(case).warnings)


def test_an_ambiguous_mask_says_how_much_of_the_brain_it_would_replace(case):
    both = lesion(SHAPE) | lesion(SHAPE, (0.4, 0.6, 0.5), 0.2)
    share = both.sum() / ((brain(SHAPE) > 0) | both).sum()
    write(case.mask, (2 * both + 97 * lesion(SHAPE)).astype(np.int16))
    with pytest.raises(CaseError, match=rf"2 \(.* voxels\), 99 \(.*\), together {int(100 * share)}"):
        cases.load(case)


def test_all_masks_of_a_scan_are_checked_and_joined(case, tmp_path):
    other = lesion(SHAPE, (0.4, 0.6, 0.5), 0.1)
    more = tmp_path / "more.nii.gz"
    write(more, 255 * other.astype(np.uint8))
    loaded = cases.load(replace(case, more_masks=(more,)))
    assert (loaded.mask_XYZ == (lesion(SHAPE) | other)).all()
    assert loaded.warnings == ["the mask marks the lesion with 255 instead of 1"]
    write(more, np.zeros((64, 64, 11), np.uint8))
    with pytest.raises(CaseError, match=r"different grids(.|\n)*more.nii.gz   64×64×11"):
        cases.load(replace(case, more_masks=(more,)))


@pytest.mark.parametrize("name", ["brain-mask.nii.gz", "T1_bet_mask.nii.gz", "brainmask.nii.gz", "x-brainmask.nii"])
def test_a_brain_mask_of_another_tool_is_never_the_lesion(tmp_path, name):
    (tmp_path / "p1").mkdir()
    for other in ("T1.nii.gz", "lesion.nii.gz", name):
        write(tmp_path / "p1" / other, brain(SHAPE))
    (found,) = cases.find(tmp_path)
    assert found.id == "p1"
    with pytest.raises(CaseError, match=r"p1-t1n-voided.nii.gz"):
        cases.load(found)


def test_a_mask_of_the_brain_of_a_head_is_refused():
    shape = (80, 80, 60)
    head, inner = (ball(shape, (0.5, 0.5, 0.5), radius) for radius in (0.48, 0.3))
    affine = np.diag([-3.0, -3, 3, 1])
    images = (nib.Nifti1Image(np.float32(500 * head), affine), nib.Nifti1Image(np.uint8(inner), affine))
    with pytest.raises(CaseError, match="would replace 7"):
        validation.examine("x", *images, names=("image", "mask"))
