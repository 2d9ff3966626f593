"""Slice after slice: the network sees the previous slice, filled as far as it is, in every order."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from brats_inpainting.config import Augmentation, DiffusionConfig, SamplingConfig, TrainConfig
from brats_inpainting.data import validation, volume
from brats_inpainting.data.augment import augment
from brats_inpainting.data.cache import LEVELS, RECORD, CachedScan
from brats_inpainting.data.dataset import Epoch
from brats_inpainting.data.masks import Placed
from brats_inpainting.data.nifti import LPS
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import ConfigError
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.plan import Plan
from brats_inpainting.state import State

from .conftest import TINY, brain, scan_of, weights

FOUR = TINY.model_copy(update={"in_channels": 4})
PREVIOUS = DiffusionConfig(prediction="x0", window=32, context="previous")


class Halving(torch.nn.Module):
    """A network whose estimate is half the previous slice plus 0.1, and that remembers what it saw."""

    config = FOUR

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x_NCV, _t_N):
        self.seen.append(x_NCV.clone())
        return x_NCV[:, 3:] / 2 + 0.1


def sequential(network, **sampling):
    how = SamplingConfig(**{"sampler": "ddim", "steps": 1, "smoothing": 0} | sampling)
    machine = weights(network, prediction="x0", window=32, context="previous")
    return Inpainter(machine, how, Plan(torch.device("cpu"), batch_size=4, concurrent=2))


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    ("order", "start", "factors"),
    [
        ("up", 2, {3: 1, 4: 2, 5: 3, 6: 4}),
        ("down", 7, {6: 1, 5: 2, 4: 3, 3: 4}),
        ("outward", None, {5: 1, 6: 2, 4: 2, 3: 3}),  # the first one's previous slice is still voided
    ],
)
def test_every_slice_is_filled_from_the_one_before_it(order, start, factors, samples):
    mask = np.zeros((64, 64, 12), np.uint8)
    mask[28:36, 26:40, 3:7] = 1
    images = [nib.Nifti1Image(array, LPS) for array in (brain(mask.shape), mask)]
    scan = volume.prepare(validation.examine("a", *images, names=("image", "mask")))
    (stack,) = sequential(Halving(), order=order, samples=samples).fill([scan])
    way = {"up": [(3, 2), (4, 3), (5, 4), (6, 5)], "down": [(6, 7), (5, 6), (4, 5), (3, 4)]}
    pairs = [(task.window.place[0], task.previous) for tasks in stack.sequence(order) for task in tasks[:1]]
    assert pairs == way.get(order, [(5, 4), (6, 5), (4, 5), (3, 4)])
    for z, halvings in factors.items():
        expected = np.zeros_like(scan.image_SHW[z]) if start is None else scan.image_SHW[start]
        for _ in range(halvings):
            expected = expected / 2 + 0.1
        inside = scan.mask_SHW[z]
        assert np.abs(stack.mean_SHW[z] - expected)[inside].max() < 1e-6  # float32


def test_the_known_part_of_the_previous_slice_is_the_scans():
    scan, network = scan_of(0, "a"), Halving()
    machine = sequential(network)
    (stack,) = machine.fill([scan])
    (_, rows, columns), *_ = (window.place for window in stack.windows)
    z = int(np.flatnonzero(scan.mask_SHW.any(axis=(1, 2)))[1])
    known = ~scan.mask_SHW[z - 1][rows, columns]
    assert np.array_equal(network.seen[1][0, 3].numpy()[known], scan.image_SHW[z - 1][rows, columns][known])


def test_images_are_scaled_to_the_range_of_the_network_and_the_mask_is_not():
    network = Halving()
    loaded = weights(network, prediction="x0", window=32, context="previous", image_range=(-1, 1))
    how = SamplingConfig(sampler="ddim", steps=1, smoothing=0)
    list(Inpainter(loaded, how, Plan(torch.device("cpu"))).fill([scan_of(0, "a")]))
    assert min(float(seen[:, 3].min()) for seen in network.seen) == -1
    assert {float(value) for seen in network.seen for value in seen[:, 1].unique()} == {0, 1}


def test_samples_follow_their_own_slices_and_the_seed_decides():
    torch.manual_seed(0)
    network = UNet(FOUR).eval().requires_grad_(requires_grad=False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    machine = sequential(network, samples=2, steps=2)
    (first,), (again,), (other,) = (machine.fill([scan_of(0, "a")], seed=seed, keep=True) for seed in (0, 0, 1))
    assert first.mean_SHW.tobytes() == again.mean_SHW.tobytes() != other.mean_SHW.tobytes()
    alone = sequential(network, samples=1, steps=2)
    (one,) = alone.fill([scan_of(0, "a")], seed=0)
    assert np.abs(next(first.samples_SHW()) - one.mean_SHW).max() < 1e-5


@pytest.fixture
def item(tmp_path):
    def make(**augmentation):
        rng = np.random.default_rng(0)
        records = np.zeros((24, 40, 40), RECORD)
        records["image"] = rng.integers(1, LEVELS, records.shape)
        records["distance"] = 255
        np.save(tmp_path / "scan.npy", records)
        healthy = np.zeros(records.shape, bool)
        healthy[8:14, 15:25, 15:25] = True
        box = tuple(slice(0, n) for n in records.shape)
        scan = CachedScan("case", tmp_path / "scan.npy", Placed.of(healthy), box)
        recipe = TrainConfig(
            unet=FOUR, diffusion=PREVIOUS.model_copy(update={"window": 32}), augmentation=augmentation, batch_size=64
        )
        epoch = Epoch([scan], [], recipe, 0)
        return records["image"] / LEVELS, default_collate([epoch[i] for i in range(64)]), recipe

    return make


def test_training_sees_the_true_slice_above_or_below_and_sometimes_a_voided_one(item):
    image, items, recipe = item()
    batch = augment(items, recipe.augmentation)
    ways = []
    for n, (_, z) in enumerate(items.place_2.tolist()):
        inside = batch.mask_N1V[n, 0] > 0
        found = batch.previous_NCV[n, 0]
        sides = [
            way
            for way in (-1, 1)
            if any(
                np.allclose(image[z + way, i : i + 32, j : j + 32][~inside], found[~inside])
                for i in range(9)
                for j in range(9)
            )
        ]
        assert len(sides) == 1
        ways += sides
        assert bool(items.voided[n]) == (not found[inside].any())
    assert {-1, 1} == set(ways)
    assert 0 < int(items.voided.sum()) < 32


def test_noise_changes_the_previous_slice_inside_the_mask_only(item):
    _, items, recipe = item(previous=0.3)
    noisy = augment(items, recipe.augmentation)
    still = augment(items._replace(haze_1V=torch.zeros_like(items.haze_1V)), recipe.augmentation)
    changed = noisy.previous_NCV != still.previous_NCV
    assert changed.any()
    assert not (changed & (noisy.mask_N1V == 0)).any()
    assert torch.equal(noisy.truth_N1V, still.truth_N1V)
    deviations = (noisy.previous_NCV - still.previous_NCV)[noisy.mask_N1V > 0]
    assert 0.05 < float(deviations.std()) < 0.3


def test_weights_without_the_channel_continue_with_one_that_starts_at_zero(tmp_path):
    torch.manual_seed(0)
    network = UNet(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path, without = tmp_path / "three.safetensors", DiffusionConfig(prediction="x0", window=48)
    checkpoint.save(path, network.state_dict(), unet=TINY, diffusion=without, ema=True, notes={})
    recipe = TrainConfig(unet=FOUR, diffusion=PREVIOUS)
    state = State.start(recipe, fold=0, data="", initial=path)
    x, t = torch.randn(1, 4, 32, 32), torch.tensor([500])
    torch.testing.assert_close(state.network(x, t), network(x[:, :3], t), rtol=0, atol=1e-3)  # other sums of floats
    with pytest.raises(ConfigError, match="differ from the recipe's"):
        State.start(
            TrainConfig(unet=FOUR, diffusion=PREVIOUS.model_copy(update={"steps": 500})), fold=0, data="", initial=path
        )


def test_the_previous_slice_is_one_more_channel_of_slice_wise_networks():
    with pytest.raises(ValueError, match="in_channels is 3"):
        TrainConfig(unet=TINY, diffusion=PREVIOUS)
    three = {"dims": 3, "in_channels": 4}
    for wrong in ({"unet": three}, {"unet": FOUR, "diffusion": PREVIOUS.model_copy(update={"consistency": True})}):
        with pytest.raises(ValueError, match="slice-wise"):
            TrainConfig(**{"diffusion": PREVIOUS} | wrong)
    with pytest.raises(ValueError, match=r"needs context: previous"):
        TrainConfig(augmentation={"previous": 0.1})
    assert Augmentation().previous == 0
