"""The schedule, the meaning of a network's output, and the loss; their values are guided-diffusion's in test_golden."""

import numpy as np
import pytest
import torch

from brats_inpainting.config import DiffusionConfig
from brats_inpainting.diffusion.process import Denoiser, Schedule, predict, training_losses

SCHEDULE = Schedule.linear(1000)
ALPHA, SIGMA = np.sqrt(SCHEDULE.alpha_bar), np.sqrt(1 - SCHEDULE.alpha_bar)
SHAPE = (3, 1, 8, 8)
T_S = torch.tensor([1, 500, 999])
CONDITION = torch.zeros(3, 2, 8, 8)
FLOAT32 = 1e-6  # a few roundings of numbers near one


def column(values):
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]


@pytest.fixture
def truth():
    """A clean image, the noise in it, and what they make at ``T_S``."""
    x0, eps = torch.rand(SHAPE), torch.randn(SHAPE)
    return x0, eps, SCHEDULE.q_sample(x0, T_S, eps)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def outputs(x0, eps):
    """What a perfect network of each kind says."""
    alpha, sigma = column(ALPHA[T_S]), column(SIGMA[T_S])
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}


def losses(out, x0, eps, *, kind="eps", weight=None):
    """The loss of a network that says ``out``."""
    config = DiffusionConfig(prediction=kind)
    return training_losses(lambda *_: out, SCHEDULE, config, x0, CONDITION, t_N=T_S, noise_N1V=eps, weight_N1V=weight)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_one_draw_of_q_sample_is_as_noisy_as_all_single_steps_together(t):
    mean, variance = 1.0, 0.0
    for beta in SCHEDULE.betas[: t + 1]:  # paper eq. 1
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert float(SCHEDULE.q_sample(one, torch.tensor([t]), none)) == pytest.approx(mean, rel=FLOAT32)
    assert float(SCHEDULE.q_sample(none, torch.tensor([t]), one)) == pytest.approx(np.sqrt(variance), rel=FLOAT32)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_every_parametrisation_of_the_same_truth_means_the_same(truth, kind):
    x0, eps, x_t = truth
    out = outputs(x0, eps)[kind]
    prediction = predict(out, x_t, T_S, SCHEDULE, DiffusionConfig(prediction=kind), clamped=True)
    # rounding is divided by ᾱ^½ = 0.006 at t = 999 for x̂_0, and by (1 − ᾱ)^½ = 0.015 at t = 1 for ε
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=200 * FLOAT32)
    torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=200 * FLOAT32)
    assert prediction.v is None


def test_the_clamped_estimate_and_its_noise_still_make_the_noisy_state(truth):
    _, _, x_t = truth
    config = DiffusionConfig(prediction="x0", clamp=(0.0, 1.0))
    x0, eps, _ = predict(5 * torch.randn(SHAPE), x_t, T_S, SCHEDULE, config, clamped=True)
    assert float(x0.min()) == 0
    assert float(x0.max()) == 1
    torch.testing.assert_close(SCHEDULE.q_sample(x0, T_S, eps), x_t, rtol=0, atol=10 * FLOAT32)  # values up to five


def test_the_denoiser_speaks_float32_whatever_the_networks_precision():
    def network(x, t):
        assert t.tolist() in ([7], [7, 7, 7])
        return x[:, :2].bfloat16()

    x0, eps, v = Denoiser(network, CONDITION, SCHEDULE, DiffusionConfig())(torch.randn(SHAPE), 7)
    assert x0.dtype == eps.dtype == v.dtype == torch.float32
    assert x0.shape == eps.shape == v.shape == SHAPE


def test_a_respaced_schedule_keeps_alpha_bar():
    kept = SCHEDULE.timesteps(20)
    short = SCHEDULE.respace(kept)
    np.testing.assert_allclose(short.alpha_bar, SCHEDULE.alpha_bar[kept[::-1]], rtol=1e-12)  # float64 products


def test_respacing_to_all_timesteps_changes_nothing():
    np.testing.assert_allclose(SCHEDULE.respace(range(1000)).betas, SCHEDULE.betas, rtol=1e-10)  # 1 − β loses digits


@pytest.mark.parametrize("count", [2, 3, 20, 250, 999, 1000])
def test_timesteps_fall_from_the_last_to_zero(count):
    timesteps = SCHEDULE.timesteps(count)
    assert len(timesteps) == count
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert (timesteps[0], timesteps[-1]) == (999, 0)
    assert np.ptp(np.diff(timesteps)) <= 1  # evenly


def test_trailing_timesteps_are_of_one_length_and_leave_out_the_step_at_0():
    assert SCHEDULE.timesteps(4, spacing="trailing") == [999, 749, 500, 250]


def test_a_single_timestep_is_the_last():
    assert SCHEDULE.timesteps(1) == [999]


@pytest.mark.parametrize("count", [-1, 0, 1001])
def test_an_impossible_number_of_steps_is_refused(count):
    with pytest.raises(ValueError, match=f"between 1 and 1000, not {count}"):
        SCHEDULE.timesteps(count)


def test_the_learned_variance_runs_from_the_posteriors_to_beta():
    low, high = column(SCHEDULE.posterior_log_variance[T_S]), column(np.log(SCHEDULE.betas[T_S]))
    v = torch.ones(SHAPE)
    expected = {-1: low, 0: (low + high) / 2, 1: high}
    for value, log_variance in expected.items():
        found = SCHEDULE.log_variance(value * v, T_S)
        torch.testing.assert_close(found, log_variance.expand(SHAPE), rtol=FLOAT32, atol=0)
    assert torch.equal(SCHEDULE.log_variance(None, T_S), low.flatten())


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_a_perfect_network_has_no_loss(truth, kind):
    x0, eps, _ = truth
    perfect = torch.cat([outputs(x0, eps)[kind], -torch.ones(SHAPE)], dim=1)
    mse, vb, _ = losses(perfect, x0, eps, kind=kind)
    assert float(mse.max()) < 1e-12  # squares of float32 rounding
    assert float(vb.abs().max()) < 1e-4  # rounding of x̂_0, over the small posterior variance


def test_a_network_without_a_variance_channel_has_no_bound(truth):
    x0, eps, _ = truth
    mse, vb, _ = losses(eps + 1, x0, eps)
    torch.testing.assert_close(mse, torch.ones(3), rtol=FLOAT32, atol=0)
    assert torch.equal(vb, torch.zeros(3))


def test_the_bound_teaches_the_variance_and_leaves_the_mean_alone(truth):
    x0, eps, _ = truth
    out = torch.zeros(3, 2, 8, 8, requires_grad=True)
    _, vb, _ = losses(out, x0, eps)
    vb.sum().backward()
    assert not out.grad[:, 0].any()
    assert out.grad[:, 1].all()


def test_pixel_weights_choose_where_errors_count(truth):
    x0, eps, _ = truth
    inside = torch.zeros(SHAPE)
    inside[..., 2:6, 2:6] = 1

    def mse(out, weight):
        return losses(out, x0, eps, weight=weight).mse_N

    assert torch.equal(mse(eps + (1 - inside), inside), torch.zeros(3))  # wrong only where nothing counts
    torch.testing.assert_close(mse(eps + 1, 4 * inside), torch.ones(3), rtol=FLOAT32, atol=0)  # 16 of 64 pixels
    assert torch.equal(mse(eps * 2, torch.ones(SHAPE)), mse(eps * 2, None))


def test_the_cosine_schedule_follows_its_formula():
    schedule = Schedule.of(DiffusionConfig(steps=1000, schedule="cosine"))
    t = np.arange(1, 991)  # at the very end β is capped
    expected = np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert schedule.alpha_bar[t - 1] == pytest.approx(expected)
    assert schedule.betas.max() == 0.999
    assert (Schedule.of(DiffusionConfig()).betas == SCHEDULE.betas).all()
