"""Exact undo: whatever the network returns, nothing outside the mask and nothing in the header changes."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brats_inpainting.data import output, validation, volume
from brats_inpainting.data.nifti import LPS
from brats_inpainting.data.transforms import Frame, Intensity, span
from brats_inpainting.errors import CaseError

from ..conftest import RandomOutput, ball, brain, inpainter, lesion

ORIENTATIONS = ["".join(p) for axes in permutations(("LR", "PA", "SI")) for p in product(*axes)]


def affine_of(orientation, zooms=(1, 1, 1), tilt=0.0):
    """An affine with the given axis codes, voxel sizes, and a rotation by ``tilt`` about the first world axis."""
    ornt = nib.orientations.axcodes2ornt(orientation)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(ornt):
        affine[int(world), axis] = sign * zooms[axis]
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine = turn @ affine
    affine[:3, 3] = (12.5, -30.25, 7)
    return affine


def scan_of(shape, affine, dtype, *, slope=None, header="both"):
    """A brain on disk-like terms: stored type, scaling, and which of sform and qform it has."""
    values = brain(shape)
    stored = (values / 1000 * 250).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)
    image = nib.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"kept"
    image.set_sform(affine, code=2 if header != "qform" else 0)
    image.set_qform(affine, code=1 if header != "sform" else 0)
    if slope:
        image.header.set_slope_inter(*slope)
    raw = image.to_bytes()
    return nib.Nifti1Image.from_bytes(raw)


def assert_undone(image, mask_XYZ, *, network=None):
    """Fill with a network that returns anything; compare everything that must not change."""
    mask = nib.Nifti1Image(mask_XYZ.astype(np.uint8), image.affine)
    result = inpainter(network or RandomOutput()).inpaint(image, mask).image
    result = nib.Nifti1Image.from_bytes(result.to_bytes())
    given_XYZ = np.asanyarray(image.dataobj)
    filled_XYZ = np.asanyarray(result.dataobj)
    outside = ~mask_XYZ.reshape(given_XYZ.shape)
    if image.get_data_dtype() != np.float64 or (given_XYZ == given_XYZ.astype(np.float32))[outside].all():
        given_XYZ = given_XYZ.astype(np.float32)
    assert filled_XYZ.dtype == given_XYZ.dtype
    assert filled_XYZ.shape == image.shape
    assert (filled_XYZ[outside] == given_XYZ[outside]).all()
    tissue = ~outside & (given_XYZ > 0)
    assert (filled_XYZ[tissue] != given_XYZ[tissue]).mean() > 0.9  # a voxel may be as bright as before
    assert (result.affine == image.affine).all()
    for key in ("qform_code", "sform_code", "xyzt_units", "pixdim", "descrip", "srow_x", "quatern_b", "qoffset_x"):
        assert (result.header[key] == image.header[key]).all(), key
    assert (result.dataobj.slope, result.dataobj.inter) == (1, 0)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_comes_back_as_it_was(orientation):
    assert len(ORIENTATIONS) == 48
    shape = (40, 36, 33)
    assert_undone(scan_of(shape, affine_of(orientation), np.int16), lesion(shape))


def prepared(image_XYZ, mask_XYZ, affine=LPS, **how):
    images = [nib.Nifti1Image(a, affine) for a in (image_XYZ, mask_XYZ.astype(np.uint8))]
    return volume.prepare(validation.examine("x", *images, names=("image", "mask")), **how)


@pytest.mark.parametrize("orientation", ["RAS", "PSL", "SLP", "AIR", "IPR"])
def test_the_network_sees_lps_whatever_the_files_axes_are(orientation):
    shape = (40, 36, 33)
    arrays, axes = (brain(shape), lesion(shape, (0.6, 0.45, 0.4))), nib.orientations.axcodes2ornt(orientation)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), axes)
    expected = prepared(*arrays)
    seen = prepared(*(nib.orientations.apply_orientation(a, turn) for a in arrays), affine_of(orientation))
    assert (seen.image_SHW == expected.image_SHW).all()
    assert (seen.mask_SHW == expected.mask_SHW).all()
    assert seen.box == expected.box


@settings(max_examples=40, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    in_plane=st.tuples(st.integers(64, 320), st.integers(64, 320)),
    depth=st.integers(5, 9),
    dtype=st.sampled_from([np.int16, np.uint8, np.float32, np.float64]),
    slope=st.sampled_from([None, (0.37, 0), (2.5, -3)]),
    header=st.sampled_from(["both", "sform", "qform"]),
    tilt=st.sampled_from([0.0, 0.1, 0.5]),
    centre=st.tuples(*[st.floats(0.3, 0.7)] * 3),
    singleton=st.booleans(),
)
def test_any_scan_is_untouched_outside_the_mask(
    orientation, in_plane, depth, dtype, slope, header, tilt, centre, singleton
):
    codes = nib.orientations.axcodes2ornt(orientation)[:, 0]
    sizes = {0: in_plane[0], 1: in_plane[1], 2: depth}
    shape = tuple(sizes[int(world)] for world in codes)
    mask = lesion(shape, centre, 0.2)
    image = scan_of(shape, affine_of(orientation, (1, 1.04, 0.97), tilt), dtype, slope=slope, header=header)
    if singleton:
        data = np.asanyarray(image.dataobj.get_unscaled())[..., None]
        image = nib.Nifti1Image.from_bytes(_with(image, data).to_bytes())
    assert_undone(image, mask)


def _with(image, data):
    other = nib.Nifti1Image(data, image.affine, image.header)
    other.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    return other


def test_intensities_come_back_exactly_as_they_went():
    values = np.linspace(-50, 900, 1000, dtype=np.float32)
    intensity = Intensity.of(values)
    kept = (values >= intensity.low) & (values <= intensity.high)
    scaled = intensity.scale(values)
    assert scaled.min() == 0
    assert scaled.max() == 1
    # float32 holds 24 bits: a few parts in 10^7 of the range
    np.testing.assert_allclose(intensity.undo(scaled)[kept], values[kept], atol=950 * 5e-7)
    np.testing.assert_allclose((intensity.low, intensity.high), np.percentile(values, (0.1, 99.9)))


def test_a_brats_slice_is_cropped_by_eight_on_every_side():
    frame = Frame.around(ball((240, 240, 155), (0.5, 0.5, 0.5), 0.35))
    assert frame == Frame((8, 8), (224, 224))
    array = np.random.default_rng(0).random((240, 240, 3))
    assert (frame.cut(array) == np.moveaxis(array[8:-8, 8:-8], 2, 0)).all()


def test_a_brain_off_centre_moves_the_frame_and_a_large_one_makes_it_larger():
    occupied = np.zeros((300, 300, 2), bool)
    occupied[2:100, 20:290] = True
    frame = Frame.around(occupied)
    assert frame.size == (224, 288)
    assert (frame.undo(frame.cut(occupied), occupied.shape) == occupied).all()


@pytest.mark.parametrize("shape", [(64, 64, 4), (224, 224, 2), (225, 320, 3), (240, 63, 1)])
def test_a_frame_undoes_itself_for_any_size(shape):
    array = np.random.default_rng(0).random(shape)
    frame = Frame.around(np.ones(shape, bool))
    assert (frame.undo(frame.cut(array), shape) == array).all()


def test_the_mask_grows_by_millimetres_not_voxels():
    mask = np.zeros((21, 21, 21), bool)
    mask[10, 10, 10] = True
    grown = volume.grow(mask, 3, (1.0, 1.5, 3.0))
    assert [int(np.ptp(np.flatnonzero(grown.any(axis=others)))) for others in ((1, 2), (0, 2), (0, 1))] == [6, 4, 2]
    assert (volume.grow(mask, 0, (1, 1, 1)) == mask).all()


def test_a_prepared_mask_has_grown_by_millimetres():
    mask = lesion((40, 40, 20))
    scan = prepared(brain(mask.shape), mask, affine_of("LPS", (1, 1.5, 3)), dilate=3, resample=False)
    assert (scan.mask_XYZ == volume.grow(mask, 3, (1, 1.5, 3))).all()
    assert scan.mask_SHW.sum() == scan.mask_XYZ.sum()


@pytest.mark.parametrize("level", [0, 500, -1000])
def test_the_mask_is_background_in_the_scan_and_zero_in_what_the_network_sees(level):
    mask = lesion((40, 40, 8))
    image = brain(mask.shape)
    scan = prepared(np.where(image > 0, image, np.float32(level)), mask)  # of 500: much of the tissue is darker
    assert (scan.voided_XYZ[mask] == level).all()
    assert (scan.image_SHW[scan.mask_SHW] == 0).all()
    assert scan.mask_SHW.sum() == mask.sum()


def test_a_fill_is_clipped_to_the_range_of_the_scan():
    mask = lesion((40, 40, 8))
    scan = prepared(brain(mask.shape), mask)
    wild_SHW = np.where(np.arange(224) % 2, np.float32(9), np.float32(-9)) * np.ones_like(scan.image_SHW)
    for filled_XYZ in (scan.inside(wild_SHW), scan.inside(np.clip(wild_SHW, 0, 1))):
        found = np.unique(filled_XYZ[mask])
        np.testing.assert_allclose(found, (scan.intensity.low, scan.intensity.high), rtol=1e-6)  # float32
    outlier_SHW = scan.image_SHW.copy()
    outlier_SHW[4, 112, 112] = 9
    np.testing.assert_array_equal(scan.everywhere(outlier_SHW), scan.everywhere(np.clip(outlier_SHW, 0, 1)))


@pytest.mark.parametrize("length", [1, 63, 64, 70])
def test_a_random_window_takes_every_place_that_covers_what_it_should(length):
    rng = np.random.default_rng(0)
    starts = {span(100, 100 + length, window=64, length=224, rng=rng).start for _ in range(1000)}
    low, high = sorted((100 + length - 64, 100))  # of 70 voxels: the window lies inside
    assert starts == set(range(low, high + 1))


@pytest.mark.parametrize("replace", ["mask", "slices"])
def test_what_stands_inside_the_mask_has_no_influence(replace):
    shape = (40, 40, 8)
    mask = lesion(shape)
    voided, full = np.where(mask, 0, brain(shape)), brain(shape)
    a, b = (inpainter(replace=replace).inpaint(image, mask).image for image in (voided, full))
    assert (a == b).all()


@settings(max_examples=20, deadline=None)
@given(
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.float64]),
    slope=st.sampled_from([None, (0.004, 0), (2.5, -3)]),
)
def test_keep_dtype_keeps_every_stored_number_outside_the_mask(dtype, slope):
    shape = (40, 36, 7)
    mask = lesion(shape)
    image = scan_of(shape, affine_of("LPS"), dtype, slope=slope)
    loaded = validation.examine("x", image, nib.Nifti1Image(mask.astype(np.uint8), image.affine), names=("i", "m"))
    filled = np.where(mask, np.float32(1e12), loaded.image_XYZ)
    kept = nib.Nifti1Image.from_bytes(output.image_like(loaded, filled, keep_dtype=True).to_bytes())
    assert kept.get_data_dtype() == image.get_data_dtype()
    assert (kept.dataobj.slope, kept.dataobj.inter) == (image.dataobj.slope, image.dataobj.inter)
    stored, given = (np.asarray(i.dataobj.get_unscaled()) for i in (kept, image))
    assert (stored[~mask] == given[~mask]).all()
    if np.dtype(dtype).kind in "iu":
        assert (stored[mask] == np.iinfo(dtype).max).all()


def test_a_write_that_fails_leaves_no_file(tmp_path):
    image = scan_of((4, 4, 4), np.eye(4), np.int16)
    with pytest.raises(CaseError, match="cannot be written"):
        output.save(image, tmp_path / "missing" / "x.nii.gz")
    output.save(image, tmp_path / "x.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["x.nii.gz"]


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_bytes_are_those_that_nibabel_writes(tmp_path, name, kind):
    image = kind.from_image(scan_of((9, 10, 11), affine_of("RAS"), np.int16, slope=(0.5, 3)))
    output.save(image, tmp_path / name)
    nib.save(image, tmp_path / f"nibabel-{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"nibabel-{name}").read_bytes()


def test_a_mask_that_leaves_only_background_is_refused():
    shape = (40, 40, 8)
    image = brain(shape)
    with pytest.raises(CaseError, match=r"whole brain|nothing but background"):
        inpainter().inpaint(image, image > 0)
