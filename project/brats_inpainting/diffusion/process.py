"""The diffusion process: schedule, forward noising, parametrisations, learned variance, training loss.

Shapes: N windows, C channels, V the axes of a window (H W of a patch, X Y Z of a box), T timesteps. Images have one
channel (1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from brats_inpainting.config import DiffusionConfig, Spacing

Network = Callable[[Tensor, Tensor], Tensor]
SKIP = 0.05  # noise level at which half of x̂_0 is x_t; low, so that a diffusion model is a good start


@dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels β_t of the forward process (paper eq. 1), in float64; ``len(schedule)`` is T."""

    betas: np.ndarray

    @classmethod
    def of(cls, config: DiffusionConfig) -> Schedule:
        """Return the schedule that the configuration names."""
        return {"linear": cls.linear, "cosine": cls.cosine}[config.schedule](config.steps)

    @classmethod
    def cosine(cls, steps: int = 1000) -> Schedule:
        """Return the cosine schedule, β at most 0.999 (improved DDPM eq. 17)."""
        alpha_bar = np.cos((np.linspace(0, 1, steps + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999))

    @classmethod
    def linear(cls, steps: int = 1000) -> Schedule:
        """Return the linear schedule, β from 1e-4 to 0.02 at T = 1000, rescaled for other T (Ho et al. 2020)."""
        return cls(np.linspace(0.1 / steps, 20 / steps, steps))

    def __len__(self) -> int:
        """Return the number of timesteps T."""
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """ᾱ_t, the product of all (1 − β_s) up to t (paper §2.1)."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def alpha_bar_prev(self) -> np.ndarray:
        """ᾱ_{t−1}, with ᾱ_{−1} = 1."""
        return np.append(1.0, self.alpha_bar[:-1])

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """β̃_t, the variance of q(x_{t−1} | x_t, x_0)."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance(self) -> np.ndarray:
        """Log of β̃_t, with β̃_0 = 0 replaced by β̃_1."""
        return np.log(np.append(self.posterior_variance[1:2], self.posterior_variance[1:]))

    @cached_property
    def posterior_mean_coefficients(self) -> np.ndarray:
        """The T × 2 weights of x_0 and x_t in the mean of q(x_{t−1} | x_t, x_0)."""
        x0 = self.betas * np.sqrt(self.alpha_bar_prev) / (1 - self.alpha_bar)
        x_t = (1 - self.alpha_bar_prev) * np.sqrt(1 - self.betas) / (1 - self.alpha_bar)
        return np.stack([x0, x_t], axis=1)

    def respace(self, timesteps: Sequence[int]) -> Schedule:
        """Return the schedule that visits only ``timesteps`` and has the same ᾱ there (improved DDPM §4)."""
        alpha_bar = self.alpha_bar[sorted(timesteps)]
        return Schedule(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))

    @cached_property
    def log_snr(self) -> np.ndarray:
        """Half the log of the signal-to-noise ratio, log √(ᾱ / (1 − ᾱ)): the time of DPM-Solver."""
        return 0.5 * np.log(self.alpha_bar / (1 - self.alpha_bar))

    @cached_property
    def consistency_skip(self) -> np.ndarray:
        """The share of x_t in a consistency model's x̂_0, 1 at t = 0 (c_skip of Song et al. 2023, appendix C)."""
        sigma = np.sqrt(1 / self.alpha_bar - 1)
        return SKIP**2 / ((sigma - sigma[0]) ** 2 + SKIP**2)

    def timesteps(self, count: int, *, spacing: Spacing = "even") -> list[int]:
        """Return ``count`` distinct timesteps in descending order from T − 1.

        ``even`` is improved DDPM's spacing and ends at 0; ``trailing`` has equal steps and omits 0 (Lin et al. 2024);
        ``log_snr`` is even in log-SNR and ends at 0, for ODE solvers (Lu et al. 2022).
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"steps must lie between 1 and {len(self)}, not {count}")
        if spacing == "even":
            ideal = np.linspace(len(self) - 1, 0, count)
        elif spacing == "trailing":
            ideal = np.linspace(len(self) - 1, 0, count + 1)[:-1]
        else:
            levels = np.linspace(self.log_snr[-1], self.log_snr[0], count)
            ideal = np.interp(levels, self.log_snr[::-1], np.arange(len(self))[::-1])
        left = np.arange(count)[::-1]  # remaining timesteps, for which rounding must leave room
        return [int(t) for t in np.clip(ideal.round(), left, len(self) - count + left)]

    def q_sample(self, x0_N1V: Tensor, t_N: Tensor, noise_N1V: Tensor) -> Tensor:
        """Return x_t ~ q(x_t | x_0) for the given noise (paper eq. 2)."""
        a, b = (_at(np.sqrt(part), t_N, x0_N1V) for part in (self.alpha_bar, 1 - self.alpha_bar))
        return a * x0_N1V + b * noise_N1V

    def posterior_mean(self, x0_N1V: Tensor, x_t_N1V: Tensor, t: Tensor | int) -> Tensor:
        """Return the mean of q(x_{t−1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        c0, ct = self.posterior_mean_coefficients.T
        return _at(c0, t, x0_N1V) * x0_N1V + _at(ct, t, x0_N1V) * x_t_N1V

    def log_variance(self, v_N1V: Tensor | None, t: Tensor | int) -> Tensor:
        """Return log Σ_θ: v interpolates between log β̃_t at −1 and log β_t at 1 (improved DDPM eq. 15).

        A network without a variance channel (``None``) has β̃_t, one value for each timestep.
        """
        low = _at(self.posterior_log_variance, t, v_N1V)
        if v_N1V is None:
            return low
        high, fraction = _at(np.log(self.betas), t, v_N1V), (v_N1V + 1) / 2
        return fraction * high + (1 - fraction) * low


class Prediction(NamedTuple):
    """Estimates for a noisy state: clean image, noise, variance interpolation."""

    x0: Tensor
    eps: Tensor
    v: Tensor | None


@dataclass(frozen=True)
class Denoiser:
    """A network bound to its condition, callable by samplers as ``denoise(x_t, t)``.

    ``condition_NCV`` is (b, m, positions and the previous slice if the network takes them), images in the
    configuration's range.
    """

    network: Network
    condition_NCV: Tensor
    schedule: Schedule
    config: DiffusionConfig

    def __call__(self, x_N1V: Tensor, t: int) -> Prediction:
        """Return x̂_0 (clamped), the ε that leads from it to ``x_N1V``, and v, in float32."""
        t_1 = torch.full((1,), t, device=x_N1V.device)  # one timestep for all windows: its embedding is computed once
        out_NCV = self.network(network_input(self.condition_NCV, x_N1V), t_1).float()
        return predict(out_NCV, x_N1V, t, self.schedule, self.config, clamped=True)


def network_input(condition_NCV: Tensor, x_N1V: Tensor) -> Tensor:
    """Return (b, m, x_t), followed by the rest of the condition if any: N × C × V."""
    return torch.cat([condition_NCV[:, :2], x_N1V, condition_NCV[:, 2:]], dim=1)


def predict(
    out_NCV: Tensor, x_N1V: Tensor, t: Tensor | int, schedule: Schedule, config: DiffusionConfig, *, clamped: bool
) -> Prediction:
    """Convert a network output at x_t (parametrised as ε, v or x_0) into x̂_0, ε and v."""
    first, v = out_NCV[:, :1], out_NCV[:, 1:] if out_NCV.shape[1] > 1 else None
    alpha, sigma = (_at(np.sqrt(part), t, x_N1V) for part in (schedule.alpha_bar, 1 - schedule.alpha_bar))
    if config.prediction == "x0":
        x0 = first
    elif config.prediction == "v":
        x0 = alpha * x_N1V - sigma * first
    else:
        x0 = (x_N1V - sigma * first) / alpha
    if config.consistency:
        share = _at(schedule.consistency_skip, t, x_N1V)
        x0 = share * x_N1V / alpha + (1 - share) * x0
    if clamped:
        x0 = x0.clamp(*config.clamp)
    return Prediction(x0, (x_N1V - alpha * x0) / sigma, v)


class Losses(NamedTuple):
    """The two terms of the hybrid loss per window, and the unclamped x̂_0."""

    mse_N: Tensor
    vb_N: Tensor
    x0_N1V: Tensor


def training_losses(
    network: Network,
    schedule: Schedule,
    config: DiffusionConfig,
    x0_N1V: Tensor,
    condition_NCV: Tensor,
    *,
    t_N: Tensor,
    noise_N1V: Tensor,
    weight_N1V: Tensor | None = None,
) -> Losses:
    """Return the terms of the hybrid loss (paper eq. 6; improved DDPM eq. 16, un-rescaled); the loss is their sum.

    Args:
        network: ``network(x_NCV, t_N)``, x as ``network_input`` returns it.
        schedule: the T noise levels.
        config: what the network predicts.
        x0_N1V: the truth, in the configuration's image range.
        condition_NCV: (b, m), and the positions and the previous slice if the network takes them.
        t_N: timesteps.
        noise_N1V: standard normal noise to add.
        weight_N1V: optional voxel weights of the squared error, with a mean near 1.

    Returns:
        The squared error, and the variational bound in bits per dimension with the mean detached (0 where the
        network has no variance channel); and x̂_0.
    """
    x_t = schedule.q_sample(x0_N1V, t_N, noise_N1V)
    out = network(network_input(condition_NCV, x_t), t_N).float()
    if config.prediction == "x0":
        target = x0_N1V
    elif config.prediction == "v":
        alpha, sigma = (_at(np.sqrt(part), t_N, x_t) for part in (schedule.alpha_bar, 1 - schedule.alpha_bar))
        target = alpha * noise_N1V - sigma * x0_N1V
    else:
        target = noise_N1V
    error = (target - out[:, :1]).square()
    mse = per_window(error if weight_N1V is None else weight_N1V * error)
    x0_hat = predict(out, x_t, t_N, schedule, config, clamped=False).x0
    if out.shape[1] == 1:
        return Losses(mse, torch.zeros_like(mse), x0_hat)
    frozen = torch.cat([out[:, :1].detach(), out[:, 1:]], dim=1)
    prediction = predict(frozen, x_t, t_N, schedule, config, clamped=False)
    return Losses(mse, _variational_bound(schedule, prediction, x0_N1V, x_t, t_N), x0_hat)


def _variational_bound(schedule: Schedule, prediction: Prediction, x0: Tensor, x_t: Tensor, t_N: Tensor) -> Tensor:
    """KL(q(x_{t−1} | x_t, x_0) ‖ p_θ) for t > 0, the decoder's −log p_θ(x_0 | x_1) at t = 0; bits per dimension."""
    true_mean, true_log_var = schedule.posterior_mean(x0, x_t, t_N), _at(schedule.posterior_log_variance, t_N, x0)
    mean, log_var = schedule.posterior_mean(prediction.x0, x_t, t_N), schedule.log_variance(prediction.v, t_N)
    kl = 0.5 * (
        log_var - true_log_var + (true_log_var - log_var).exp() + (true_mean - mean).square() * (-log_var).exp() - 1
    )
    nll = -_discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_var)
    return torch.where(t_N == 0, per_window(nll), per_window(kl)) / math.log(2)


def _discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of x's bin of width 2/255 in [−1, 1] (Ho et al. 2020, eq. 13; tanh approximation of the CDF)."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse_scale = (-log_scale).exp()
    upper = cdf(inverse_scale * (x - mean + 1 / 255))
    lower = cdf(inverse_scale * (x - mean - 1 / 255))
    log_upper, log_above = upper.clamp(min=1e-12).log(), (1 - lower).clamp(min=1e-12).log()
    log_bin = (upper - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, log_upper, torch.where(x > 0.999, log_above, log_bin))


def per_window(values: Tensor) -> Tensor:
    """Return the mean over all axes but the first."""
    return values.mean(dim=tuple(range(1, values.ndim)))


def _at(values_T: np.ndarray, t: Tensor | int, like: Tensor | None) -> Tensor:
    """Return the schedule's values at t, float32.

    N timesteps give N values that broadcast over the other axes of ``like``; an int gives a CPU scalar, which needs no
    GPU synchronisation.
    """
    if isinstance(t, int):
        return torch.tensor(values_T[t], dtype=torch.float32)
    picked_N = torch.as_tensor(values_T, device=t.device)[t].float()
    return picked_N if like is None else picked_N.reshape(-1, *[1] * (like.ndim - 1))
