"""Training slices: what they hold, what decides them, and that processes share one stream."""

from itertools import combinations, islice

import numpy as np
import pytest
import torch

from brats_inpainting.config import Augmentation, DiffusionConfig, TrainConfig
from brats_inpainting.data import dataset, masks
from brats_inpainting.data.cache import LEVELS, RECORD, Scan
from brats_inpainting.data.dataset import Epoch, augmented, batches

from ..conftest import ball, brain

SHAPE = (64, 72, 72)  # S × H × W
RECIPE = TrainConfig(diffusion=DiffusionConfig(window=32), batch_size=4, seed=3)


def scan(folder, seed):
    records = np.zeros(SHAPE, RECORD)
    records["image"], records["distance"] = brain(SHAPE, seed) / 1000 * LEVELS, 255
    np.save(folder / f"{seed}.npy", records)
    healthy = ball(SHAPE, (0.5, 0.45, 0.5), 0.1)
    return Scan(f"case-{seed}", folder / f"{seed}.npy", masks.Placed.of(healthy))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return [scan(folder, 0), scan(folder, 1)]


@pytest.fixture(scope="module")
def shapes():
    return masks.compartments(np.random.default_rng(0), 4)


def with_(**changes):
    return TrainConfig.model_validate(RECIPE.model_dump() | changes)


def stream(scans, config=RECIPE, count=6, **place):
    place = {"epoch": 0, "batch": 0} | place
    return [(epoch, batch, parts) for epoch, batch, parts in islice(batches(scans, config, **place), count)]


def places(parts):
    return [tuple(place.tolist()) for part in parts for place in part.place]


def test_a_slice_holds_the_truth_and_a_mask_in_a_window(scans):
    epoch = Epoch(scans, [], RECIPE, 0)
    for index in range(len(epoch)):
        item = epoch[index]
        assert item.truth_1hw.shape == item.mask_1hw.shape == item.noise_1hw.shape == (1, 32, 32)
        assert item.truth_1hw.min() >= 0
        assert item.truth_1hw.max() <= 1
        assert set(item.mask_1hw.unique().tolist()) == {0, 1}
        assert 0 <= item.t < 1000
        case, z = item.place.tolist()
        whole = scans[case].image_SHW[z] / np.float32(LEVELS)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (32, 32))
        assert (windows == item.truth_1hw[0].numpy()).all(axis=(2, 3)).any()


def test_an_epoch_holds_every_slice_of_the_healthy_masks_once(scans):
    epoch = Epoch(scans, [], RECIPE, 0)
    assert sorted(epoch.places) == [(i, z) for i in range(2) for z in scans[i].healthy.planes]
    assert epoch.places != sorted(epoch.places)
    assert Epoch(scans, [], RECIPE, 1).places != epoch.places


def test_synthetic_masks_are_drawn_anew_each_epoch_and_lie_in_the_brain(scans, shapes):
    config = with_(masks="synthetic")
    first, again, second = (Epoch(scans, shapes, config, number) for number in (0, 0, 1))
    assert all(np.array_equal(a.voxels, b.voxels) for a, b in zip(first.masks, again.masks, strict=True))
    assert not all(np.array_equal(a.voxels, b.voxels) for a, b in zip(first.masks, second.masks, strict=True))
    for placed, case in zip(first.masks, scans, strict=True):
        box = tuple(slice(a, a + n) for a, n in zip(placed.start, placed.voxels.shape, strict=True))
        assert (case.image_SHW[box] > 0)[placed.voxels].mean() >= 0.7  # 75 % of each of up to two compartments


def test_both_kinds_of_masks_are_mixed(scans, shapes):
    kinds = [
        np.array_equal(placed.voxels, case.healthy.voxels)
        for number in range(8)
        for placed, case in zip(Epoch(scans, shapes, with_(masks="both"), number).masks, scans, strict=True)
    ]
    assert 0 < sum(kinds) < len(kinds)


def test_the_stream_goes_on_from_any_place_as_if_it_had_begun_at_the_start(scans):
    whole = stream(scans, count=14)
    assert whole[-1][0] > 0  # it crosses into the next epoch
    for begin in (3, 9):
        epoch, batch, _ = whole[begin - 1]
        for (*_, a), (*_, b) in zip(
            whole[begin:], stream(scans, count=14 - begin, epoch=epoch, batch=batch), strict=True
        ):
            for one, other in zip(a, b, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_two_processes_and_two_parts_share_every_batch(scans):
    whole = [places(parts) for *_, parts in stream(scans)]
    config = with_(accumulate=2)
    halves = [[places(parts) for *_, parts in stream(scans, config, rank=rank, world=2)] for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in whole]
    assert all(len(parts) == 2 for *_, parts in stream(scans, config))


def test_workers_change_nothing(scans):
    for (*_, a), (*_, b) in zip(stream(scans), stream(scans, with_(workers=1)), strict=True):
        assert all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_a_limit_repeats_the_same_slices_for_ever_with_other_noise(scans):
    config = with_(limit=1)
    (_, _, (first,)), (_, _, (second,)) = stream(scans, config, count=2)
    assert {*places([first, second])} == {places([first])[0]}
    assert torch.equal(first.mask_1hw.amax(), second.mask_1hw.amax())
    noises = [first.noise_1hw[0], first.noise_1hw[1], second.noise_1hw[0]]
    assert not any(torch.equal(a, b) for a, b in combinations(noises, 2))
    assert not torch.equal(first.t, second.t)


@pytest.mark.parametrize("how", [{"gamma": 0.3}, {"bias": 0.2}, {"noise": 0.1}, {"flip": True}, {"affine": 10}, {}])
def test_augmentation_does_what_its_key_says(how):
    rng = np.random.default_rng(0)
    image, mask = (brain(SHAPE)[32] / 1000).astype(np.float32), ball(SHAPE, (0.5, 0.4, 0.6), 0.1)[32]
    changed = [augmented(image, mask, Augmentation(**how), rng) for _ in range(8)]
    assert all(a.min() >= 0 and a.max() <= 1 and m.any() for a, m in changed)
    moves, dims = {"flip", "affine"} & how.keys(), {"gamma", "bias", "noise"} & how.keys()
    assert any((m != mask).any() for _, m in changed) == bool(moves)
    assert any((a != image).any() for a, _ in changed) == bool(moves or dims)
    if not moves:
        assert all((a[image == 0] == 0).all() for a, _ in changed)  # the background stays background


def test_a_shape_pool_is_drawn_only_where_it_is_needed(scans, monkeypatch):
    monkeypatch.setattr(dataset, "SHAPES", 0)
    assert stream(scans, count=1)
