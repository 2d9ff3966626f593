"""Varying windows on tensors: the same code in two and three dimensions, and what each number of an item does."""

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from brats_inpainting.config import Augmentation, DiffusionConfig, TrainConfig, UNetConfig
from brats_inpainting.data import augment as module
from brats_inpainting.data.augment import augment, draw, margin
from brats_inpainting.data.cache import LEVELS, RECORD, CachedScan
from brats_inpainting.data.dataset import Epoch
from brats_inpainting.data.masks import Placed

SHAPE = (48, 64, 56)  # S × H × W
UNET = {2: UNetConfig(multipliers=(1,)), 3: UNetConfig(dims=3, position=True, in_channels=6, multipliers=(1,))}
DIMS = pytest.mark.parametrize("dims", [2, 3])
BOX = (slice(8, 41), slice(10, 53), slice(9, 48))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A smooth image without symmetry that is nowhere 0, and a healthy mask."""
    z, h, w = np.meshgrid(*(np.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    records = np.zeros(SHAPE, RECORD)
    records["image"] = np.rint((0.2 + 0.3 * h + 0.2 * w**2 + 0.2 * z * h) * LEVELS)
    records["distance"] = 255
    path = tmp_path_factory.mktemp("scan") / "scan.npy"
    np.save(path, records)
    healthy = np.zeros(SHAPE, bool)
    healthy[20:26, 25:33, 22:27] = healthy[24, 33:36, 23] = True
    return CachedScan("case", path, Placed.of(healthy), BOX)


def items(scan, dims, number=4, **how):
    window = DiffusionConfig(window=16)
    recipe = TrainConfig(unet=UNET[dims], diffusion=window, augmentation=how, batch_size=number, windows_per_scan=8)
    epoch = Epoch([scan], [], recipe, 0)
    return default_collate([epoch[i] for i in range(number)])


def with_zeros(item, **changes):
    """Return an item that is not varied at all, but for some changes."""
    dims = item.shift_D.shape[1]
    names = ("shift_D", "elastic_DK", "bias_1K", "grain_1V", "haze_1V", "voided")
    zero = {name: torch.zeros_like(getattr(item, name)) for name in names}
    still = {"matrix_DD": torch.eye(dims).expand(len(item.t), -1, -1), "tone_2": torch.ones(len(item.t), 2)}
    return item._replace(**zero | still | changes)


def inner(images, dims):
    """Return the middle of sources, where their windows lie."""
    side = (images.shape[-1] - 16) // 2
    return images[..., *[slice(side, side + 16)] * dims]


@DIMS
def test_without_a_recipe_the_source_is_the_window_exactly(dims, scan):
    item = items(scan, dims)
    batch = augment(item, Augmentation())
    assert torch.equal(batch.truth_N1V, item.source_CU.float() / LEVELS)
    assert torch.equal(batch.context_N1V, batch.truth_N1V * (1 - batch.mask_N1V))


@DIMS
def test_numbers_of_zero_resample_the_window_onto_itself(dims, scan):
    how = Augmentation(affine=10, elastic=2, contrast=0.1, gamma=0.3, bias=0.1, noise=0.1)
    item = with_zeros(items(scan, dims, **how.model_dump()))
    batch = augment(item, how)
    expected = inner(item.source_CU.float() / LEVELS, dims)
    torch.testing.assert_close(batch.truth_N1V, expected, rtol=0, atol=1e-5)  # float32 coordinates over 50 voxels


@DIMS
def test_a_flip_mirrors_scan_mask_and_positions(dims, scan, monkeypatch):
    plain, draws = items(scan, dims), module.draw
    monkeypatch.setattr(module, "draw", lambda *given: draws(*given)._replace(flip=True))
    before, after = (augment(item, Augmentation()) for item in (plain, items(scan, dims)))
    for name in ("truth_N1V", "context_N1V", "mask_N1V"):
        assert torch.equal(getattr(after, name), getattr(before, name).flip(2)), name
        assert not torch.equal(getattr(after, name), getattr(before, name)), name
    mirrored = before.position_N3V.flip(2) * torch.tensor([-1, 1, 1]).reshape(1, 3, *[1] * dims)
    torch.testing.assert_close(after.position_N3V, mirrored, rtol=0, atol=1e-6)


@DIMS
def test_a_shift_a_turn_and_a_displacement_move_the_brain_and_not_the_mask(dims, scan):
    how = Augmentation(affine=10, elastic=2)
    item = items(scan, dims, affine=10, elastic=2)
    source = item.source_CU.float() / LEVELS
    shifted = with_zeros(item, shift_D=torch.tensor([2.0, *[0.0] * (dims - 1)]).expand(4, -1))
    displaced = with_zeros(item, elastic_DK=torch.zeros_like(item.elastic_DK))
    displaced.elastic_DK[:, 0] = 2
    expected = inner(source.roll(-2, 2), dims)
    for moved in (shifted, displaced):
        batch = augment(moved, how)
        torch.testing.assert_close(batch.truth_N1V, expected, rtol=0, atol=1e-5)
        assert torch.equal(batch.mask_N1V, item.mask_1V.float())
    quarter = torch.eye(dims)
    quarter[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # (x, y) of the window is (−y, x) of the scan
    turned = augment(with_zeros(item, matrix_DD=quarter.expand(4, -1, -1)), how)
    torch.testing.assert_close(turned.truth_N1V, inner(source, dims).rot90(-1, (2, 3)), rtol=0, atol=1e-5)
    halved = augment(with_zeros(item, matrix_DD=0.5 * torch.eye(dims).expand(4, -1, -1)), how)
    range_of = [image.amax() - image.amin() for image in (halved.truth_N1V[0], inner(source, dims)[0])]
    assert range_of[0] < 0.6 * range_of[1]  # half of a nearly linear image


@DIMS
@pytest.mark.parametrize("flip", [False, True])
def test_windows_are_turned_about_the_middle_of_the_brain(flip, dims, scan, monkeypatch):
    """A point of the window, mapped as documented, has the image's value there."""
    draws = module.draw
    monkeypatch.setattr(module, "draw", lambda *given: draws(*given)._replace(flip=flip))
    epoch = Epoch([scan], [], TrainConfig(unet=UNET[dims], diffusion={"window": 16}, augmentation={"affine": 20}), 0)
    image = np.moveaxis(scan.image_SHW / LEVELS, 0, 2)
    for index in range(4):
        item = default_collate([epoch[index]])
        batch = augment(item, epoch.config.augmentation)
        brain = np.array([(side.start + side.stop - 1) / 2 for side in BOX[1:] + BOX[:1]])
        half = np.array([(side.stop - side.start) / 2 for side in BOX[1:] + BOX[:1]])
        corner = (0, 0, *[3] * dims)
        scaled = half * batch.position_N3V[0, :, *corner[2:]].numpy()  # scale × (voxel − brain's middle)
        matrix = np.eye(3)
        matrix[:dims, :dims] = item.matrix_DD[0]
        mirror = [-1 if flip else 1, 1, 1]
        at = brain + mirror * (matrix / np.linalg.norm(matrix, axis=0) @ scaled)
        assert (at >= 0).all()
        assert (at < np.array(image.shape) - 1).all()
        low = at.astype(int)
        value = sum(
            image[tuple(low + corner)] * np.prod(np.where(corner, at - low, 1 - at + low))
            for corner in np.ndindex(2, 2, 2)
        )
        assert float(batch.truth_N1V[corner]) == pytest.approx(value, abs=1e-3)  # two ways to interpolate a slice


@DIMS
def test_no_draw_reaches_beyond_the_source(dims, scan):
    how = Augmentation(affine=12, elastic=2)
    side = 16 + 2 * margin(how, 16, dims)
    rng = np.random.default_rng(0)
    corners = 7.5 * np.array(list(np.ndindex(*[2] * dims))) * 2 - 7.5
    for _ in range(200):
        drawn = draw(how, (16,) * dims, rng)
        at = corners @ drawn.matrix_33[:dims, :dims].T
        assert np.abs(at).max() + np.abs(drawn.elastic_DK).max() + 0.5 <= (side - 1) / 2
    batch = augment(items(scan, dims, affine=12, elastic=2), how)
    assert batch.truth_N1V.min() > 0  # the image is nowhere 0


@DIMS
def test_tones_change_intensities_and_noise_the_context_alone(dims, scan):
    item = items(scan, dims)
    image = item.source_CU.float() / LEVELS
    toned = augment(with_zeros(item, tone_2=torch.tensor([[0.9, 2.0]] * 4)), Augmentation())
    torch.testing.assert_close(toned.truth_N1V, (0.9 * image) ** 2)
    biased = augment(with_zeros(item, bias_1K=torch.full_like(item.bias_1K, 0.1)), Augmentation())
    torch.testing.assert_close(biased.truth_N1V, image * np.exp(0.1))
    noisy = augment(items(scan, dims, noise=0.2), Augmentation(noise=0.2))
    assert torch.equal(noisy.truth_N1V, image)
    known = noisy.mask_N1V == 0
    assert (noisy.context_N1V[~known] == 0).all()
    assert (noisy.context_N1V != noisy.truth_N1V)[known].float().mean() > 0.9
    empty = item._replace(source_CU=torch.zeros_like(item.source_CU))
    nothing = augment(empty._replace(grain_1V=torch.ones_like(image)), Augmentation(noise=0.2))
    assert not nothing.context_N1V.any()  # the background stays background


@DIMS
@pytest.mark.parametrize("name", ["flip", "affine", "elastic", "contrast", "gamma", "bias", "noise", "position"])
def test_every_setting_changes_what_it_names(name, dims):
    how = Augmentation(**{name: True if name == "flip" else 0.2})
    plain = [getattr(draw(Augmentation(), (8,) * dims, np.random.default_rng(1)), field) for field in FIELDS.values()]
    for seed in range(4):
        drawn = draw(how, (8,) * dims, np.random.default_rng(seed))
        changed = {
            field
            for field, before in zip(FIELDS.values(), plain, strict=True)
            if not np.array_equal(getattr(drawn, field), before)
        }
        assert changed <= {FIELDS[name]}
        if changed:
            return
    pytest.fail("nothing changes")


FIELDS = {
    "flip": "flip",
    "affine": "matrix_33",
    "elastic": "elastic_DK",
    "contrast": "tone_2",
    "gamma": "tone_2",
    "bias": "bias_1K",
    "noise": "grain_1V",
    "position": "jitter_23",
}
