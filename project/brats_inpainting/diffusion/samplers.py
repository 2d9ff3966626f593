"""Samplers as pure functions: denoise × noise × timesteps → x̂_0, independent of files, devices and configuration.

``denoise(x, t)`` returns a ``Prediction``; ``timesteps`` fall from T − 1; ``noise(k)`` is the standard normal draw of
step k. Wrap ``denoise`` to observe or stop sampling.

Shapes: N windows, one channel, V the axes of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from torch import Tensor

from brats_inpainting import config
from brats_inpainting.diffusion.process import Prediction, Schedule

Denoise = Callable[[Tensor, int], Prediction]
Noise = Callable[[int], Tensor]


class Sampler(Protocol):
    """The signature of all samplers."""

    def __call__(
        self,
        denoise: Denoise,
        x_N1V: Tensor,
        timesteps: Sequence[int],
        schedule: Schedule,
        *,
        noise: Noise | None = None,
    ) -> Tensor:
        """Return x̂_0 for ``x_N1V`` at ``timesteps[0]``."""


def ddpm(
    denoise: Denoise,
    x_N1V: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    noise: Noise | None = None,
) -> Tensor:
    """Ancestral sampling with learned variance (paper eq. 5), respaced as in improved DDPM for fewer timesteps.

    The complete chain returns x̂_0 at t ≤ 2, as the authors' code does; ``noise`` is required.
    """
    assert noise is not None, "ancestral sampling draws noise at every step"
    chain = schedule.respace(timesteps)
    complete = len(timesteps) == len(schedule)
    for k, t in enumerate(timesteps):
        x0, _, v = denoise(x_N1V, t)
        place = len(chain) - 1 - k
        if k == len(timesteps) - 1 or (complete and t <= 2):
            x_N1V = x0
        else:
            sigma = (0.5 * chain.log_variance(v, place)).exp()
            x_N1V = chain.posterior_mean(x0, x_N1V, place) + sigma * noise(k)
    return x_N1V


def ddim(
    denoise: Denoise,
    x_N1V: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12): deterministic for ``eta`` = 0, as noisy as the ancestral chain for 1."""
    assert eta == 0 or noise is not None, "eta > 0 draws noise at every step"
    x0 = x_N1V
    for k, (t, t_next) in enumerate(pairwise([*timesteps, None])):
        assert t is not None
        x0, eps, _ = denoise(x_N1V, t)
        if t_next is None:
            break  # the last state is x̂_0, without noise
        a, a_next = schedule.alpha_bar[t], schedule.alpha_bar[t_next]
        sigma = eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        x_N1V = float(np.sqrt(a_next)) * x0 + float(np.sqrt(1 - a_next - sigma**2)) * eps
        if noise is not None and eta > 0:
            x_N1V = x_N1V + float(sigma) * noise(k)
    return x0


def dpmpp_2m(
    denoise: Denoise,
    x_N1V: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    noise: Noise | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order from the last two estimates, deterministic."""
    alpha, sigma = np.sqrt(schedule.alpha_bar), np.sqrt(1 - schedule.alpha_bar)
    log_snr = schedule.log_snr
    x0, previous, h_previous = x_N1V, None, 0.0
    for t, t_next in pairwise([*timesteps, None]):
        assert t is not None
        x0 = denoise(x_N1V, t).x0
        if t_next is None:
            break
        h = log_snr[t_next] - log_snr[t]
        estimate = x0 if previous is None else x0 + float(h / h_previous / 2) * (x0 - previous)
        x_N1V = float(sigma[t_next] / sigma[t]) * x_N1V - float(alpha[t_next] * np.expm1(-h)) * estimate
        previous, h_previous = x0, h
    return x0


def heun(
    denoise: Denoise,
    x_N1V: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    noise: Noise | None = None,
) -> Tensor:
    """Heun's method on the probability-flow ODE in x/√ᾱ (EDM, Karras et al. 2022, algorithm 1), deterministic.

    Two network passes per step, one in the last.
    """
    scale, sigma = np.sqrt(schedule.alpha_bar), np.sqrt(1 / schedule.alpha_bar - 1)
    x0 = x_N1V
    for t, t_next in pairwise([*timesteps, None]):
        assert t is not None
        x0 = denoise(x_N1V, t).x0
        if t_next is not None:
            z, dt = x_N1V / float(scale[t]), float(sigma[t_next] - sigma[t])
            slope = (z - x0) / float(sigma[t])
            euler = z + dt * slope
            slope_next = (euler - denoise(euler * float(scale[t_next]), t_next).x0) / float(sigma[t_next])
            x_N1V = (z + dt * (slope + slope_next) / 2) * float(scale[t_next])
    return x0


def consistency(
    denoise: Denoise,
    x_N1V: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    noise: Noise | None = None,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): x̂_0, to which noise is added for the next step.

    ``noise`` is required for more than one step.
    """
    x0 = denoise(x_N1V, timesteps[0]).x0
    for k, t in enumerate(timesteps[1:]):
        assert noise is not None, "every step but the first draws noise"
        a = schedule.alpha_bar[t]
        x0 = denoise(float(np.sqrt(a)) * x0 + float(np.sqrt(1 - a)) * noise(k), t).x0
    return x0


SAMPLERS: dict[str, Sampler] = {name: globals()[name] for name in config.SAMPLERS}
