"""The samplers on data whose denoiser and probability flow are known exactly, and against diffusers' schedulers.

Every pixel is drawn from N(MEAN, SD²). Then x_t ~ N(√ᾱ MEAN, ᾱ SD² + 1 − ᾱ), and the flow keeps each pixel's
standard score: (x_t − √ᾱ MEAN) / std(x_t) is the same at all t.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from brats_inpainting import config
from brats_inpainting.diffusion.process import Prediction, Schedule
from brats_inpainting.diffusion.samplers import SAMPLERS, consistency, ddim, ddpm, dpmpp_2m, heun

MEAN, SD = 0.4, 0.25
SCHEDULE = Schedule.linear(1000)
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
ALPHA, SIGMA = np.sqrt(SCHEDULE.alpha_bar), np.sqrt(1 - SCHEDULE.alpha_bar)
STD = np.sqrt((ALPHA * SD) ** 2 + SIGMA**2)


def gaussian(x, t):
    """The exact denoiser, E[x_0 | x_t] for pixels from N(MEAN, SD²)."""
    x0 = MEAN + ALPHA[t] * (SD / STD[t]) ** 2 * (x - ALPHA[t] * MEAN)
    return Prediction(x0, (x - ALPHA[t] * x0) / SIGMA[t], None)


def exact(x):
    """Where the probability flow carries x at t = T − 1."""
    return MEAN + SD * (x - ALPHA[-1] * MEAN) / STD[-1]


def draw(seed, size=64):
    return torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(seed))


def noise(k):
    return draw(seed=k + 1)


def distance(a, b):
    return float((a - b).norm() / b.norm())


def diffusers_sample(scheduler, x):
    for t in scheduler.timesteps:
        eps = gaussian(scheduler.scale_model_input(x, t), int(t)).eps
        x = scheduler.step(eps, t, x).prev_sample
    return x


@pytest.mark.parametrize("count", [5, 20, 50])
@pytest.mark.parametrize(
    ("sampler", "scheduler", "scale"),
    [
        (dpmpp_2m, DPMSolverMultistepScheduler(**LINEAR, final_sigmas_type="zero"), 1),
        (heun, HeunDiscreteScheduler(**LINEAR), 1 / ALPHA[-1]),  # diffusers' Heun works on x/α
    ],
    ids=["dpmpp_2m", "heun"],
)
def test_second_order_samplers_end_where_diffusers_do(sampler, scheduler, scale, count):
    timesteps = SCHEDULE.timesteps(count)
    scheduler.set_timesteps(timesteps=timesteps)
    theirs = diffusers_sample(scheduler, draw(0) * scale)
    # diffusers accumulates alpha_bar and its logarithms over 1000 steps in float32; measured: below 7e-6
    assert distance(sampler(gaussian, draw(0), timesteps, SCHEDULE), theirs) < 3e-5


@pytest.mark.parametrize("count", [5, 20, 50])
def test_ddim_ends_where_diffusers_does(count):
    scheduler = DDIMScheduler(**LINEAR, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(count)  # diffusers' DDIM knows no timesteps but its own, whose distances are all 1000/count
    ours = ddim(gaussian, draw(0), scheduler.timesteps.tolist(), SCHEDULE)
    assert distance(ours, diffusers_sample(scheduler, draw(0))) < 3e-5  # as above; measured: below 1e-6


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m, heun])
def test_more_steps_come_closer_to_the_exact_flow(sampler):
    errors = [
        distance(sampler(gaussian, draw(0), SCHEDULE.timesteps(count, spacing="log_snr"), SCHEDULE), exact(draw(0)))
        for count in (5, 10, 20, 50)
    ]
    assert errors == sorted(errors, reverse=True)


def test_twenty_steps_of_dpmpp_2m_come_within_one_percent_of_the_exact_flow():
    even, log_snr = (
        distance(dpmpp_2m(gaussian, draw(0), SCHEDULE.timesteps(20, spacing=spacing), SCHEDULE), exact(draw(0)))
        for spacing in ("even", "log_snr")
    )
    # one percent of the image is what a reader does not see; measured: 0.76 %, and 15.3 % with even spacing
    assert log_snr < 0.01
    assert even > 0.1


def test_ancestral_sampling_with_the_exact_variance_returns_the_distribution_of_the_data():
    timesteps, size = SCHEDULE.timesteps(20), 256
    chain = SCHEDULE.respace(timesteps)

    def gaussian_with_v(x, t):
        k = timesteps[::-1].index(t)
        spread_of_x0 = SD * SIGMA[t] / STD[t]  # the standard deviation of x_0 given x_t
        variance = chain.posterior_variance[k] + (chain.posterior_mean_coefficients[k, 0] * spread_of_x0) ** 2
        low, high = chain.posterior_log_variance[k], np.log(chain.betas[k])
        return gaussian(x, t)._replace(v=torch.full_like(x, 2 * (np.log(variance) - low) / (high - low) - 1))

    x = ddpm(gaussian_with_v, draw(0, size), timesteps, SCHEDULE, noise=lambda k: draw(k + 1, size))
    # four standard errors of the mean and of the standard deviation of 256² pixels
    assert float(x.mean()) == pytest.approx(MEAN, abs=4 * SD / size)
    assert float(x.std()) == pytest.approx(SD, rel=4 / size / np.sqrt(2))


def test_ddim_with_eta_1_is_ancestral_sampling_with_the_posterior_variance():
    timesteps = SCHEDULE.timesteps(20)
    ancestral = ddpm(gaussian, draw(0), timesteps, SCHEDULE, noise=noise)
    # two ways to write the same step; float32 rounding
    assert distance(ddim(gaussian, draw(0), timesteps, SCHEDULE, noise=noise, eta=1), ancestral) < 1e-5


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m, heun])
def test_deterministic_samplers_leave_the_noise_alone(sampler):
    drawn = []
    sampler(gaussian, draw(0), SCHEDULE.timesteps(5), SCHEDULE, noise=drawn.append)
    assert not drawn


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_last_state_is_the_estimate_itself_free_of_noise(sampler, count):
    truth = draw(99)

    def knowing(x, t):
        return Prediction(truth, (x - ALPHA[t] * truth) / SIGMA[t], torch.ones_like(x))

    x = sampler(knowing, draw(0), SCHEDULE.timesteps(count), SCHEDULE, noise=noise)
    assert torch.equal(x, truth)


def test_consistency_sampling_with_the_exact_function_returns_the_distribution_of_the_data():
    def carried(x, t):
        """Where the probability flow carries x_t: the consistency function of the Gaussian."""
        x0 = MEAN + SD * (x - ALPHA[t] * MEAN) / STD[t]
        return Prediction(x0, (x - ALPHA[t] * x0) / SIGMA[t], None)

    assert distance(consistency(carried, draw(0), [999], SCHEDULE), exact(draw(0))) < 1e-6
    for steps in (2, 5):
        timesteps = SCHEDULE.timesteps(steps, spacing=config.SAMPLERS["consistency"].spacing)
        x = consistency(carried, draw(0, 512), timesteps, SCHEDULE, noise=lambda k: draw(k + 1, 512))
        assert abs(float(x.mean()) - MEAN) < 0.002  # four standard errors of 512² pixels
        assert abs(float(x.std()) - SD) < 0.0015


def recorded_chain(timesteps):
    """The states that ancestral sampling hands to the denoiser, and its answers, by timestep."""
    states, answers = {}, {}

    def halve(x, t):
        states[t], answers[t] = x, x / 2
        return Prediction(x / 2, x, None)

    ddpm(halve, torch.ones(1, 1, 2, 2), timesteps, SCHEDULE, noise=lambda _: torch.ones(1, 1, 2, 2))
    assert list(states) == timesteps
    return states, answers


def test_the_complete_chain_hands_on_the_estimate_itself_from_timestep_2():
    states, answers = recorded_chain(SCHEDULE.timesteps(1000))
    assert torch.equal(states[1], answers[2])
    assert torch.equal(states[0], answers[1])
    assert not torch.equal(states[2], answers[3])


def test_a_respaced_chain_adds_noise_down_to_its_last_step():
    states, answers = recorded_chain([999, 500, 2, 1, 0])
    assert not torch.equal(states[1], answers[2])
    assert not torch.equal(states[0], answers[1])


def test_samplers_that_draw_noise_insist_on_it():
    with pytest.raises(AssertionError, match="draws noise"):
        ddpm(gaussian, draw(0), SCHEDULE.timesteps(5), SCHEDULE)
    with pytest.raises(AssertionError, match="draws noise"):
        ddim(gaussian, draw(0), SCHEDULE.timesteps(5), SCHEDULE, eta=0.5)
    with pytest.raises(AssertionError, match="draws noise"):
        consistency(gaussian, draw(0), SCHEDULE.timesteps(2), SCHEDULE)
