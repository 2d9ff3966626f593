"""The loss of training: how voxels are weighted, and the term of structural similarity."""

import numpy as np
import pytest
import torch

from brats_inpainting import metrics
from brats_inpainting.config import TrainConfig
from brats_inpainting.data.augment import Batch
from brats_inpainting.diffusion.process import Schedule
from brats_inpainting.loss import similarity, terms, weights

from .conftest import ball, brain

SHAPE = (20, 36, 32)


def pair():
    """A truth that spans [0, 1], an estimate, and a mask farther from the border than SSIM sees."""
    truth = np.clip(brain(SHAPE) / 1000, 0, 1)
    estimate = np.clip(truth + 0.2 * np.random.default_rng(0).standard_normal(SHAPE), 0, 1).astype(np.float32)
    mask = ball(SHAPE, (0.5, 0.5, 0.5), 0.2)
    inside = np.flatnonzero(mask)
    truth.ravel()[inside[:2]] = 0, 1
    return truth, estimate, mask


def test_the_similarity_is_the_challenges():
    truth, estimate, mask = pair()
    expected = metrics.score(estimate, truth, np.where(mask, 0, truth), mask)
    tensors = [torch.from_numpy(np.stack([a, a[::-1]])[:, None].astype(np.float32)) for a in (estimate, truth, mask)]
    found = similarity(*tensors)
    # the score's intensities are scaled by percentiles of the voided truth, which cut off a thousandth
    assert found.tolist() == pytest.approx([expected.ssim] * 2, abs=2e-3)
    assert similarity(tensors[1], tensors[1], tensors[2]).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_voxels_are_weighted_by_voxel_or_by_region(dims):
    mask = torch.zeros(2, 1, *[8] * dims)
    mask[0, 0, 0], mask[1, 0, :2] = 1, 1
    error = 2 * mask + (1 - mask)  # 2 inside, 1 outside
    share = torch.tensor([1 / 8, 1 / 4])
    recipe = TrainConfig(weight_outside=0.1)
    voxel, region = (weights(mask, recipe.model_copy(update={"weighting": how})) for how in ("voxel", "region"))
    means = [(weight * error).flatten(1).mean(dim=1) for weight in (voxel, region)]
    expected = (2 * share + 0.1 * (1 - share)) / (share + 0.1 * (1 - share))
    torch.testing.assert_close(means[0], expected)
    torch.testing.assert_close(means[1], torch.full((2,), 2.1))
    nothing = weights(torch.zeros_like(mask), recipe.model_copy(update={"weighting": "region"}))
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_sees_the_context_and_the_weighted_error_is_of_the_truth(dims):
    shape = (2, 1, *[8] * dims)
    truth, context, noise = torch.rand(shape), torch.rand(shape), torch.randn(shape)
    mask = (torch.rand(shape) < 0.3).float()
    nothing = torch.empty(2, 0, *shape[2:])
    batch = Batch(truth, context, mask, torch.rand(2, 3, *shape[2:]), nothing, noise, torch.tensor([10, 999]))
    three = {"dims": 3, "position": True, "in_channels": 6} if dims == 3 else {}
    diffusion = {"prediction": "x0", "image_range": (-1, 1), "window": 96}
    recipe = TrainConfig(unet=three | {"out_channels": 1}, diffusion=diffusion, weight_outside=0.1)
    seen = []
    found = terms(lambda x, _: seen.append(x) or 0 * x[:, :1], Schedule.linear(), recipe, batch)
    torch.testing.assert_close(seen[0][:, :1], 2 * context - 1)
    assert torch.equal(seen[0][:, 1:2], mask)
    torch.testing.assert_close(seen[0][:, 2:3], Schedule.linear().q_sample(2 * truth - 1, batch.t_N, noise))
    assert torch.equal(seen[0][:, 3:], batch.position_N3V[:, : 3 * (dims == 3)])
    expected = (weights(mask, recipe) * (2 * truth - 1).square()).flatten(1).mean(dim=1)
    torch.testing.assert_close(found.total_N, expected)


def test_the_ssim_term_counts_at_the_last_timestep_alone_and_teaches():
    truth, _, mask = (torch.from_numpy(np.ascontiguousarray(a, np.float32))[None, None] for a in pair())
    both = [image.expand(2, -1, -1, -1, -1) for image in (truth, truth * (1 - mask), mask)]
    nothing = torch.empty(2, 0, *SHAPE)
    batch = Batch(*both, torch.zeros(2, 3, *SHAPE), nothing, torch.randn(2, 1, *SHAPE), torch.tensor([999, 998]))
    recipe = TrainConfig(
        unet={"dims": 3, "position": True, "in_channels": 6, "out_channels": 1},
        diffusion={"prediction": "x0", "image_range": (-1, 1), "window": 96},
        ssim=0.5,
    )
    out = torch.zeros(2, 1, *SHAPE, requires_grad=True)
    found = terms(lambda x, _: out + 0 * x[:, :1], Schedule.linear(), recipe, batch)
    grey = similarity(torch.full_like(truth, 0.5), truth, mask)
    assert found.ssim_N.tolist() == pytest.approx([0.5 * (1 - float(grey)), 0])
    found.ssim_N.sum().backward()
    assert out.grad[0].abs().sum() > 0
    assert not out.grad[1].any()
    off = terms(lambda x, _: out + 0 * x[:, :1], Schedule.linear(), recipe.model_copy(update={"ssim": 0.0}), batch)
    assert not off.ssim_N.any()
