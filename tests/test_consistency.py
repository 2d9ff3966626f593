"""Consistency distillation: right where the answer is known."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from brats_inpainting.config import DiffusionConfig, TrainConfig
from brats_inpainting.consistency import Distillation
from brats_inpainting.data.augment import Batch
from brats_inpainting.diffusion.process import Schedule, predict

from .conftest import TINY

SCHEDULE = Schedule.linear()
ALPHA = torch.from_numpy(np.sqrt(SCHEDULE.alpha_bar)).float()
SIGMA = torch.from_numpy(np.sqrt(1 - SCHEDULE.alpha_bar)).float()
SKIP = torch.from_numpy(SCHEDULE.consistency_skip).float()
SD = 0.25  # of pixels with mean 0
MODEL = DiffusionConfig(prediction="x0", image_range=(-1, 1), window=32, consistency=True)


def at(values, t):
    return values[t].reshape(-1, 1, 1, 1)


def gaussian(x_NCV, t_N):
    """The exact denoiser of pixels from N(0, SD²)."""
    a, s = at(ALPHA, t_N), at(SIGMA, t_N)
    return a * SD**2 / ((a * SD) ** 2 + s**2) * x_NCV[:, 2:3]


def consistent(x_NCV, t_N):
    """A network whose blended x̂_0 is the exact consistency function of these pixels, up to σ at t = 0."""
    a, s, share = at(ALPHA, t_N), at(SIGMA, t_N), at(SKIP, t_N)
    lowest = (SD**2 + (SIGMA[0] / ALPHA[0]) ** 2).sqrt()
    x0 = x_NCV[:, 2:3] * lowest / ((a * SD) ** 2 + s**2).sqrt()
    return (x0 - share * x_NCV[:, 2:3] / a) / (1 - share).clamp_min(1e-9)


def batch(number=64):
    torch.manual_seed(0)
    truth = 0.5 + SD / 2 * torch.randn(number, 1, 8, 8)
    mask = torch.ones_like(truth)
    nothing = torch.empty(number, 0, 8, 8)
    return Batch(truth, 0 * truth, mask, nothing, nothing, torch.randn_like(truth), torch.randint(1000, (number,)))


def distillation(levels, target=consistent):
    recipe = TrainConfig(unet=TINY, diffusion=MODEL, levels=levels)
    return Distillation(gaussian, target, SCHEDULE, recipe)


def test_a_consistency_model_is_the_identity_at_the_lowest_level():
    x = torch.randn(2, 1, 4, 4)
    found = predict(torch.rand_like(x), x, 0, SCHEDULE, MODEL, clamped=False)
    torch.testing.assert_close(found.x0, x / ALPHA[0])
    high = predict(torch.rand_like(x), x, 999, SCHEDULE, MODEL, clamped=False)
    assert float(high.x0.min()) > -0.01  # the network's own estimate
    assert (np.diff(SCHEDULE.consistency_skip) < 0).all()


def test_recipes_that_cannot_be_distilled_are_refused():
    for wrong in ({"ssim": 0.1}, {"levels": 2000}):
        with pytest.raises(ValueError, match="at most as many levels as steps"):
            TrainConfig(unet=TINY, diffusion=MODEL, **wrong)


def test_the_loss_vanishes_for_the_exact_function_as_the_levels_become_finer():
    coarse, fine = (float(distillation(levels)(consistent, batch()).mse_N.mean()) for levels in (18, 200))
    assert fine < min(coarse, 1e-5)
    assert float(distillation(18)(gaussian, batch()).mse_N.mean()) > 1e-3  # of a network that is no consistency model


def test_the_solver_follows_the_exact_flow_with_an_error_of_third_order_in_the_step():
    errors = []
    for levels in (40, 79):  # half the step
        loss, x = distillation(levels), torch.ones(1, 1, 2, 2)
        middle = levels // 2
        t, lower = loss.levels[middle : middle + 1], loss.levels[middle + 1 : middle + 2]
        lengths = [((at(ALPHA, level) * SD) ** 2 + at(SIGMA, level) ** 2).sqrt() for level in (t, lower)]
        found = loss._solve(x, t, lower, torch.zeros(1, 2, 2, 2))
        errors.append(float((found - x * lengths[1] / lengths[0]).abs().max()))
    assert errors[0] < 0.005, errors
    assert errors[1] < errors[0] / 6  # third order: 8; Euler's method: 4


def test_every_level_is_chosen_with_the_level_below_it():
    seen = []

    def network(x_NCV, t_N):
        seen.append(t_N.tolist())
        return gaussian(x_NCV, t_N)

    loss = distillation(6)
    given = batch(1000)._replace(t_N=torch.arange(1000))
    replace(loss, teacher=network)(gaussian, given)
    levels = loss.levels.tolist()
    assert sorted(set(zip(*seen, strict=True)), reverse=True) == list(pairwise(levels))
    assert levels[0] == 999
    assert levels[-1] == 0


def test_the_target_and_the_teacher_have_no_gradient():
    scale = torch.ones(1, requires_grad=True)

    def scaled(x_NCV, t_N):
        return scale * gaussian(x_NCV, t_N)

    loss = replace(distillation(18), teacher=scaled, target=scaled)
    assert not loss(gaussian, batch()).total_N.requires_grad
    loss(scaled, batch()).total_N.mean().backward()
    assert float(scale.grad) != 0
