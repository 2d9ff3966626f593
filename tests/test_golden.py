"""Parity with guided-diffusion: network, schedule, p(x_{t-1} | x_t), samplers and loss, at the vectors' tolerances."""

import numpy as np
import pytest
import torch

from brats_inpainting.config import BUNDLED, DiffusionConfig, UNetConfig
from brats_inpainting.diffusion import checkpoint, samplers
from brats_inpainting.diffusion.process import Denoiser, Schedule, predict, training_losses

from .golden import SMALL, VECTORS, VOLUME, distance, network, rnd

SHAPE = (2, 1, 64, 64)
SCHEDULE = Schedule.linear(1000)


@pytest.fixture(scope="module")
def small():
    return network(SMALL)


@pytest.fixture(scope="module")
def condition():
    mask = torch.zeros(SHAPE)
    mask[..., 20:40, 24:44] = 1
    b = (rnd("b", SHAPE).abs() / 3).clamp(0, 1) * (1 - mask)
    return torch.cat([b, mask], dim=1)


def test_the_small_network_has_the_original_names_and_output(small):
    assert list(small.state_dict()) == list(VECTORS["small_keys"])
    assert sum(p.numel() for p in small.parameters()) == VECTORS["small_n_params"]
    assert distance(small(rnd("unet_x", (2, 3, 64, 64)), torch.tensor([7, 900])), "small_out") < 1e-4


@pytest.mark.slow
def test_the_papers_network_has_113_672_066_parameters_and_the_original_output():
    net = network(UNetConfig())
    state = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == 113_672_066 == VECTORS["paper_n_params"]
    assert list(state) == list(VECTORS["paper_keys"])
    assert [str(tuple(p.shape)) for p in state.values()] == list(VECTORS["paper_shapes"])
    out = net(rnd("paper_x", (1, 3, 224, 224)), torch.tensor([500]))
    assert distance(out[:, :, ::7, ::7], "paper_out_every7") < 1e-4
    np.testing.assert_allclose([out.mean(), out.std()], VECTORS["paper_out_meanstd"], rtol=1e-4)


def test_the_linear_schedule_is_the_original_to_float64():
    mean = SCHEDULE.posterior_mean_coefficients
    assert distance(SCHEDULE.betas, "sched_betas") < 1e-12
    assert distance(SCHEDULE.alpha_bar, "sched_alphas_cumprod") < 1e-12
    assert distance(SCHEDULE.posterior_variance, "sched_posterior_variance") < 1e-12
    assert distance(SCHEDULE.posterior_log_variance, "sched_posterior_log_variance_clipped") < 1e-12
    assert distance(mean[:, 0], "sched_posterior_mean_coef1") < 1e-12
    assert distance(mean[:, 1], "sched_posterior_mean_coef2") < 1e-12


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_one_ancestral_step_has_the_original_mean_and_variance(small, condition, t):
    tolerance = 1e-3 if t == 999 else 1e-4  # at t = 999 the division by sqrt(alpha_bar) = 0.006 magnifies rounding
    x_t, t_N = rnd(f"xt{t}", SHAPE), torch.full((2,), t)
    x0, _, v = Denoiser(small, condition, SCHEDULE, DiffusionConfig())(x_t, t)
    assert distance(x0, f"pmv_{t}_pred_xstart") < tolerance
    assert distance(SCHEDULE.posterior_mean(x0, x_t, t_N), f"pmv_{t}_mean") < tolerance
    assert distance(SCHEDULE.log_variance(v, t_N), f"pmv_{t}_log_variance") < tolerance
    out = small(torch.cat([condition, x_t], dim=1), t_N)
    x0, _, _ = predict(out, x_t, t_N, SCHEDULE, DiffusionConfig(), clamped=False)
    assert distance(x0, f"pmv_{t}_pred_xstart_unclamped") < tolerance
    assert distance(SCHEDULE.posterior_mean(x0, x_t, t_N), f"pmv_{t}_mean_unclamped") < tolerance


def test_ten_respaced_ancestral_steps_end_where_the_original_does(small, condition):
    denoise = Denoiser(small, condition, SCHEDULE, DiffusionConfig())
    timesteps = [int(t) for t in VECTORS["ddpm10_timesteps"][::-1]]
    out = samplers.ddpm(
        denoise, rnd("ddpm10_xT", SHAPE), timesteps, SCHEDULE, noise=lambda k: rnd(f"ddpm10_z{k}", SHAPE)
    )
    assert distance(out, "ddpm10_out") < 1e-3
    assert SCHEDULE.timesteps(10) == timesteps


def test_ten_ddim_steps_end_where_the_original_does(small, condition):
    denoise = Denoiser(small, condition, SCHEDULE, DiffusionConfig())
    timesteps = [int(t) for t in VECTORS["ddim10_timesteps"][::-1]]
    assert distance(samplers.ddim(denoise, rnd("ddim10_xT", SHAPE), timesteps, SCHEDULE), "ddim10_out") < 1e-3


@pytest.mark.parametrize("name", ["loss", "loss0"])
def test_the_hybrid_loss_is_the_original(small, condition, name):
    x0 = (rnd("x0", SHAPE).abs() / 3).clamp(0, 1)
    t_N, noise = torch.from_numpy(VECTORS[f"{name}_t"]), rnd("loss_noise", SHAPE)
    mse, vb, _ = training_losses(small, SCHEDULE, DiffusionConfig(), x0, condition, t_N=t_N, noise_N1V=noise)
    assert distance(mse, f"{name}_mse") < 1e-4
    assert distance(vb, f"{name}_vb") < 1e-4
    assert distance(mse + vb, f"{name}_loss") < 1e-4


def test_the_volume_network_has_the_names_shapes_and_output_of_its_definition():
    net = checkpoint.load(BUNDLED["volume-2"]).network
    state = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == 16_777_096
    assert list(state) == list(VOLUME["keys"])
    assert [str(tuple(p.shape)) for p in state.values()] == list(VOLUME["shapes"])
    shape = (1, 1, 32, 32, 32)
    mask = torch.zeros(shape)
    mask[..., 8:20, 10:24, 12:26] = 1
    b = (rnd("b3", shape).abs() / 3).clamp(0, 1) * (1 - mask)
    positions = torch.stack(torch.meshgrid(*[torch.linspace(-0.5, 0.5, 32)] * 3, indexing="ij"))[None]
    x = torch.cat([2 * b - 1, mask, rnd("x3", shape), positions], dim=1)
    for t in (999, 400):
        assert distance(net(x, torch.tensor([t]))[..., ::2, ::2, ::2], f"out_t{t}", VOLUME) < 1e-4
