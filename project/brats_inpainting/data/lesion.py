"""Lesion masks: which voxels of a mask file are to be filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MaskReading:
    """How the values of a mask file are interpreted; by default they must be unambiguous.

    Attributes:
        labels: values that mark the lesion, for a segmentation; any other value is not lesion.
        threshold: larger values are lesion, for a probability map.
        invert: the lesion is where the mask is 0.
    """

    labels: tuple[int, ...] = ()
    threshold: float | None = None
    invert: bool = False


UNAMBIGUOUS = MaskReading()


def lesion_of(values_XYZ: np.ndarray, reading: MaskReading) -> np.ndarray:
    """Return which voxels are to be filled, bool."""
    if reading.labels:
        mask_XYZ = np.isin(np.rint(values_XYZ), reading.labels)
    else:
        mask_XYZ = values_XYZ > (0.5 if reading.threshold is None else reading.threshold)
    return ~mask_XYZ if reading.invert else mask_XYZ
