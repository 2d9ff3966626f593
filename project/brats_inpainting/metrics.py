"""The challenge's scores and ours, on arrays.

Shapes: X Y Z a volume, N the voxels of a mask.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from brats_inpainting.errors import CaseError, ConfigError

PERCENTILES = (0.5, 99.5)
REACH = 5  # voxels that SSIM's 11 × 11 window sees to each side


class Scores(NamedTuple):
    """The scores of one prediction, on intensities in [0, 1]."""

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
        The scores; a perfect prediction's PSNR is infinite, a NaN in the mask makes every score NaN, a truth that is
        constant in the mask the PSNR.

    Raises:
        CaseError: shapes differ, the mask is empty, or the voided scan's percentiles are equal.
        ConfigError: torchmetrics is not installed.
    """
    mask_XYZ = _checked(healthy_XYZ, prediction_XYZ, truth_XYZ, voided_XYZ)
    low, high = np.percentile(voided_XYZ, PERCENTILES).clip(min=0).tolist()
    if not high > low:
        raise CaseError(f"percentiles {PERCENTILES} of the voided scan are {low:g} and {high:g}, nothing lies between")
    pair_XYZ = [_tensor(volume) * mask_XYZ for volume in (prediction_XYZ, truth_XYZ)]
    pair_XYZ = [(volume.clamp(low, high) - low) / (high - low) for volume in pair_XYZ]
    prediction_N, truth_N = (volume[mask_XYZ] for volume in pair_XYZ)
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


def stripe_index(volume_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> float:
    """Measure how much a volume flickers from slice to slice inside a mask, relative to the tissue around it.

    It is the mean of |I(z + 1) - I(z)| over the neighbours that both lie in the mask, divided by the same mean over a
    shell: the non-zero voxels outside the mask, no farther from it than its deepest voxel is from its surface.

    Args:
        volume_XYZ: the inpainted scan, background 0.
        mask_XYZ: bool or {0, 1}, what was inpainted.

    Returns:
        The ratio, to be read beside the truth's own: stripes raise it, blur lowers it. NaN if the mask or the shell
        holds no two neighbours.

    Raises:
        CaseError: shapes differ, or the mask is empty.
    """
    mask = _checked(mask_XYZ, volume_XYZ)
    thickness = ndimage.distance_transform_edt(mask[_box(mask, 1)]).max()
    box = _box(mask, ceil(thickness))
    volume, mask = _tensor(volume_XYZ)[box], mask[box]
    near = torch.from_numpy(ndimage.distance_transform_edt(~mask) <= thickness)
    step = volume.diff(dim=2).abs()
    inside, around = (
        step[region[:, :, 1:] & region[:, :, :-1]].mean() for region in (mask, near & ~mask & (volume != 0))
    )
    return float(inside / around)


def _ssim(pair_XYZ: list[Tensor], mask_XYZ: Tensor) -> float:
    """Average the structural similarity over the mask; it is computed only in the box that the mask's windows see."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ConfigError("torchmetrics is missing\n  Run pip install 'brats-inpainting[eval]'.") from error
    span = max(float(volume.max() - volume.min()) for volume in pair_XYZ)
    box = _box(mask_XYZ, REACH)
    prediction_1XYZ, truth_1XYZ = (volume[box].unsqueeze(0) for volume in pair_XYZ)
    _, ssim_1XYZ = structural_similarity_index_measure(
        prediction_1XYZ, truth_1XYZ, data_range=span, return_full_image=True
    )
    return float(ssim_1XYZ[0][mask_XYZ[box]].mean())


def _psnr(prediction_N: Tensor, truth_N: Tensor, low: float, high: float) -> float:
    """Return the peak signal-to-noise ratio in dB, both clamped to [low, high]."""
    mse = (prediction_N.clamp(low, high) - truth_N.clamp(low, high)).square().mean()
    return float(10 * ((high - low) ** 2 / mse).log10())


def _checked(mask_XYZ: np.ndarray, *volumes_XYZ: np.ndarray) -> Tensor:
    """Return the mask as a bool tensor, if it is not empty and all lie on its grid."""
    for volume_XYZ in volumes_XYZ:
        if volume_XYZ.shape != mask_XYZ.shape:
            raise CaseError(f"a volume of {volume_XYZ.shape} voxels cannot be scored in a mask of {mask_XYZ.shape}")
    if not mask_XYZ.any():
        raise CaseError("the mask is empty, there is nothing to score")
    return torch.tensor(np.asarray(mask_XYZ, bool))


def _box(mask_XYZ: Tensor, margin: int) -> tuple[slice, ...]:
    """Return the mask's bounding box, wider by a margin in voxels where the volume allows it."""
    box = ndimage.find_objects(mask_XYZ.to(torch.uint8).numpy())[0]
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)


def _tensor(volume_XYZ: np.ndarray) -> Tensor:
    """Copy a volume of any type into a float64 tensor: in float32, the SSIM of smooth tissue is off by 1e-5."""
    return torch.tensor(np.asarray(volume_XYZ, np.float64))
