"""Consistency distillation (paper §5, reference 21): a network that samples in one or two passes.

Song et al. 2023, "Consistency models", algorithm 2: the student learns to give the same x̂_0 at two adjacent noise
levels of one trajectory. The teacher, a diffusion model, computes the trajectory; at the lower level x̂_0 is the
target's, a moving average of the student.

Shapes: N windows, C channels, V the axes of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from brats_inpainting.config import TrainConfig
from brats_inpainting.data.augment import Batch
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from brats_inpainting.diffusion.process import Network, Schedule, network_input, per_window, predict
from brats_inpainting.errors import ConfigError
from brats_inpainting.loss import Terms, condition, terms, weights
from brats_inpainting.state import State

Objective = Callable[[Network, Batch], Terms]


def objective(state: State, teacher: Path | None, device: torch.device) -> Objective:
    """Return the loss of a recipe: distillation for a consistency model, else the diffusion loss.

    Args:
        state: of the run, opened but not resumed yet; its last moving average is the target.
        teacher: weights of a diffusion model; the run's initial weights, also when it is resumed.
        device: of the networks.

    Raises:
        ConfigError: when a consistency model has no teacher, or not the one with which the run began.
    """
    config = state.config
    schedule = Schedule.of(config.diffusion)
    if not config.diffusion.consistency:
        return lambda network, batch: terms(network, schedule, config, batch)
    if not teacher:
        raise ConfigError("a consistency model is distilled from a diffusion model\n  Give it with --initial-weights.")
    loaded = checkpoint.load(teacher)
    if loaded.sha256 != (first := state.stored.get("origin", state.origin)):
        raise ConfigError(f"{teacher}: the run was started from SHA-256 {first}\n  Resume with that file.")
    network = loaded.network.to(device, memory_format=MEMORY_FORMAT[config.unet.dims])  # type: ignore[call-overload]
    network.requires_grad_(requires_grad=False)
    return Distillation(network, state.averages[-1], schedule, config)


@dataclass(frozen=True)
class Distillation:
    """The loss of consistency distillation, with squared errors and Heun's method as the solver."""

    teacher: Network
    target: Network
    schedule: Schedule
    config: TrainConfig

    @cached_property
    def levels(self) -> Tensor:
        """The timesteps of the noise levels, descending."""
        return torch.tensor(self.schedule.timesteps(self.config.levels, spacing="log_snr"))

    def __call__(self, network: Network, batch: Batch) -> Terms:
        """Return the loss of each window; the batch's timesteps choose among the levels."""
        low, high = self.config.diffusion.image_range
        condition_NCV = condition(self.config, batch)
        levels = self.levels.to(batch.t_N.device)
        n_N = batch.t_N * (len(levels) - 1) // len(self.schedule)
        t_N, lower_N = levels[n_N], levels[n_N + 1]
        x_N1V = self.schedule.q_sample(low + (high - low) * batch.truth_N1V, t_N, batch.noise_N1V)
        with torch.no_grad():
            x_lower_N1V = self._solve(x_N1V, t_N, lower_N, condition_NCV)
            target_N1V = self._x0(self.target, x_lower_N1V, lower_N, condition_NCV, consistent=True)
        x0_N1V = self._x0(network, x_N1V, t_N, condition_NCV, consistent=True)
        mse_N = per_window(weights(batch.mask_N1V, self.config) * (x0_N1V - target_N1V).square())
        zeros_N = torch.zeros_like(mse_N)
        return Terms(mse_N, zeros_N, zeros_N)

    def _solve(self, x_N1V: Tensor, t_N: Tensor, lower_N: Tensor, condition_NCV: Tensor) -> Tensor:
        """Return x at the lower level: a step of Heun's method, as in ``samplers.heun``."""
        (scale, sigma), (scale_lower, sigma_lower) = (self._level(t, x_N1V) for t in (t_N, lower_N))
        z_N1V = x_N1V / scale
        slope_N1V = (z_N1V - self._x0(self.teacher, x_N1V, t_N, condition_NCV)) / sigma
        euler_N1V = z_N1V + (sigma_lower - sigma) * slope_N1V
        x0_N1V = self._x0(self.teacher, euler_N1V * scale_lower, lower_N, condition_NCV)
        slope_lower_N1V = (euler_N1V - x0_N1V) / sigma_lower
        return scale_lower * (z_N1V + (sigma_lower - sigma) * (slope_N1V + slope_lower_N1V) / 2)

    def _level(self, t_N: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ and the noise level √(1/ᾱ − 1) of each window."""
        alpha_bar_T = torch.as_tensor(self.schedule.alpha_bar, dtype=torch.float32, device=t_N.device)
        alpha_bar_N = alpha_bar_T[t_N].reshape(-1, *[1] * (like.ndim - 1))
        return alpha_bar_N.sqrt(), (1 / alpha_bar_N - 1).sqrt()

    def _x0(
        self, network: Network, x_N1V: Tensor, t_N: Tensor, condition_NCV: Tensor, *, consistent: bool = False
    ) -> Tensor:
        """Return x̂_0 of a network; the teacher's is clamped, as in sampling."""
        diffusion = self.config.diffusion.model_copy(update={"consistency": consistent})
        out_NCV = network(network_input(condition_NCV, x_N1V), t_N).float()
        return predict(out_NCV, x_N1V, t_N, self.schedule, diffusion, clamped=not consistent).x0
