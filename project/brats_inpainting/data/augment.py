"""Varying training windows: numbers are drawn beside the scan, tensors are changed in batches on the device.

The mask stays where it was drawn, and the brain is moved and deformed beneath it; a flip alone mirrors both. What the
network sees and what it should find are made of the same image; noise is added to what it sees alone.

Shapes: N windows, V the axes of a window (H W of a patch, X Y Z of a box), U those of the larger part of the scan
around it, D their number, K control points of a smooth field.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from brats_inpainting.config import Augmentation
from brats_inpainting.data.cache import LEVELS
from brats_inpainting.data.windows import POSITION_LIMIT

ELASTIC_POINTS, BIAS_POINTS = 6, 4  # along each axis of a window
FARTHEST = 3  # standard deviations of a displacement
SMOOTHLY = {2: "bilinear", 3: "trilinear"}


class Item(NamedTuple):
    """A training window, or a batch of them with N in front of every shape.

    Attributes:
        source_1U: the scan around the window, in [0, LEVELS].
        mask_1V: bool, what is to be filled.
        noise_1V: standard normal.
        t: the timestep.
        place_2: where it is from: the scan's number, and a slice.
        position_32: offset and slope of the coordinates X, Y and Z along the window, 0 in its middle.
        matrix_DD: from the window's coordinates to the scan's, in voxels from the middle of either.
        shift_D: where the middle of the window comes from, in voxels from the middle of the source.
        elastic_DK: smooth displacement in voxels.
        bias_1K: smooth logarithm of a factor.
        tone_2: the factor of all intensities, and the power they are raised to.
        grain_1V: noise that the network sees; one 0 where the recipe has none.
    """

    source_1U: Tensor
    mask_1V: Tensor
    noise_1V: Tensor
    t: Tensor
    place_2: Tensor
    position_32: Tensor
    matrix_DD: Tensor
    shift_D: Tensor
    elastic_DK: Tensor
    bias_1K: Tensor
    tone_2: Tensor
    grain_1V: Tensor

    def to(self, device: torch.device) -> Item:
        """Send everything to a device, from pinned memory without waiting."""
        return Item(*(tensor.to(device, non_blocking=True) for tensor in self))


class Batch(NamedTuple):
    """What a network learns from: all in [0, 1] but the noise and the timesteps, and the positions."""

    truth_N1V: Tensor
    context_N1V: Tensor
    mask_N1V: Tensor
    position_N3V: Tensor
    noise_N1V: Tensor
    t_N: Tensor


class Draw(NamedTuple):
    """How a window is varied; ``matrix_33``, ``scale_3`` and ``jitter_23`` are in the order X Y Z."""

    flip: bool
    matrix_33: np.ndarray
    scale_3: np.ndarray
    jitter_23: np.ndarray
    elastic_DK: np.ndarray
    bias_1K: np.ndarray
    tone_2: np.ndarray
    grain_1V: np.ndarray


def draw(how: Augmentation, shape_V: tuple[int, ...], rng: np.random.Generator) -> Draw:
    """Draw everything random about how a window is varied.

    Args:
        how: the recipe's limits.
        shape_V: the window's shape.
        rng: the source of all randomness.
    """
    dims = len(shape_V)
    angles, scale_3 = rng.uniform(-how.affine, how.affine, 3), 1 + rng.uniform(-how.affine, how.affine, 3) / 100
    if dims == 2:  # a slice is turned in its plane
        angles[:2], scale_3[2] = 0, 1
    points = np.clip(rng.standard_normal((dims, *[ELASTIC_POINTS] * dims)), -FARTHEST, FARTHEST)
    grain_1V = np.zeros([1] * (dims + 1), np.float32)
    if how.noise:
        grain_1V = np.float32(rng.uniform(0, how.noise)) * rng.standard_normal((1, *shape_V), np.float32)
    return Draw(
        flip=bool(how.flip and rng.random() < 0.5),
        matrix_33=Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scale_3),
        scale_3=scale_3,
        jitter_23=rng.uniform(-how.position, how.position, (2, 3)),
        elastic_DK=rng.uniform(0, how.elastic) * points,
        bias_1K=how.bias * rng.standard_normal((1, *[BIAS_POINTS] * dims)),
        tone_2=np.array([1 + rng.uniform(-how.contrast, how.contrast), np.exp(rng.uniform(-how.gamma, how.gamma))]),
        grain_1V=grain_1V,
    )


def moves(how: Augmentation) -> bool:
    """Tell whether windows are resampled at all."""
    return bool(how.affine or how.elastic)


def margin(how: Augmentation, window: int, dims: int) -> int:
    """Return how many voxels around a window of side ``window`` the changes reach at most."""
    if not moves(how):
        return 0
    turned = 1 + (dims - 1) * math.sin(math.radians(how.affine))  # bounds the sum of a row of a rotation matrix
    reach = window * turned * (1 + how.affine / 100) + 2 * FARTHEST * how.elastic
    return math.ceil((reach - window) / 2) + 1  # one voxel, since the source's middle is rounded


def augment(item: Item, how: Augmentation) -> Batch:
    """Vary a batch of windows as their drawn numbers say; nothing here is random, and nothing waits for a GPU.

    Returns:
        The truth with the background 0; the context, 0 in the mask as well; and the coordinates of every voxel.
    """
    truth_N1V = item.source_1U.float() / LEVELS
    if moves(how):
        truth_N1V = _resampled(truth_N1V, item)
    brain_N1V, mask_N1V = truth_N1V > 0, item.mask_1V.float()
    truth_N1V = _toned(truth_N1V, item).where(brain_N1V, 0).clamp(0, 1)
    seen_N1V = (truth_N1V + item.grain_1V).clamp(0, 1).where(brain_N1V, 0) if how.noise else truth_N1V
    context_N1V = seen_N1V.where(~item.mask_1V, 0)
    position_N3V = positions(item.position_32, mask_N1V.shape[2:])
    return Batch(truth_N1V, context_N1V, mask_N1V, position_N3V, item.noise_1V, item.t)


def positions(position_N32: Tensor, shape_V: tuple[int, ...]) -> Tensor:
    """Return the coordinates X, Y and Z of every voxel of windows, as ``windows.positions`` does: N × 3 × V."""
    found = []
    for axis in range(3):
        offset_N1, slope_N1 = position_N32[:, axis].reshape(-1, 2, *[1] * len(shape_V)).unbind(dim=1)
        along = _along(axis, shape_V, position_N32.device) if axis < len(shape_V) else 0
        found.append((offset_N1 + slope_N1 * along).expand(-1, *shape_V))
    return torch.stack(found, dim=1).clamp(-POSITION_LIMIT, POSITION_LIMIT)


def _along(axis: int, shape_V: tuple[int, ...], device: torch.device) -> Tensor:
    """Return voxel coordinates along an axis, 0 in the middle, in a shape that broadcasts over the window's."""
    length = shape_V[axis]
    return (torch.arange(length, device=device) - (length - 1) / 2).reshape(
        [length if i == axis else 1 for i in range(len(shape_V))]
    )


def _resampled(source_N1U: Tensor, item: Item) -> Tensor:
    """Return the windows from their sources: turned, scaled, displaced, linearly interpolated."""
    shape_V, dims = item.mask_1V.shape[2:], item.shift_D.shape[1]
    grid_VD = torch.stack([_along(axis, shape_V, source_N1U.device).expand(shape_V) for axis in range(dims)], dim=-1)
    at_NVD = torch.einsum("nij,...j->n...i", item.matrix_DD, grid_VD)
    elastic_NDV = F.interpolate(item.elastic_DK, shape_V, mode=SMOOTHLY[dims], align_corners=True)
    at_NVD = at_NVD + elastic_NDV.movedim(1, -1) + item.shift_D.reshape(-1, *[1] * dims, dims)
    pairs = zip(at_NVD.unbind(-1), source_N1U.shape[2:], strict=True)
    scaled_NVD = torch.stack([2 * at_NV / (length - 1) for at_NV, length in pairs], dim=-1)
    return F.grid_sample(source_N1U, scaled_NVD.flip(-1), align_corners=True)  # which counts axes from the last


def _toned(image_N1V: Tensor, item: Item) -> Tensor:
    """Return images with other contrast, gamma and bias field; 0 stays 0."""
    dims = item.shift_D.shape[1]
    contrast_N1, gamma_N1 = (tone.reshape(-1, *[1] * (dims + 1)) for tone in item.tone_2.unbind(dim=1))
    field_N1V = F.interpolate(item.bias_1K, image_N1V.shape[2:], mode=SMOOTHLY[dims], align_corners=True)
    return (contrast_N1 * image_N1V) ** gamma_N1 * field_N1V.exp()
