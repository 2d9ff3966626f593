"""What is compared, and where: pure functions of arrays (X Y Z of 1 mm, or any list of voxels)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, stats

OUTSIDE, REGIONS = 0, ("inside", "shell", "elsewhere")
SHELL = 10.0  # mm
TISSUES = ("CSF", "grey", "white")  # classes 1, 2, 3: dark to bright in T1


def regions(mask_XYZ: np.ndarray, brain_XYZ: np.ndarray, *, spacing: float = 1.0) -> np.ndarray:
    """Return the region of every voxel, uint8.

    Args:
        mask_XYZ: the lesion, bool; all of it is ``inside``, background included.
        brain_XYZ: the brain, bool; outside mask and brain is 0.
        spacing: side of a voxel in mm.

    Returns:
        1 inside the mask, 2 in the brain at most ``SHELL`` mm from it, 3 elsewhere in the brain.
    """
    distance_XYZ = ndimage.distance_transform_edt(~mask_XYZ, sampling=spacing)
    found_XYZ = np.where(distance_XYZ <= SHELL, 2, 3) * brain_XYZ
    return np.where(mask_XYZ, 1, found_XYZ).astype(np.uint8)


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice coefficient of two boolean arrays; NaN if both are empty."""
    total = np.count_nonzero(found) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(found & truth) / total if total else float("nan")


def overlap(found: np.ndarray, truth: np.ndarray, region: np.ndarray, tissue: int) -> dict[str, float]:
    """Return the Dice coefficient of one class in every region.

    Args:
        found: classes, 0 in the background.
        truth: the true classes.
        region: as ``regions`` returns them, same shape.
        tissue: the class.
    """
    values = {name: region == code for code, name in enumerate(REGIONS, 1)}
    return {name: dice(found[where] == tissue, truth[where] == tissue) for name, where in values.items()}


def lengths(vectors: np.ndarray, region: np.ndarray) -> dict[str, float]:
    """Return mean and 95th percentile of the lengths of vectors (… × 3) in every region, or of numbers' sizes (…)."""
    size = np.linalg.norm(vectors, axis=-1) if vectors.ndim > region.ndim else np.abs(vectors)
    found = {}
    for code, name in enumerate(REGIONS, 1):
        there = size[region == code]
        found[f"{name}_mean"] = float(there.mean()) if there.size else float("nan")
        found[f"{name}_p95"] = float(np.percentile(there, 95)) if there.size else float("nan")
    return found


def area(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve: the probability that a positive scores higher than a negative."""
    count = np.count_nonzero(positive)
    others = positive.size - count
    if not count or not others:
        return float("nan")
    ranks = stats.rankdata(score)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * others))
