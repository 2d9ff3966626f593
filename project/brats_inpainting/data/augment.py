"""Augmentation of training windows: parameters are drawn by the loader and applied in batches on the device.

Affine and elastic transforms move the image under a fixed mask; a flip mirrors both. Context and truth come from the
same image; noise is added to the context only.

Shapes: N windows, V the axes of a window (H W of a patch, X Y Z of a box), U those of the larger region of the
scan around it, D their number, K control points of a smooth field.
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
MAX_DEVIATIONS = 3  # a displacement is clipped to this many standard deviations
INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class Item(NamedTuple):
    """A training window, or a batch of them with N in front of every shape.

    Attributes:
        source_CU: the region of the scan that the window is resampled from, in [0, LEVELS]; for networks that see it,
            followed by the same region of the previous slice, which may be the one above or below.
        mask_1V: bool, the voxels to fill.
        noise_1V: standard normal.
        t: the timestep.
        place_2: index of the scan, and of a slice in it.
        position_32: offset (at the window's centre) and slope of the coordinates X, Y and Z along the window.
        matrix_DD: maps the window's coordinates to the scan's, in voxels from their centres.
        shift_D: position of the window's centre in voxels from the source's centre.
        elastic_DK: control points of a smooth displacement in voxels.
        bias_1K: control points of the logarithm of a smooth bias field.
        tone_2: contrast (a factor) and gamma (an exponent) of the intensities.
        grain_1V: noise added to the context; a single 0 if the recipe has none.
        haze_1V: noise added to the previous slice inside the mask; likewise.
        voided: whether the previous slice is 0 inside the mask: not filled yet.
    """

    source_CU: Tensor
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
    haze_1V: Tensor
    voided: Tensor

    def to(self, device: torch.device) -> Item:
        """Copy all tensors to a device, asynchronously from pinned memory."""
        return Item(*(tensor.to(device, non_blocking=True) for tensor in self))


class Batch(NamedTuple):
    """A batch of training inputs and targets; images are in [0, 1]; ``previous_NCV`` has one channel or none."""

    truth_N1V: Tensor
    context_N1V: Tensor
    mask_N1V: Tensor
    position_N3V: Tensor
    previous_NCV: Tensor
    noise_N1V: Tensor
    t_N: Tensor


class Draw(NamedTuple):
    """Random parameters of one augmentation; ``matrix_33``, ``scale_3`` and ``jitter_23`` are in the order X Y Z."""

    flip: bool
    matrix_33: np.ndarray
    scale_3: np.ndarray
    jitter_23: np.ndarray
    elastic_DK: np.ndarray
    bias_1K: np.ndarray
    tone_2: np.ndarray
    grain_1V: np.ndarray
    haze_1V: np.ndarray


def draw(config: Augmentation, shape_V: tuple[int, ...], rng: np.random.Generator) -> Draw:
    """Draw the parameters of an augmentation within the recipe's limits, for a window of ``shape_V``."""
    dims = len(shape_V)
    angles = rng.uniform(-config.affine, config.affine, 3)
    scale_3 = 1 + rng.uniform(-config.affine, config.affine, 3) / 100
    if dims == 2:  # a slice is rotated in its plane
        angles[:2], scale_3[2] = 0, 1
    points = np.clip(rng.standard_normal((dims, *[ELASTIC_POINTS] * dims)), -MAX_DEVIATIONS, MAX_DEVIATIONS)
    grain_1V, haze_1V = (_noise(most, shape_V, rng) for most in (config.noise, config.previous))
    return Draw(
        flip=bool(config.flip and rng.random() < 0.5),
        matrix_33=Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scale_3),
        scale_3=scale_3,
        jitter_23=rng.uniform(-config.position, config.position, (2, 3)),
        elastic_DK=rng.uniform(0, config.elastic) * points,
        bias_1K=config.bias * rng.standard_normal((1, *[BIAS_POINTS] * dims)),
        tone_2=np.array(
            [1 + rng.uniform(-config.contrast, config.contrast), np.exp(rng.uniform(-config.gamma, config.gamma))]
        ),
        grain_1V=grain_1V,
        haze_1V=haze_1V,
    )


def _noise(most: float, shape_V: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw noise with a standard deviation up to ``most``: 1 × V, or a single 0 if that is 0."""
    if not most:
        return np.zeros([1] * (len(shape_V) + 1), np.float32)
    return np.float32(rng.uniform(0, most)) * rng.standard_normal((1, *shape_V), np.float32)


def resamples(config: Augmentation) -> bool:
    """Return whether the augmentation resamples windows."""
    return bool(config.affine or config.elastic)


def margin(config: Augmentation, window: int, dims: int) -> int:
    """Return the largest number of voxels that resampling reaches beyond a window of side ``window``."""
    if not resamples(config):
        return 0
    row_sum = 1 + (dims - 1) * math.sin(math.radians(config.affine))  # bound for a row of a rotation matrix
    reach = window * row_sum * (1 + config.affine / 100) + 2 * MAX_DEVIATIONS * config.elastic
    return math.ceil((reach - window) / 2) + 1  # plus one voxel: the source's centre is rounded


def augment(item: Item, config: Augmentation) -> Batch:
    """Apply the drawn augmentations to a batch; deterministic, no GPU synchronisation.

    Returns:
        The truth with background 0, the context, which is 0 in the mask too, and the other inputs.
    """
    images_NCV = item.source_CU.float() / LEVELS
    if resamples(config):
        images_NCV = _resampled(images_NCV, item)
    brain_NCV, mask_N1V = images_NCV > 0, item.mask_1V.float()
    images_NCV = _toned(images_NCV, item).where(brain_NCV, 0).clamp(0, 1)
    truth_N1V, brain_N1V, previous_NCV = images_NCV[:, :1], brain_NCV[:, :1], images_NCV[:, 1:]
    voided_N1V = item.voided.reshape(-1, *[1] * (mask_N1V.ndim - 1))
    hazy_NCV = (previous_NCV + item.haze_1V).clamp(0, 1).masked_fill(voided_N1V, 0)
    previous_NCV = hazy_NCV.where(item.mask_1V, previous_NCV)
    seen_N1V = (truth_N1V + item.grain_1V).clamp(0, 1).where(brain_N1V, 0) if config.noise else truth_N1V
    context_N1V = seen_N1V.where(~item.mask_1V, 0)
    position_N3V = positions(item.position_32, mask_N1V.shape[2:])
    return Batch(truth_N1V, context_N1V, mask_N1V, position_N3V, previous_NCV, item.noise_1V, item.t)


def positions(position_N32: Tensor, shape_V: tuple[int, ...]) -> Tensor:
    """Return the coordinates X, Y and Z of every voxel, as ``windows.positions`` does: N × 3 × V."""
    found = []
    for axis in range(3):
        offset_N1, slope_N1 = position_N32[:, axis].reshape(-1, 2, *[1] * len(shape_V)).unbind(dim=1)
        along = _along(axis, shape_V, position_N32.device) if axis < len(shape_V) else 0
        found.append((offset_N1 + slope_N1 * along).expand(-1, *shape_V))
    return torch.stack(found, dim=1).clamp(-POSITION_LIMIT, POSITION_LIMIT)


def _along(axis: int, shape_V: tuple[int, ...], device: torch.device) -> Tensor:
    """Return voxel coordinates along an axis, 0 at the centre, in a shape that broadcasts over the window's."""
    length = shape_V[axis]
    return (torch.arange(length, device=device) - (length - 1) / 2).reshape(
        [length if i == axis else 1 for i in range(len(shape_V))]
    )


def _resampled(source_NCU: Tensor, item: Item) -> Tensor:
    """Resample the windows from their sources (affine and elastic transform, linear interpolation)."""
    shape_V, dims = item.mask_1V.shape[2:], item.shift_D.shape[1]
    grid_VD = torch.stack([_along(axis, shape_V, source_NCU.device).expand(shape_V) for axis in range(dims)], dim=-1)
    at_NVD = torch.einsum("nij,...j->n...i", item.matrix_DD, grid_VD)
    elastic_NDV = F.interpolate(item.elastic_DK, shape_V, mode=INTERPOLATION[dims], align_corners=True)
    at_NVD = at_NVD + elastic_NDV.movedim(1, -1) + item.shift_D.reshape(-1, *[1] * dims, dims)
    pairs = zip(at_NVD.unbind(-1), source_NCU.shape[2:], strict=True)
    scaled_NVD = torch.stack([2 * at_NV / (length - 1) for at_NV, length in pairs], dim=-1)
    return F.grid_sample(source_NCU, scaled_NVD.flip(-1), align_corners=True)  # grid_sample expects the last axis first


def _toned(images_NCV: Tensor, item: Item) -> Tensor:
    """Apply contrast, gamma and bias field; 0 stays 0."""
    dims = item.shift_D.shape[1]
    contrast_N1, gamma_N1 = (tone.reshape(-1, *[1] * (dims + 1)) for tone in item.tone_2.unbind(dim=1))
    field_N1V = F.interpolate(item.bias_1K, images_NCV.shape[2:], mode=INTERPOLATION[dims], align_corners=True)
    return (contrast_N1 * images_NCV) ** gamma_N1 * field_N1V.exp()
