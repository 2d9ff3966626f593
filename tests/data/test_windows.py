"""Which windows are worked on, and how they are batched and added up."""

import nibabel as nib
import numpy as np

from brats_inpainting.data import cases, volume, windows
from brats_inpainting.data.windows import Stack
from brats_inpainting.infer import LPS

from ..conftest import brain, lesion


def scan_of(shape, mask, case_id="a"):
    images = [nib.Nifti1Image(a, LPS) for a in (brain(shape), mask.astype(np.uint8))]
    return volume.prepare(cases.examine(case_id, *images, names=("image", "mask")))


def test_only_masked_slices_are_listed_once_per_sample():
    mask = np.zeros((64, 64, 12), bool)
    mask[30:34, 30:34, [3, 4, 9]] = True
    todo = list(windows.todo(Stack(scan_of(mask.shape, mask), 2), window=32))
    assert [(piece.place[0], piece.sample) for piece in todo] == [(3, 0), (3, 1), (4, 0), (4, 1), (9, 0), (9, 1)]


def test_a_window_covers_the_mask_and_grows_by_32_until_it_does():
    mask = np.zeros((224, 224, 3), bool)
    mask[100:110, 0:10, 0] = True
    mask[60:150, 100:110, 1] = True
    mask[0:224, 5:6, 2] = True
    small, wide, whole = (piece.place[1:] for piece in windows.todo(Stack(scan_of(mask.shape, mask), 1), window=64))
    assert small == (slice(73, 137), slice(0, 64))
    assert wide[0].stop - wide[0].start == 96
    assert wide[0].start <= 60
    assert wide[0].stop >= 150
    assert whole[0] == slice(0, 224)


def test_a_network_of_whole_slices_gets_the_whole_frame():
    mask = lesion((64, 64, 5))
    places = {str(piece.place[1:]) for piece in windows.todo(Stack(scan_of(mask.shape, mask), 1), window=224)}
    assert places == {str((slice(0, 224), slice(0, 224)))}


def test_batches_run_across_cases_and_hold_one_shape_each():
    mask = lesion((64, 64, 12))
    wide = np.zeros_like(mask)
    wide[10:60, 30:34, 5:7] = True
    stacks = [Stack(scan_of(mask.shape, m, name), 1) for name, m in (("a", mask), ("b", mask | wide))]
    todo = [piece for stack in stacks for piece in windows.todo(stack, window=32)]
    groups = list(windows.batches(todo, lambda: 3))
    assert sorted(id(piece) for group in groups for piece in group) == sorted(map(id, todo))
    assert all(len(group) <= 3 for group in groups)
    assert all(len({piece.condition_Chw.shape for piece in group}) == 1 for group in groups)
    assert any(len({id(piece.stack) for piece in group}) == 2 for group in groups)


def test_few_cases_wait_for_a_full_batch():
    mask = lesion((64, 64, 12), radius=0.05)
    stacks = [Stack(scan_of(mask.shape, mask, str(i)), 1) for i in range(12)]
    opened = []

    def todo():
        for stack in stacks:
            opened.append(stack)
            yield from windows.todo(stack, window=32)

    for group in windows.batches(todo(), lambda: 1000):
        assert len({id(piece.stack) for piece in group}) <= windows.MAX_OPEN
    assert len(opened) == 12


def test_a_stack_keeps_mean_and_spread_of_its_samples():
    mask = lesion((64, 64, 5))
    stack = Stack(scan_of(mask.shape, mask), 3)
    samples = np.random.default_rng(0).random((3, 32, 32)).astype(np.float32)
    todo = list(windows.todo(stack, window=32))
    for piece in todo:
        stack.add(piece, samples[piece.sample])
    place = todo[0].place
    assert stack.missing == 0
    np.testing.assert_allclose(stack.mean_SHW[place], samples.mean(axis=0), atol=1e-6)  # float32 sums of three
    np.testing.assert_allclose(stack.std_SHW[place], samples.std(axis=0, ddof=1), atol=1e-6)
    untouched = [z for z in range(5) if z not in {piece.place[0] for piece in todo}]
    assert (stack.mean_SHW[untouched] == stack.scan.image_SHW[untouched]).all()
