"""The challenge's metrics, the stripe index and the boundary contrast, on arrays.

Shapes: X Y Z a volume, N the voxels of a mask.
"""

from __future__ import annotations

import importlib.util
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from brats_inpainting import container
from brats_inpainting.errors import CaseError

PERCENTILES = (0.5, 99.5)
SLICES = 16  # per SSIM call, to bound memory
REACH = 5  # voxels: radius of SSIM's 11 × 11 window


class Scores(NamedTuple):
    """Scores of one prediction, on intensities in [0, 1]."""

    ssim: float
    psnr: float
    mse: float
    rmse: float
    mae: float
    msle: float
    psnr_01: float


def score(prediction_XYZ: np.ndarray, truth_XYZ: np.ndarray, voided_XYZ: np.ndarray, healthy_XYZ: np.ndarray) -> Scores:
    """Score a prediction inside the healthy mask, as the challenge of 2023 did (paper §3.3).

    Prediction and truth are set to 0 outside the mask, clipped to the 0.5 and 99.5 percentiles of the voided scan
    (over all its voxels, but at least 0) and mapped to [0, 1]. SSIM is torchmetrics', with sagittal slices as channels
    and its map averaged over the mask. PSNR clamps both to the range of the masked truth, ``psnr_01`` to [0, 1].

    Args:
        prediction_XYZ: the inpainted scan, in the truth's intensities.
        truth_XYZ: the complete scan, t1n.
        voided_XYZ: the scan given to the model, t1n-voided.
        healthy_XYZ: bool or {0, 1}, mask-healthy.

    Returns:
        The scores; a perfect prediction's PSNR is infinite, a NaN in the mask makes every score NaN.

    Raises:
        CaseError: shapes differ, the mask is empty, the voided scan's percentiles are equal, or the truth is constant
            in the mask.
        ConfigError: torchmetrics is not installed.
    """
    mask_XYZ = _checked(healthy_XYZ, prediction_XYZ, truth_XYZ, voided_XYZ)
    low, high = np.percentile(voided_XYZ, PERCENTILES).clip(min=0).tolist()
    if not high > low:
        raise CaseError(f"percentiles {PERCENTILES} of the voided scan are {low:g} and {high:g}, nothing lies between")
    box = _box(mask_XYZ, REACH)  # all that the mask's voxels and SSIM's windows around them see
    mask_XYZ = mask_XYZ[box]
    pair_XYZ = [_tensor(volume[box]).where(mask_XYZ, 0) for volume in (prediction_XYZ, truth_XYZ)]
    pair_XYZ = [(volume.clamp(low, high) - low) / (high - low) for volume in pair_XYZ]
    prediction_N, truth_N = (volume[mask_XYZ] for volume in pair_XYZ)
    if truth_N.min() == truth_N.max():
        raise CaseError("the truth is constant inside the mask, so PSNR is undefined\n  Check that the mask is right.")
    mse = (prediction_N - truth_N).square().mean()
    return Scores(
        ssim=_ssim(pair_XYZ, mask_XYZ),
        psnr=_psnr(prediction_N, truth_N, float(truth_N.min()), float(truth_N.max())),
        mse=float(mse),
        rmse=float(mse.sqrt()),
        mae=float((prediction_N - truth_N).abs().mean()),
        msle=float((prediction_N.log1p() - truth_N.log1p()).square().mean()),
        psnr_01=_psnr(prediction_N, truth_N, 0, 1),
    )


def can_score() -> bool:
    """Return whether torchmetrics is installed."""
    return importlib.util.find_spec("torchmetrics") is not None


def stripe_index(volume_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> float:
    """Measure slice-to-slice differences inside a mask relative to the tissue around it.

    It is the mean of |I(z + 1) - I(z)| over the neighbours that both lie in the mask, divided by the same mean over a
    shell: the non-zero voxels outside the mask, no farther from it than its deepest voxel is from its surface.

    Args:
        volume_XYZ: the inpainted scan, background 0.
        mask_XYZ: bool or {0, 1}, the inpainted region.

    Returns:
        The ratio, to be compared with the truth's: stripes raise it, blur lowers it. NaN if the mask or the
        shell has no two neighbours.

    Raises:
        CaseError: shapes differ, or the mask is empty.
    """
    mask = _checked(mask_XYZ, volume_XYZ)
    thickness = ndimage.distance_transform_edt(mask[_box(mask, 1)]).max()
    box = _box(mask, ceil(thickness))
    volume, mask = _tensor(volume_XYZ[box]), mask[box]
    near = torch.from_numpy(ndimage.distance_transform_edt(~mask) <= thickness)
    step = volume.diff(dim=2).abs()
    inside, around = (
        step[region[:, :, 1:] & region[:, :, :-1]].mean() for region in (mask, near & ~mask & (volume != 0))
    )
    return float(inside / around)


def boundary_contrast(filled_XYZ: np.ndarray, truth_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> float:
    """Measure the contrast across the boundary of an inpainted region.

    It is the mean of |I(p) - I(q)| over all voxels p in the mask and their neighbours q in the tissue outside, divided
    by the same mean in the truth.

    Args:
        filled_XYZ: the inpainted scan.
        truth_XYZ: the complete scan, background 0.
        mask_XYZ: bool or {0, 1}, the inpainted region.

    Returns:
        The ratio: 1 as in the truth, more for a visible seam. NaN if no tissue touches the mask.

    Raises:
        CaseError: shapes differ, or the mask is empty.
    """
    mask = _checked(mask_XYZ, filled_XYZ, truth_XYZ)
    box = _box(mask, 1)
    inside, tissue = mask[box], torch.tensor(truth_XYZ[box] != 0) & ~mask[box]
    filled, truth = (_jumps(_tensor(volume[box]), inside, tissue) for volume in (filled_XYZ, truth_XYZ))
    return float(filled.mean() / truth.mean())


def _jumps(volume_XYZ: Tensor, inside_XYZ: Tensor, outside_XYZ: Tensor) -> Tensor:
    """Return |I(p) - I(q)| of all neighbours p inside, q outside."""
    found = []
    for axis in range(3):
        pairs = volume_XYZ.shape[axis] - 1
        p_in, p_out, q_in, q_out = (
            region.narrow(axis, start, pairs) for start in (0, 1) for region in (inside_XYZ, outside_XYZ)
        )
        edge = (p_in & q_out) | (q_in & p_out)
        found.append(volume_XYZ.diff(dim=axis).abs()[edge])
    return torch.cat(found)


def _ssim(pair_XYZ: list[Tensor], mask_XYZ: Tensor) -> float:
    """Return the mean SSIM over the mask; sagittal slices are channels and are processed in chunks."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise container.missing("SSIM needs torchmetrics", "eval") from error
    span = max(float(volume.max() - volume.min()) for volume in pair_XYZ)
    total = 0.0
    for prediction_cYZ, truth_cYZ, mask_cYZ in zip(*(v.split(SLICES) for v in (*pair_XYZ, mask_XYZ)), strict=True):
        _, ssim_1cYZ = structural_similarity_index_measure(
            prediction_cYZ[None], truth_cYZ[None], data_range=span, return_full_image=True
        )
        total += float(ssim_1cYZ[0][mask_cYZ].sum())
    return total / int(mask_XYZ.sum())


def _psnr(prediction_N: Tensor, truth_N: Tensor, low: float, high: float) -> float:
    """Return the peak signal-to-noise ratio in dB, both clamped to [low, high]."""
    mse = (prediction_N.clamp(low, high) - truth_N.clamp(low, high)).square().mean()
    return float(10 * ((high - low) ** 2 / mse).log10())


def _checked(mask_XYZ: np.ndarray, *volumes_XYZ: np.ndarray) -> Tensor:
    """Return the mask as a bool tensor; raise CaseError if it is empty or the shapes differ."""
    for volume_XYZ in volumes_XYZ:
        if volume_XYZ.shape != mask_XYZ.shape:
            raise CaseError(f"a volume of {volume_XYZ.shape} voxels does not match the mask of {mask_XYZ.shape}")
    if not mask_XYZ.any():
        raise CaseError("the mask is empty, there is nothing to score")
    return torch.tensor(np.ascontiguousarray(mask_XYZ, bool))


def _box(mask_XYZ: Tensor, margin: int) -> tuple[slice, ...]:
    """Return the mask's bounding box, extended by a margin in voxels within the volume."""
    box = ndimage.find_objects(mask_XYZ.to(torch.uint8).numpy())[0]
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)


def _tensor(volume_XYZ: np.ndarray) -> Tensor:
    """Copy a volume into a float64 tensor: in float32 the SSIM of smooth tissue is off by 1e-5."""
    return torch.tensor(np.ascontiguousarray(volume_XYZ, np.float64))
