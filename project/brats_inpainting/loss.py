"""The training loss: hybrid diffusion loss with weighted voxels, plus structural similarity.

Shapes: N windows, C channels, V the axes of a window (H W of a patch, X Y Z of a box).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from brats_inpainting.config import TrainConfig
from brats_inpainting.data.augment import Batch
from brats_inpainting.diffusion.process import Network, Schedule, per_window, training_losses

RADIUS, SIGMA = 5, 1.5  # of the Gaussian of SSIM, in voxels
C1, C2 = 0.01**2, 0.03**2  # for intensities in [0, 1]
EPSILON = 1e-12  # avoids division by 0 for an empty region


class Terms(NamedTuple):
    """The weighted terms of the loss, one value per window."""

    mse_N: Tensor
    vb_N: Tensor
    ssim_N: Tensor

    @property
    def total_N(self) -> Tensor:
        """Their sum."""
        return self.mse_N + self.vb_N + self.ssim_N


def terms(network: Network, schedule: Schedule, config: TrainConfig, batch: Batch) -> Terms:
    """Return the loss of each window; b is the truth with the mask set to 0 (paper §3.1)."""
    low, high = config.diffusion.image_range
    losses = training_losses(
        network,
        schedule,
        config.diffusion,
        low + (high - low) * batch.truth_N1V,
        condition(config, batch),
        t_N=batch.t_N,
        noise_N1V=batch.noise_N1V,
        weight_N1V=weights(batch.mask_N1V, config),
    )
    ssim_N = torch.zeros_like(losses.mse_N)
    if config.ssim:  # computed for all windows: selecting those at T − 1 would synchronise with the GPU
        scaled_N1V = (losses.x0_N1V - low) / (high - low)
        unlike_N = 1 - similarity(scaled_N1V, batch.truth_N1V, batch.mask_N1V)
        ssim_N = config.ssim * unlike_N * (batch.t_N == len(schedule) - 1)
    return Terms(losses.mse_N, losses.vb_N, ssim_N)


def condition(config: TrainConfig, batch: Batch) -> Tensor:
    """Return b, the mask, and the positions and the previous slice if the network takes them: N × C × V."""
    low, high = config.diffusion.image_range
    b_N1V, previous_NCV = (low + (high - low) * image for image in (batch.context_N1V, batch.previous_NCV))
    positions = [batch.position_N3V] if config.unet.position else []
    return torch.cat([b_N1V, batch.mask_N1V, *positions, previous_NCV], dim=1)


def weights(mask_N1V: Tensor, config: TrainConfig) -> Tensor:
    """Return the weight of every voxel in the mean of the squared error over its window."""
    inside_N1V, outside_N1V = mask_N1V, 1 - mask_N1V
    if config.weighting == "region":
        inside_N1V, outside_N1V = (part / _mean(part).clamp_min(EPSILON) for part in (inside_N1V, outside_N1V))
    weight_N1V = inside_N1V + config.weight_outside * outside_N1V
    return weight_N1V if config.weighting == "region" else weight_N1V / _mean(weight_N1V)


def similarity(image_N1V: Tensor, truth_N1V: Tensor, mask_N1V: Tensor) -> Tensor:
    """Return the challenge's SSIM of each window: both images in [0, 1] times the mask, averaged over the mask.

    The Gaussian is 2D, over the last two axes: the sagittal slices of a box X Y Z.
    """
    a, b = image_N1V.clamp(0, 1) * mask_N1V, truth_N1V * mask_N1V
    mean_a, mean_b, aa, bb, ab = _blurred(torch.stack([a, b, a * a, b * b, a * b]))
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    structure = (2 * (ab - mean_a * mean_b) + C2) / (aa + bb - mean_a.square() - mean_b.square() + C2)
    return per_window(luminance * structure * mask_N1V) / per_window(mask_N1V).clamp_min(EPSILON)


def _blurred(images: Tensor) -> Tensor:
    """Blur along the last two axes by products with banded matrices, faster than single-channel convolutions."""
    rows, columns = (_gaussian(n, images.device) for n in images.shape[-2:])
    return rows @ images @ columns


def _gaussian(length: int, device: torch.device) -> Tensor:
    """Return the symmetric matrix that blurs ``length`` voxels with zero padding."""
    index = torch.arange(length, device=device)
    distance = (index[:, None] - index).abs()
    total = sum(math.exp(-(d**2) / (2 * SIGMA**2)) for d in range(-RADIUS, RADIUS + 1))
    return torch.exp(-distance.square() / (2 * SIGMA**2)).where(distance <= RADIUS, 0) / total


def _mean(values_N1V: Tensor) -> Tensor:
    return values_N1V.mean(dim=tuple(range(1, values_N1V.ndim)), keepdim=True)
