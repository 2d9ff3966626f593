"""Which windows are worked on, and how they are batched and added up."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting.config import DiffusionConfig, UNetConfig
from brats_inpainting.data import validation, volume, windows
from brats_inpainting.data.nifti import LPS
from brats_inpainting.data.windows import Stack, Window, Windowing

from ..conftest import ball, brain, lesion

PATCHES = Windowing(2, window=32, step=32, margin=0, shared_side=32)
BOXES = Windowing(3, window=32, step=8, margin=4, shared_side=None)


def scan_of(shape, mask, case_id="a"):
    images = [nib.Nifti1Image(a, LPS) for a in (brain(shape), mask.astype(np.uint8))]
    return volume.prepare(validation.examine(case_id, *images, names=("image", "mask")))


def stack_of(scan, samples=1, how=PATCHES):
    return Stack(scan, windows.around(scan.mask_SHW, how), samples)


def boxes(*spans, shape=(60, 128, 128)):
    """A mask of boxes in a frame S H W, and its windows."""
    mask_SHW = np.zeros(shape, bool)
    for span in spans:
        mask_SHW[span] = True
    return mask_SHW, windows.around(mask_SHW, BOXES)


def sizes(found):
    return [window.shape for window in found]


def test_only_masked_slices_are_listed_once_per_sample():
    mask = np.zeros((64, 64, 12), bool)
    mask[30:34, 30:34, [3, 4, 9]] = True
    tasks = stack_of(scan_of(mask.shape, mask), samples=2).tasks()
    listed = [(task.window.place[0], task.sample) for task in tasks]
    assert listed == [(3, 0), (3, 1), (4, 0), (4, 1), (9, 0), (9, 1)]


def test_a_patch_covers_the_mask_and_grows_by_32_until_it_does():
    mask_SHW = np.zeros((3, 224, 224), bool)
    mask_SHW[0, 100:110, 0:10] = True
    mask_SHW[1, 60:150, 100:110] = True
    mask_SHW[2, 0:224, 5:6] = True
    how = Windowing(2, window=64, step=32, margin=0, shared_side=64)
    small, wide, whole = (window.place[1:] for window in windows.around(mask_SHW, how))
    assert small == (slice(73, 137), slice(0, 64))
    assert wide[0].stop - wide[0].start == 96
    assert wide[0].start <= 60
    assert wide[0].stop >= 150
    assert whole[0] == slice(0, 224)


@pytest.mark.parametrize("start", [0, 61, 127])
@pytest.mark.parametrize(("side", "patch", "box"), [(64, 64, 96), (65, 96, 104), (96, 96, 128), (97, 128, 136)])
def test_a_window_is_just_large_enough_for_its_mask(start, side, patch, box):
    flat_SHW, solid_SHW = np.zeros((1, 224, 224), bool), np.zeros((224, 224, 224), bool)
    flat_SHW[0, start : start + side, 70 : 70 + side] = True
    solid_SHW[start : start + side, 70 : 70 + side, 80 : 80 + side] = True
    patches, boxes = (
        Windowing(2, window=64, step=32, margin=0, shared_side=64),
        Windowing(3, 96, 8, margin=16, shared_side=88),
    )
    for mask_SHW, how, shape in ((flat_SHW, patches, (patch, patch)), (solid_SHW, boxes, (box, box, box))):
        (found,) = windows.around(mask_SHW, how)
        assert found.shape == shape
        assert found.cut(mask_SHW).sum() == mask_SHW.sum()


def test_a_network_of_whole_slices_gets_the_whole_frame():
    mask_SHW = np.moveaxis(lesion((224, 256, 5)), 2, 0)
    found = windows.around(mask_SHW, Windowing(2, window=224, step=32, margin=0, shared_side=224))
    assert {str(window.place[1:]) for window in found} == {str((slice(0, 224), slice(0, 256)))}
    assert all(window.share_V is None for window in found)


def test_distant_lesions_of_a_slice_have_a_patch_each_and_near_ones_share_one():
    mask_SHW = np.zeros((2, 224, 224), bool)
    mask_SHW[0, 100:110, 20:30] = mask_SHW[0, 100:110, 190:200] = True
    mask_SHW[1, 100:110, 20:30] = mask_SHW[1, 100:110, 40:50] = True
    found = windows.around(mask_SHW, PATCHES)
    assert [window.place[0] for window in found] == [0, 0, 1]
    assert set(sizes(found)) == {(32, 32)}
    assert sum(window.share_V.sum() for window in found[:2]) == 200


def test_a_box_has_a_margin_around_its_component_and_sides_of_whole_steps():
    _, (small,) = boxes(np.s_[20:30, 50:60, 50:60])
    assert small.shape == (32, 32, 32)
    assert small.place == (slice(9, 41), slice(39, 71), slice(39, 71))
    _, (large,) = boxes(np.s_[20:30, 50:60, 40:80])
    assert large.shape == (32, 48, 32)  # 40 and twice the margin of 4, in the network's order H W S
    assert large.place[2] == slice(36, 84)


def test_a_box_stays_on_the_frame_and_ends_beyond_the_last_slice_where_that_is_near():
    _, (corner,) = boxes(np.s_[0:4, 120:128, 0:3])
    assert corner.place == (slice(0, 32), slice(96, 128), slice(0, 32))
    mask_SHW, (short,) = boxes(np.s_[2:4, 50:60, 50:60], shape=(7, 64, 64))
    assert short.place[0] == slice(0, 32)
    cut_V = short.cut(mask_SHW)
    assert cut_V.shape == (32, 32, 32)
    assert cut_V.sum() == mask_SHW.sum()
    back_SHW = np.zeros(mask_SHW.shape)
    short.put(cut_V, back_SHW)
    assert (back_SHW == mask_SHW).all()


def test_near_components_share_a_box_and_distant_ones_do_not():
    _, near = boxes(np.s_[20:30, 50:60, 50:60], np.s_[20:30, 50:60, 64:70])
    assert sizes(near) == [(32, 32, 32)]
    mask_SHW, less_than_two = boxes(np.s_[20:30, 50:60, 40:50], np.s_[20:30, 50:60, 82:92])
    assert sizes(less_than_two) == [(32, 64, 32)]
    assert len(windows.around(mask_SHW, replace(BOXES, max_voxels=32**3))) == 2  # memory for one, not for both at once
    _, distant = boxes(np.s_[20:30, 50:60, 10:20], np.s_[20:30, 50:60, 100:110])
    assert sizes(distant) == [(32, 32, 32)] * 2
    _, beside_a_large_one = boxes(np.s_[20:30, 20:100, 50:60], np.s_[20:30, 20:100:79, 66:68])
    assert sizes(beside_a_large_one) == [(88, 32, 32)]


@pytest.mark.parametrize("how", [PATCHES, BOXES])
def test_every_voxel_of_the_mask_has_shares_that_sum_to_one(how):
    rng = np.random.default_rng(0)
    mask_SHW = np.zeros((60, 128, 128), bool)
    for _ in range(100):
        z, y, x = rng.integers(2, (56, 124, 124))
        mask_SHW[z - 2 : z + 2, y - 2 : y + 2, x - 2 : x + 2] = True
    found = windows.around(mask_SHW, how)
    shares_SHW = np.zeros(mask_SHW.shape)
    for window in found:
        window.put(np.ones(window.shape), shares_SHW)
    alone = [window for window in found if window.share_V is None]
    assert not alone or how is PATCHES
    assert (shares_SHW[mask_SHW] == 1).all()


def test_a_hundred_small_lesions_take_few_boxes():
    rng = np.random.default_rng(0)
    mask_SHW = np.zeros((155, 224, 224), bool)
    for z, y, x in rng.integers((20, 30, 40), (130, 190, 180), size=(100, 3)):
        mask_SHW[z : z + 3, y : y + 4, x : x + 4] = True
    assert len(windows.around(mask_SHW, Windowing(3, window=96, step=8, margin=16, shared_side=None))) <= 8


def test_a_box_too_large_is_filled_in_overlapping_parts_that_blend():
    mask_SHW = np.zeros((60, 224, 224), bool)
    mask_SHW[20:40, 10:200, 60:180] = True
    how = Windowing(3, window=32, step=8, margin=4, shared_side=None, max_voxels=64 * 64 * 64)
    found = windows.around(mask_SHW, how)
    assert len(found) > 1
    assert all(np.prod(window.shape) <= 64**3 for window in found)
    shares_SHW = np.zeros(mask_SHW.shape)
    for window in found:
        window.put(np.ones(window.shape), shares_SHW)
    np.testing.assert_allclose(shares_SHW, mask_SHW, atol=1e-6)  # sums of float32 weights
    assert any((window.share_V % 1 > 0).any() for window in found)
    assert any(window.blends for window in found)


def test_positions_are_zero_in_the_middle_of_the_brain_and_one_at_its_faces():
    box = (slice(10, 51), slice(20, 61), slice(30, 71))
    x_V, y_V, z_V = windows.positions((slice(0, 60), slice(20, 61), slice(30, 71)), box)
    assert x_V.shape == (41, 41, 60)
    assert (x_V[20], y_V[:, 20], z_V[..., 30]) == (pytest.approx(0), pytest.approx(0), pytest.approx(0))
    assert (x_V[0, 0, 0], y_V[0, -1, 0]) == pytest.approx((-20 / 20.5, 20 / 20.5))
    assert z_V.max() == pytest.approx(29 / 20.5)
    patch = windows.positions((30, slice(20, 61), slice(0, 96)), box)
    assert [grid.shape for grid in patch] == [(41, 96)] * 3
    assert (patch[1].min(), patch[2].max()) == (-1.5, 0)  # clipped; in the middle slice


def test_batches_run_across_cases_and_hold_one_shape_each():
    mask = lesion((64, 64, 12))
    wide = np.zeros_like(mask)
    wide[10:60, 30:34, 5:7] = True
    stacks = [stack_of(scan_of(mask.shape, m, name)) for name, m in (("a", mask), ("b", mask | wide))]
    groups = list(windows.batches(stacks, lambda: 3))
    found = sorted((id(task.window), task.sample) for group in groups for task in group)
    assert found == sorted((id(task.window), task.sample) for stack in stacks for task in stack.tasks())
    assert all(len(group) <= 3 for group in groups)
    assert all(len({task.window.shape for task in group}) == 1 for group in groups)
    assert any(len({id(task.stack) for task in group}) == 2 for group in groups)


def test_few_cases_wait_for_a_full_batch():
    mask = lesion((64, 64, 12), radius=0.05)
    stacks = [stack_of(scan_of(mask.shape, mask, str(i))) for i in range(12)]
    opened = []

    def open_all():
        for stack in stacks:
            opened.append(stack)
            yield stack

    for group in windows.batches(open_all(), lambda: 1000):
        assert len({id(task.stack) for task in group}) <= windows.MAX_OPEN
    assert len(opened) == 12


@pytest.mark.parametrize("how", [PATCHES, BOXES])
def test_a_stack_keeps_mean_and_spread_of_its_samples(how):
    mask = lesion((64, 64, 5))
    stack = stack_of(scan_of(mask.shape, mask), 3, how)
    stack.keep = True
    window = stack.windows[0]
    samples = np.random.default_rng(0).random((3, *window.shape)).astype(np.float32)
    for task in stack.tasks():
        stack.add(task, samples[task.sample])
    inside = window.cut(stack.scan.mask_SHW) > 0
    assert stack.missing == 0
    # float32 sums of three
    np.testing.assert_allclose(window.cut(stack.mean_SHW)[inside], samples.mean(axis=0)[inside], atol=1e-6)
    np.testing.assert_allclose(window.cut(stack.std_SHW)[inside], samples.std(axis=0, ddof=1)[inside], atol=1e-6)
    for number, sample_SHW in enumerate(stack.samples_SHW()):
        assert (window.cut(sample_SHW)[inside] == samples[number][inside]).all()
    assert number == 2


def test_slices_without_mask_stay_as_they_are():
    mask = lesion((64, 64, 5))
    stack = stack_of(scan_of(mask.shape, mask))
    for task in stack.tasks():
        stack.add(task, np.ones(task.window.shape, np.float32))
    untouched = [z for z in range(5) if z not in windows.masked_slices(stack.scan.mask_SHW)]
    assert untouched
    assert (stack.mean_SHW[untouched] == stack.scan.image_SHW[untouched]).all()


def test_a_component_in_the_background_stays_background_with_a_warning(caplog):
    shape = (64, 64, 12)
    scan = scan_of(shape, lesion(shape) | ball(shape, (0.1, 0.1, 0.5), 0.06))
    assert "stay background" in caplog.text
    assert any("stay background" in warning for warning in scan.loaded.warnings)
    assert scan.mask_SHW.sum() == lesion(shape).sum() < scan.mask_XYZ.sum()
    filled_XYZ = scan.inside(np.where(scan.mask_SHW, 1, scan.image_SHW).astype(np.float32))
    assert (filled_XYZ[ball(shape, (0.1, 0.1, 0.5), 0.06)] == 0).all()


def test_a_window_is_taken_by_its_share():
    array_SHW = np.zeros((4, 6, 6), np.float32)
    half = Window((slice(1, 3), slice(0, 2), slice(2, 6)), np.full((2, 4, 2), 0.5, np.float32))
    half.put(np.ones((2, 4, 2), np.float32), array_SHW)
    half.put(np.ones((2, 4, 2), np.float32), array_SHW)
    assert array_SHW.sum() == 16
    assert (array_SHW[1:3, 0:2, 2:6] == 1).all()


def test_a_slice_that_is_replaced_as_a_whole_has_one_patch():
    mask_SHW = np.zeros((1, 224, 224), bool)
    mask_SHW[0, 100:110, 20:30] = mask_SHW[0, 100:110, 190:200] = True
    whole = Windowing.of(UNetConfig(), DiffusionConfig(window=96), whole=True)
    (window,) = windows.around(mask_SHW, whole)
    assert window.share_V is None
    assert window.shape == (96, 192)


def test_parts_of_a_box_are_never_smaller_than_the_window_and_never_empty():
    mask_SHW = np.zeros((155, 224, 224), bool)
    mask_SHW[40:120, 20:30, 20:200] = mask_SHW[40:50, 20:200, 20:30] = True  # an L
    found = windows.around(mask_SHW, Windowing(3, window=96, step=8, margin=16, shared_side=None, max_voxels=1))
    assert len(found) > 3
    assert all(max(window.shape) == 96 for window in found)
    assert all(window.share_V.any() for window in found)
    shares_SHW = np.zeros(mask_SHW.shape)
    for window in found:
        window.put(np.ones(window.shape), shares_SHW)
    np.testing.assert_allclose(shares_SHW, mask_SHW, atol=1e-6)  # sums of float32 weights
