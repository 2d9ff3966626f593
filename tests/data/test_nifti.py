"""What FSL, ITK, ANTs and FreeSurfer read is read, and written back as it was."""

import gzip
import warnings

import nibabel as nib
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHImage

from brats_inpainting import files
from brats_inpainting.data import cases, nifti, output, validation
from brats_inpainting.data.cases import Case
from brats_inpainting.data.nifti import LPS
from brats_inpainting.data.volume import Orientation
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.layouts import Pair

from ..conftest import brain, lesion

SHAPE = (24, 20, 12)
OBLIQUE = np.array([[-0.9, 0.1, 0, 20], [0.1, 0.9, 0.2, -30], [0, -0.1, 1.1, 7], [0, 0, 0, 1]])


def image_of(voxels=None, affine=LPS, **fields):
    """A NIfTI image with changed fields of its header."""
    image = nib.Nifti1Image(brain(SHAPE) if voxels is None else voxels, affine, dtype=getattr(voxels, "dtype", None))
    for name, value in fields.items():
        image.header[name] = value
    return image


def loaded_of(image, mask=None):
    mask = mask or nib.Nifti1Image(lesion(SHAPE).astype(np.uint8), image.affine, image.header)
    return validation.examine("x", image, mask, names=("image", "mask"))


def saved(folder, image, name="x.nii.gz"):
    nib.save(image, folder / name)
    return folder / name


def mgz(folder, voxels, name="x.mgz"):
    image = MGHImage(voxels, OBLIQUE.astype(np.float32))
    image.header["tr"], image.header["te"], image.header["ti"] = 2300, 2.98, 900
    image.header["flip_angle"] = 0.157
    return saved(folder, image, name)


def mgh_image(path):
    """A FreeSurfer volume, read by nibabel from memory, because nibabel leaves the file of an .mgh open."""
    content = path.read_bytes()
    return MGHImage.from_bytes(gzip.decompress(content) if path.suffix == ".mgz" else content)


def filled(loaded, value=500.0):
    """A volume that differs from the input in the mask only."""
    return np.where(loaded.mask_XYZ, np.float32(value), loaded.image_XYZ)


# Names and contents


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, MGHImage])
@pytest.mark.parametrize(("name", "compressed"), [("x.nii.gz", False), ("x.nii", True), ("x.mgz", False), ("x", True)])
def test_the_first_bytes_and_not_the_name_say_what_a_file_is(tmp_path, kind, name, compressed):
    content = kind(brain(SHAPE), LPS.astype(np.float32)).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
    image = nifti.read(tmp_path / name)
    for _ in range(2):
        assert (nifti.values(image) == brain(SHAPE)).all()
    assert (image.affine == LPS).all()
    assert image.get_filename() == str(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer.*Run git lfs pull"),
        (b"/annex/objects/MD5E-s123--ab.nii.gz\n", r"not fetched .*Run datalad get .*x.nii.gz"),
        (b"../.git/annex/objects/Xx/Yy/MD5E-s123--ab.nii.gz", r"not fetched .*Run datalad get .*x.nii.gz"),
        (bytes(128) + b"DICM" + bytes(400), "DICOM file. Convert its series with dcm2niix"),
        (b"BZh91AY", "Decompress it with bunzip2"),
        (b"", "empty, so probably truncated"),
    ],
)
def test_a_file_that_is_no_image_is_named_with_what_to_do(tmp_path, content, words):
    (tmp_path / "x.nii.gz").write_bytes(content)
    with pytest.raises(CaseError, match=rf"x.nii.gz: .*{words}"):
        nifti.read(tmp_path / "x.nii.gz")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "../.git/annex/objects/Xx/ab.nii.gz",
            r"a link to ../.git/annex/objects/Xx/ab.nii.gz, which.*datalad get .*x.nii",
        ),
        ("/mnt/elsewhere/x.nii", "a link to /mnt/elsewhere/x.nii, which does not exist: copy that file too, or mount"),
    ],
)
def test_a_broken_link_is_named_with_its_target(tmp_path, target, words):
    (tmp_path / "x.nii.gz").symlink_to(target)
    with pytest.raises(CaseError, match=words):
        nifti.read(tmp_path / "x.nii.gz")
    (case,) = Pair(tmp_path / "x.nii.gz", saved(tmp_path, image_of(), "mask.nii")).cases
    with pytest.raises(CaseError, match=words):
        cases.load(case)


def test_a_link_to_a_file_is_read(tmp_path):
    saved(tmp_path, image_of(), "there.nii.gz")
    (tmp_path / "x.nii.gz").symlink_to("there.nii.gz")
    assert (nifti.values(nifti.read(tmp_path / "x.nii.gz")) == brain(SHAPE)).all()


# FreeSurfer


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("name", ["x.mgz", "x.mgh"])
@pytest.mark.parametrize("keep_dtype", [False, True])
def test_a_freesurfer_volume_comes_back_with_its_header(tmp_path, dtype, name, keep_dtype):
    path = mgz(tmp_path, (brain(SHAPE) / 4).astype(dtype), name)
    given, loaded = mgh_image(path), loaded_of(nifti.read(path))
    np.testing.assert_array_equal(loaded.template.affine, given.affine)
    assert [int(loaded.template.header[f"{form}_code"]) for form in ("qform", "sform")] == [1, 1]
    volume_XYZ = filled(loaded, 77.0)
    output.save(output.image_like(loaded, volume_XYZ, keep_dtype=keep_dtype), tmp_path / "out.mgz")
    result = mgh_image(tmp_path / "out.mgz")
    assert result.get_data_dtype().newbyteorder("=") == (dtype if keep_dtype else np.float32)
    assert (np.asarray(result.dataobj) == volume_XYZ).all()
    for field in ("dims", "delta", "Mdc", "Pxyz_c", "tr", "te", "ti", "flip_angle"):
        np.testing.assert_array_equal(result.header[field], given.header[field])
    output.save(output.image_like(loaded, volume_XYZ), tmp_path / "out.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").affine, given.affine, atol=1e-5)  # float32 in both


def test_a_nifti_scan_is_written_as_freesurfer_volume(tmp_path):
    voxels = brain(SHAPE)[..., None]
    image = image_of(voxels, np.diag([0.001, 0.001, 0.001, 1]) @ OBLIQUE, xyzt_units=1)
    loaded = loaded_of(image)
    output.save(output.image_like(loaded, filled(loaded)), tmp_path / "out.mgz")
    result = mgh_image(tmp_path / "out.mgz")
    np.testing.assert_allclose(result.affine, OBLIQUE, atol=1e-4)  # float32, and FreeSurfer's is in millimetres
    assert (np.asarray(result.dataobj) == filled(loaded)).all()


def test_a_freesurfer_volume_has_scaled_values(tmp_path):
    image = image_of((brain(SHAPE) / 4).astype(np.int16))
    image.header.set_slope_inter(0.5, 3)
    loaded = loaded_of(nib.Nifti1Image.from_bytes(image.to_bytes()))
    output.save(output.image_like(loaded, loaded.image_XYZ, keep_dtype=True), tmp_path / "out.mgz")
    assert (np.asarray(mgh_image(tmp_path / "out.mgz").dataobj) == loaded.image_XYZ).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: raw[:-3000], "has .* bytes, but its header requires"),
        (lambda raw: raw[:50], "has .* bytes, but its header requires|damaged"),
        (lambda raw: raw[:4] + np.array([9999] * 3, ">i4").tobytes() + raw[16:], "Crop it"),
        (lambda raw: raw[:4] + np.array([-4, 20, 12], ">i4").tobytes() + raw[16:], "one 3D volume is needed"),
        (lambda raw: raw[:16] + np.array([7], ">i4").tobytes() + raw[20:], "one 3D volume is needed"),
        (lambda raw: raw[:20] + np.array([5], ">i4").tobytes() + raw[24:], "type 5. Convert it with mri_convert"),
        (lambda raw: raw[:30] + np.array([0] * 3, ">f4").tobytes() + raw[42:], "does not span three dimensions"),
    ],
)
def test_a_damaged_freesurfer_volume_is_refused(tmp_path, spoil, words):
    path = mgz(tmp_path, brain(SHAPE), "x.mgh")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CaseError, match=words):
        nifti.read(path)


def test_a_truncated_mgz_is_refused(tmp_path):
    path = mgz(tmp_path, brain(SHAPE))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CaseError, match="truncated or damaged"):
        nifti.read(path)


def test_a_pair_of_freesurfer_volumes_is_named_without_suffix(tmp_path):
    pair = Pair(mgz(tmp_path, brain(SHAPE)), mgz(tmp_path, lesion(SHAPE).astype(np.uint8), "mask.mgz"))
    ((target, case),) = pair.jobs(tmp_path / "filled.mgz").items()
    assert (target.name, case.id) == ("filled.mgz", "filled")
    assert (cases.load(case).mask_XYZ == lesion(SHAPE)).all()
    assert files.sidecar_name(target, "std") == "filled-std.mgz"
    with pytest.raises(ConfigError, match=r"Let it end in .nii.gz, .nii or .mgz"):
        pair.jobs(tmp_path / "filled.mnc")


# Headers


def half_turn(excess):
    """A header with a half turn, whose b² + c² + d² is 1 + excess; nibabel refuses it, ITK sets a = 0."""
    b, c = np.sqrt((1 + excess) * np.array([0.36, 0.64]))
    return image_of(affine=LPS, quatern_b=b, quatern_c=c, quatern_d=0, qform_code=1, sform_code=0)


@pytest.mark.parametrize("excess", [1e-6, 1e-5, 5e-4])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_quaternion_too_long_by_rounding_is_normalised(tmp_path, excess, kind):
    exact, odd = half_turn(-1e-9), half_turn(excess)
    header = kind.header_class.from_header(odd.header, check=False)
    raw = bytearray(kind(brain(SHAPE), None, header).to_bytes())
    (tmp_path / "x.nii").write_bytes(raw)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(tmp_path / "x.nii")
    image = nifti.read(tmp_path / "x.nii")
    np.testing.assert_allclose(image.affine, exact.header.get_qform(), atol=1e-4)  # a is 3e-5 there
    loaded = loaded_of(image, nib.Nifti1Image(lesion(SHAPE).astype(np.uint8), image.affine))
    output.save(output.image_like(loaded, loaded.image_XYZ), tmp_path / "y.nii")
    assert (tmp_path / "y.nii").read_bytes()[: header.sizeof_hdr] == raw[: header.sizeof_hdr]
    with pytest.raises(ValueError, match="w2 should be positive"):  # nibabel itself is as before
        nib.load(tmp_path / "x.nii")


def test_a_quaternion_that_is_no_rotation_is_refused(tmp_path):
    (tmp_path / "x.nii").write_bytes(nib.Nifti1Image(brain(SHAPE), None, half_turn(0.1).header).to_bytes())
    with pytest.raises(CaseError, match="w2 should be positive"):
        nifti.read(tmp_path / "x.nii")


@pytest.mark.parametrize(("unit", "factor"), [(1, 1000), (2, 1), (3, 0.001), (0, 1), (8 + 1, 1000)])
def test_units_other_than_millimetres_are_converted(tmp_path, unit, factor):
    affine = np.diag([1 / factor] * 3 + [1]) @ OBLIQUE
    image = nifti.read(saved(tmp_path, image_of(affine=affine, xyzt_units=unit)))
    np.testing.assert_allclose(nifti.affine_mm(image), OBLIQUE, rtol=1e-6, atol=1e-5)
    loaded = loaded_of(image, image_of(lesion(SHAPE).astype(np.uint8), OBLIQUE, xyzt_units=2))
    np.testing.assert_allclose(loaded.spacing, nib.affines.voxel_sizes(OBLIQUE), rtol=1e-5)
    result = output.image_like(loaded, filled(loaded))
    assert (result.affine == image.affine).all()
    assert result.header["xyzt_units"] == unit
    assert (Orientation.of(result.affine).apply(lesion(SHAPE)) == Orientation.of(OBLIQUE).apply(lesion(SHAPE))).all()


def test_grids_in_metres_are_compared_in_millimetres():
    metres = np.diag([1e-3] * 3 + [1])
    shifted = LPS.copy()
    shifted[0, 3] = 0.5  # millimetres
    image = image_of(affine=metres @ LPS, xyzt_units=1)
    mask = image_of(lesion(SHAPE).astype(np.uint8), metres @ shifted, xyzt_units=1)
    with pytest.raises(CaseError, match=r"different grids\n  image .*axes \(-1, 0, 0"):
        loaded_of(image, mask)
    # one affine, but only one header says metres: one of the two is wrong, and the grid is the same
    assert loaded_of(image, image_of(lesion(SHAPE).astype(np.uint8), metres @ LPS, xyzt_units=2)).mask_XYZ.any()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("slope", [None, 0, np.nan, 2, 0.5])
def test_masks_of_any_type_and_slope_are_read(tmp_path, dtype, slope):
    mask = lesion(SHAPE).astype(dtype) * dtype(100)
    raw = bytearray(image_of(mask).to_bytes())
    if slope is not None:
        raw[112:116] = np.array([slope], "<f4").tobytes()
    (tmp_path / "mask.nii").write_bytes(raw)
    saved(tmp_path, image_of())
    loaded = cases.load(Case("x", tmp_path / "x.nii.gz", tmp_path / "mask.nii"))
    assert (loaded.mask_XYZ == lesion(SHAPE)).all()


def test_a_trailing_dimension_of_length_0_counts_as_1(tmp_path):
    raw = bytearray(image_of(brain(SHAPE)[..., None]).to_bytes())
    raw[40:50] = np.array([4, *SHAPE, 0], "<i2").tobytes()
    (tmp_path / "x.nii").write_bytes(raw)
    assert nifti.read(tmp_path / "x.nii").shape == (*SHAPE, 1)


# Voxels outside the mask


def precise(dtype, slope=None):
    """A brain whose values float32 cannot hold."""
    texture = np.random.default_rng(1).random(SHAPE)
    voxels = brain(SHAPE).astype(np.float64)
    voxels = voxels + texture if dtype == np.float64 else voxels * 20011 + 1
    image = image_of(np.where(brain(SHAPE) > 0, voxels, 0).astype(dtype))
    if slope:
        image.header.set_slope_inter(slope, 1)
    return image


@pytest.mark.parametrize(
    ("dtype", "slope"), [(np.float64, None), (np.int32, None), (np.uint32, 0.7), (np.int64, None), (np.float64, 0.3)]
)
def test_voxels_outside_the_mask_that_float32_cannot_hold_are_kept_in_float64(tmp_path, dtype, slope):
    loaded = loaded_of(nifti.read(saved(tmp_path, precise(dtype, slope))))
    given = np.asarray(nib.load(tmp_path / "x.nii.gz").dataobj, np.float64)
    assert (given != given.astype(np.float32)).any()
    output.save(output.image_like(loaded, filled(loaded)), tmp_path / "out.nii.gz")
    result = nib.load(tmp_path / "out.nii.gz")
    assert result.get_data_dtype() == np.float64
    assert (result.dataobj.slope, result.dataobj.inter) == (1, 0)
    outside = ~loaded.mask_XYZ
    assert (np.asarray(result.dataobj)[outside] == given[outside]).all()
    assert (np.asarray(result.dataobj)[~outside] == 500).all()
    std = output.image_like(loaded, np.where(loaded.mask_XYZ, np.float32(1.5), np.float32(0)))
    assert std.get_data_dtype() == np.float32  # its background is 0 in the input, too


@pytest.mark.parametrize(("dtype", "slope"), [(np.float64, None), (np.int32, None), (np.int16, 0.3), (np.float32, 0.3)])
def test_other_scans_are_written_in_float32(tmp_path, dtype, slope):
    image = image_of(brain(SHAPE).astype(dtype))
    if slope:
        image.header.set_slope_inter(slope, 1)
    loaded = loaded_of(nifti.read(saved(tmp_path, image)))
    result = output.image_like(loaded, filled(loaded))
    assert result.get_data_dtype() == np.float32
    given = np.asarray(nib.load(tmp_path / "x.nii.gz").dataobj).astype(np.float32)
    assert (np.asarray(result.dataobj)[~loaded.mask_XYZ] == given[~loaded.mask_XYZ]).all()


def test_reading_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nifti.values(nifti.read(mgz(tmp_path, brain(SHAPE))))
