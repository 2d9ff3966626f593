"""Whole heads in any orientation and resolution: the network sees the brain at 1 mm, the rest is untouched."""

import logging

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brats_inpainting.data import validation, volume
from brats_inpainting.data.lesion import MaskReading
from brats_inpainting.data.nifti import LPS
from brats_inpainting.errors import CaseError

from ..conftest import RandomOutput, ball, inpainter, lesion
from .test_volume import ORIENTATIONS, affine_of

CENTRE = (0.5, 0.5, 0.5)


def head(shape, seed=0):
    """A head in noisy air, and its brain: a bright scalp around skull around brain, in 0 to about 1000."""
    rng = np.random.default_rng(seed)
    scalp, skull, brain = (ball(shape, CENTRE, radius) for radius in (0.48, 0.42, 0.36))
    image = np.select([brain, skull, scalp], [rng.uniform(300, 800, shape), 100, 900], 0)
    return np.hypot(image + rng.normal(0, 5, shape), rng.normal(0, 5, shape)), brain


def examined(image_XYZ, mask_XYZ, brain_XYZ=None, affine=LPS):
    scan, mask, brain = (
        None if a is None else nib.Nifti1Image(a, affine)
        for a in (image_XYZ.astype(np.float32), np.uint8(mask_XYZ), None if brain_XYZ is None else np.uint8(brain_XYZ))
    )
    return validation.examine("x", scan, mask, names=("image", "mask"), brain=brain)


@settings(max_examples=40, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    zooms=st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.5, 3.0])] * 3),
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.float32, np.float64]),
    slope=st.sampled_from([None, (0.37, 0), (2.5, -3)]),
    tilt=st.sampled_from([0.0, 0.3, 0.75]),
    whole=st.booleans(),
)
def test_a_head_is_untouched_outside_the_mask(orientation, zooms, dtype, slope, tilt, whole):
    assert_untouched(orientation, zooms, dtype, slope=slope, tilt=tilt, whole=whole)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_head_of_thick_slices_is_untouched_in_every_orientation(orientation):
    assert_untouched(orientation, (0.9, 0.9, 5.5), np.int16)


def assert_untouched(orientation, zooms, dtype, *, slope=None, tilt=0.0, whole=True):
    """Fill a head, or its brain, with a network that returns anything; compare everything that must not change."""
    shape = tuple(round(36 / side) for side in zooms)
    image_XYZ, brain_XYZ = head(shape)
    if not whole:
        image_XYZ = np.where(brain_XYZ, image_XYZ, 0)
    stored_XYZ = (image_XYZ / 4 if dtype == np.uint8 else image_XYZ).astype(dtype)
    image = nib.Nifti1Image(stored_XYZ, affine_of(orientation, zooms, tilt))
    image.header.set_data_dtype(dtype)
    if slope:
        image.header.set_slope_inter(*slope)
    image = nib.Nifti1Image.from_bytes(image.to_bytes())
    mask_XYZ = lesion(shape)
    mask, brain = (nib.Nifti1Image(np.uint8(a), image.affine) for a in (mask_XYZ, brain_XYZ))
    result = inpainter(RandomOutput()).inpaint(image, mask, brain=brain if whole else None).image
    result = nib.Nifti1Image.from_bytes(result.to_bytes())
    before_XYZ, after_XYZ = (np.asanyarray(each.dataobj) for each in (image, result))
    if result.get_data_dtype() == np.float32:
        before_XYZ = before_XYZ.astype(np.float32)
    assert (after_XYZ[~mask_XYZ] == before_XYZ[~mask_XYZ]).all()
    assert (after_XYZ[mask_XYZ & brain_XYZ] != before_XYZ[mask_XYZ & brain_XYZ]).mean() > 0.9
    assert after_XYZ[mask_XYZ].min() >= min(0, before_XYZ.min())
    assert (result.affine == image.affine).all()
    assert (result.shape, result.header.get_zooms()) == (image.shape, image.header.get_zooms())


def test_the_network_sees_the_brain_alone():
    shape = (64, 64, 32)
    image_XYZ, brain_XYZ = head(shape)
    image_XYZ, mask_XYZ = np.where(ball(shape, CENTRE, 0.48), image_XYZ, 0), lesion(shape)
    scan = volume.prepare(examined(image_XYZ, mask_XYZ, brain_XYZ))
    stripped = volume.prepare(examined(np.where(brain_XYZ, image_XYZ, 0), mask_XYZ))
    np.testing.assert_array_equal(scan.image_SHW, stripped.image_SHW)
    assert scan.box == stripped.box
    seen_SHW = scan.image_SHW > 0
    assert (seen_SHW <= scan.frame.cut(brain_XYZ & ~mask_XYZ)).all()


def test_a_lesion_outside_the_brain_of_a_head_is_kept():
    shape = (64, 64, 32)
    image_XYZ, brain_XYZ = head(shape)
    outside_XYZ = ball(shape, (0.04, 0.5, 0.5), 0.03)
    loaded = examined(image_XYZ, lesion(shape) | outside_XYZ, brain_XYZ)
    scan = volume.prepare(loaded)
    filled_XYZ = scan.inside(np.ones_like(scan.image_SHW))
    assert (filled_XYZ[outside_XYZ] == loaded.image_XYZ[outside_XYZ]).all()
    assert (filled_XYZ[lesion(shape)] == filled_XYZ[lesion(shape)][0]).all()
    assert "lie outside the brain and are kept" in loaded.warnings[-1]


@pytest.mark.parametrize("noise", [0, 12])
def test_a_head_without_a_brain_mask_is_recognized_with_and_without_noise(noise):
    shape, rng = (80, 80, 60), np.random.default_rng(0)
    image_XYZ = np.where(ball(shape, CENTRE, 0.45), rng.uniform(300, 1000, shape), 0)
    image_XYZ = np.hypot(image_XYZ + rng.normal(0, 1, shape) * noise, rng.normal(0, 1, shape) * noise)
    warnings = " ".join(examined(image_XYZ, lesion(shape), affine=np.diag([-3.0, -3, 3, 1])).warnings)
    assert "not skull-stripped" in warnings
    assert "mri_synthstrip" in warnings
    assert "--brain-mask" in warnings
    assert "no background" not in warnings


def test_a_scan_without_orientation_says_what_is_assumed(caplog):
    shape = (32, 32, 16)
    scan, mask = (
        nib.Nifti1Image.from_bytes(nib.Nifti1Image(array, None).to_bytes())
        for array in (head(shape)[0].astype(np.float32), np.uint8(lesion(shape)))
    )
    with caplog.at_level(logging.WARNING):
        loaded = validation.examine("x", scan, mask, names=("image", "mask"))
    axes = "".join(nib.aff2axcodes(loaded.template.affine))
    assert f"no orientation in its header (qform and sform codes are 0): {axes} is assumed" in caplog.text


def test_a_tilted_head_is_filled_on_its_nearest_axes():
    shape = (48, 48, 40)
    image_XYZ, brain_XYZ = head(shape)
    straight, tilted = (
        volume.prepare(examined(image_XYZ, lesion(shape), brain_XYZ, affine_of("LPS", (1, 1, 1), tilt)))
        for tilt in (0, np.pi / 4 - 0.01)
    )
    np.testing.assert_array_equal(straight.image_SHW, tilted.image_SHW)


def test_a_grown_or_protruding_lesion_keeps_the_skull_where_the_network_finds_no_tissue():
    shape = (64, 64, 32)
    image_XYZ, brain_XYZ = head(shape)
    mask_XYZ = ball(shape, (0.83, 0.5, 0.5), 0.06)  # across the brain's edge at 0.86
    loaded = examined(image_XYZ, mask_XYZ, brain_XYZ)
    scan = volume.prepare(loaded, dilate=4)
    outside_XYZ = mask_XYZ & ~brain_XYZ
    assert outside_XYZ.any()
    assert (scan.mask_XYZ <= mask_XYZ | brain_XYZ).all()
    filled_XYZ = scan.inside(np.zeros_like(scan.image_SHW))
    assert (filled_XYZ[outside_XYZ] == loaded.image_XYZ[outside_XYZ]).all()
    assert (filled_XYZ[mask_XYZ & brain_XYZ] != loaded.image_XYZ[mask_XYZ & brain_XYZ]).mean() > 0.9


def test_a_brain_mask_with_another_grid_unit_or_axis_is_brought_to_the_scan():
    shape = (40, 36, 32)
    image_XYZ, brain_XYZ = head(shape)
    scan, mask = nib.Nifti1Image(image_XYZ.astype(np.float32), LPS), nib.Nifti1Image(np.uint8(lesion(shape)), LPS)
    brain = nib.as_closest_canonical(nib.Nifti1Image(np.uint8(brain_XYZ), LPS))
    brain = nib.Nifti1Image(np.asarray(brain.dataobj)[..., None], brain.affine)
    for image in (scan, mask):
        image.header.set_xyzt_units("mm")
    metres = nib.Nifti1Image(np.asarray(brain.dataobj), np.diag([1e-3, 1e-3, 1e-3, 1]) @ brain.affine)
    metres.header.set_xyzt_units("meter")
    for other in (brain, metres):
        loaded = validation.examine("x", scan, mask, names=("image", "mask"), brain=other)
        assert (loaded.brain_XYZ == brain_XYZ).all()
        assert "another grid" in loaded.warnings[-1]


def test_arrays_given_with_an_image_lie_on_its_grid():
    shape = (40, 36, 32)
    image_XYZ, brain_XYZ = head(shape)
    image = nib.Nifti1Image(image_XYZ.astype(np.float32), affine_of("RAS"))
    others = [nib.Nifti1Image(np.uint8(a), image.affine) for a in (lesion(shape), brain_XYZ)]
    machine = inpainter()
    as_images = machine.inpaint(image, others[0], brain=others[1]).image
    as_arrays = machine.inpaint(image, lesion(shape), brain=brain_XYZ).image
    np.testing.assert_array_equal(np.asarray(as_images.dataobj), np.asarray(as_arrays.dataobj))


def test_an_inverted_mask_of_tissue_leaves_the_air():
    shape = (40, 36, 32)
    image_XYZ, brain_XYZ = head(shape)
    stripped, healthy = np.where(brain_XYZ, image_XYZ, 0), brain_XYZ & ~lesion(shape)
    for brain in (None, nib.Nifti1Image(np.uint8(brain_XYZ), LPS)):
        scan = nib.Nifti1Image((stripped if brain is None else image_XYZ).astype(np.float32), LPS)
        mask = nib.Nifti1Image(np.uint8(healthy), LPS)
        reading = MaskReading(invert=True)
        loaded = validation.examine("x", scan, mask, names=("image", "mask"), brain=brain, reading=reading)
        assert (loaded.mask_XYZ == lesion(shape)).all()
    voided = nib.Nifti1Image(np.where(lesion(shape), 0, stripped).astype(np.float32), LPS)
    with pytest.raises(CaseError, match="where mask is 0, the scan is background: --invert-mask leaves nothing"):
        validation.examine("x", voided, mask, names=("image", "mask"), reading=reading)


def test_a_noisy_head_with_a_border_of_zeros_is_recognized():
    shape, rng = (80, 80, 60), np.random.default_rng(0)
    image_XYZ = np.where(ball(shape, CENTRE, 0.45), rng.uniform(300, 1000, shape), 0)
    image_XYZ = np.hypot(image_XYZ + rng.normal(0, 12, shape), rng.normal(0, 12, shape))
    bordered_XYZ = np.pad(image_XYZ[1:-1, 1:-1, 1:-1], 1)
    loaded = examined(bordered_XYZ, lesion(shape), affine=np.diag([-3.0, -3, 3, 1]))
    assert "not skull-stripped" in " ".join(loaded.warnings)


def test_a_scan_and_a_mask_that_are_interchanged_are_told():
    arrays = head((24, 24, 16))[0], lesion((24, 24, 16))
    scan, mask = (nib.Nifti1Image(array.astype(np.float32), LPS) for array in arrays)
    with pytest.raises(CaseError, match="image has two values, as a mask has, and mask has more"):
        validation.examine("x", mask, scan, names=("image", "mask"))
