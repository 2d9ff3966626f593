"""Training windows: what they hold, what decides them, and that processes share one stream."""

from itertools import combinations, islice

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils.data import default_collate

from brats_inpainting.config import DiffusionConfig, TrainConfig, UNetConfig
from brats_inpainting.data import dataset, masks, windows
from brats_inpainting.data.augment import augment
from brats_inpainting.data.cache import LEVELS, RECORD, CachedScan
from brats_inpainting.data.dataset import Epoch, batches

from ..conftest import ball, brain

SHAPE = (64, 72, 72)  # S × H × W
RECIPE = TrainConfig(diffusion=DiffusionConfig(window=32), batch_size=4, seed=3)
BOXES = TrainConfig(
    unet=UNetConfig(dims=3, patch=2, position=True, in_channels=6, width=32, multipliers=(1, 1), attention_at=()),
    diffusion=DiffusionConfig(window=16),
    windows_per_scan=5,
    batch_size=4,
    seed=3,
)
BOTH = pytest.mark.parametrize("recipe", [RECIPE, BOXES], ids=["2D", "3D"])


def scan(folder, seed):
    records = np.zeros(SHAPE, RECORD)
    records["image"], records["distance"] = brain(SHAPE, seed) / 1000 * LEVELS, 255
    np.save(folder / f"{seed}.npy", records)
    healthy = ball(SHAPE, (0.5, 0.45, 0.5), 0.1)
    box = ndimage.find_objects((records["image"] > 0).astype(np.uint8))[0]
    return CachedScan(f"case-{seed}", folder / f"{seed}.npy", masks.Placed.of(healthy), box)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return [scan(folder, 0), scan(folder, 1)]


@pytest.fixture(scope="module")
def shapes():
    return masks.compartments(np.random.default_rng(0), 4)


def with_(recipe=RECIPE, **changes):
    return TrainConfig.model_validate(recipe.model_dump() | changes)


def stream(scans, config=RECIPE, count=6, **place):
    place = {"epoch": 0, "batch": 0} | place
    return [(epoch, batch, parts) for epoch, batch, parts in islice(batches(scans, config, **place), count)]


def places(parts):
    return [tuple(place.tolist()) for part in parts for place in part.place_2]


@BOTH
def test_a_window_holds_the_truth_a_mask_and_where_it_is(recipe, scans):
    dims, window = recipe.unet.dims, recipe.diffusion.window
    epoch = Epoch(scans, [], recipe, 0)
    for index in range(len(epoch)):
        item = epoch[index]
        batch = augment(default_collate([item]), recipe.augmentation)
        shape = (1, 1, *[window] * dims)
        assert batch.truth_N1V.shape == batch.mask_N1V.shape == batch.noise_N1V.shape == shape
        assert set(batch.mask_N1V.unique().tolist()) == {0, 1}
        assert torch.equal(batch.context_N1V, batch.truth_N1V * (1 - batch.mask_N1V))
        assert 0 <= item.t < 1000
        case, z = item.place_2.tolist()
        place, shift = where(batch, scans[case])
        assert place[0] == z if dims == 2 else place[0].start + window // 2 == z
        framed = [np.moveaxis(np.asarray(a, np.float32), 0, 2) for a in arrays(scans[case])]
        for part, whole in zip((batch.truth_N1V, batch.mask_N1V), framed, strict=True):
            assert np.array_equal(part[0, 0].numpy(), whole[*place[1:], place[0]])
        assert shift < 1e-4  # of a voxel: positions are float32


def arrays(scan):
    return scan.image_SHW / np.float32(LEVELS), scan.healthy.within((0, 0, 0), SHAPE)


def where(batch, scan):
    """Return the place that positions speak of, and how far they are from whole voxels."""
    shape = batch.truth_N1V.shape[2:]
    middles = [
        float(batch.position_N3V[0, axis].mean()) * (side.stop - side.start) / 2 + (side.start + side.stop - 1) / 2
        for axis, side in enumerate(scan.box[1:] + scan.box[:1])
    ]
    starts = [middle - (n - 1) / 2 for middle, n in zip(middles, (*shape, 1)[:3], strict=True)]
    rows, columns, depth = (slice(round(a), round(a) + n) for a, n in zip(starts, (*shape, 1)[:3], strict=True))
    place = (round(starts[2]) if len(shape) == 2 else depth, rows, columns)
    expected = np.stack(windows.positions(place, scan.box))
    assert np.abs(batch.position_N3V[0].numpy() - expected).max() < 1e-5
    return place, max(abs(a - round(a)) for a in starts)


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


EVERYTHING = {"flip": True, "affine": 5, "elastic": 1, "gamma": 0.1, "bias": 0.1, "noise": 0.1, "position": 0.1}


@BOTH
def test_the_stream_goes_on_from_any_place_as_if_it_had_begun_at_the_start(recipe, scans, shapes, monkeypatch):
    monkeypatch.setattr(masks, "compartments", lambda *_: shapes)
    recipe = with_(recipe, augmentation=EVERYTHING, masks="both")
    whole = stream(scans, recipe, count=14)
    assert whole[-1][0] > 0  # it crosses into the next epoch
    for begin in (3, 9):
        epoch, batch, _ = whole[begin - 1]
        rest = stream(scans, recipe, count=14 - begin, epoch=epoch, batch=batch)
        for (*_, a), (*_, b) in zip(whole[begin:], rest, strict=True):
            for one, other in zip(a, b, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@BOTH
def test_two_processes_and_two_parts_share_every_batch(recipe, scans):
    whole = [windows_of(parts) for *_, parts in stream(scans, recipe)]
    config = with_(recipe, accumulate=2)
    halves = [[windows_of(parts) for *_, parts in stream(scans, config, rank=rank, world=2)] for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in whole]
    assert all(len(parts) == 2 for *_, parts in stream(scans, config))


def windows_of(parts):
    """Tell windows apart by their noise, which no two share."""
    return [float(noise.sum()) for part in parts for noise in part.noise_1V]


@BOTH
def test_workers_change_nothing(recipe, scans):
    for (*_, a), (*_, b) in zip(stream(scans, recipe), stream(scans, with_(recipe, workers=1)), strict=True):
        assert all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


@BOTH
def test_a_limit_repeats_the_same_windows_for_ever_with_other_noise(recipe, scans, shapes, monkeypatch):
    monkeypatch.setattr(masks, "compartments", lambda *_: shapes)
    config = with_(recipe, limit=1, masks="synthetic", diffusion={"window": 64})  # nothing of a mask is cut off
    (_, _, (first,)), (_, _, (second,)) = stream(scans, config, count=2)
    assert {place[0] for place in places([first, second])} == {places([first])[0][0]}
    assert torch.equal(first.mask_1V.sum(), second.mask_1V.sum())
    noises = [first.noise_1V[0], first.noise_1V[1], second.noise_1V[0]]
    assert not any(torch.equal(a, b) for a, b in combinations(noises, 2))
    assert not torch.equal(first.t, second.t)


def test_every_box_has_a_mask_of_its_own_that_lies_in_the_brain(scans, shapes):
    config = with_(BOXES, masks="synthetic", diffusion={"window": 48})
    epoch = Epoch(scans, shapes, config, 0)
    assert sorted(case for case, _ in epoch.places) == [0] * 5 + [1] * 5
    batch = augment(default_collate([epoch[index] for index in range(10)]), config.augmentation)
    assert len({float(mask.sum()) for mask in batch.mask_N1V}) > 5
    for truth, mask in zip(batch.truth_N1V, batch.mask_N1V, strict=True):
        assert (truth[mask > 0] > 0).float().mean() > 0.6  # 75 % of each of up to two compartments, parts of them cut
    again = Epoch(scans, shapes, config, 1)[0]
    assert not torch.equal(again.mask_1V, epoch[0].mask_1V)


def test_a_scan_without_room_for_a_mask_trains_on_a_speck(scans, shapes, monkeypatch):
    def full(*_, **__):
        raise ValueError

    monkeypatch.setattr(masks, "place", full)
    empty = CachedScan("none", scans[0].path, masks.Placed.of(np.zeros(SHAPE, bool)), scans[0].box)
    assert Epoch([empty], shapes, with_(BOXES, masks="synthetic"), 0)[0].mask_1V.sum() == 1
    assert Epoch(scans[:1], shapes, with_(BOXES, masks="synthetic"), 0)[0].mask_1V.sum() > 1  # the case's own


@pytest.mark.parametrize(("share", "expected"), [(0, 0), (0.5, 2), (1, 4)])
def test_a_share_of_every_batch_is_at_the_last_timestep_in_every_process(share, expected, scans):
    config = with_(BOXES, last_timestep=share)
    for *_, parts in stream(scans, config):
        assert int((parts[0].t == 999).sum()) == expected  # another one of a thousand draws could be, but none here is
    for rank in (0, 1):
        for *_, parts in stream(scans, config, rank=rank, world=2):
            assert int((parts[0].t == 999).sum()) == expected // 2


def test_a_shape_pool_is_drawn_only_where_it_is_needed(scans, monkeypatch):
    monkeypatch.setattr(dataset, "POOL_SIZE", 0)
    assert stream(scans, count=1)
