"""N4 bias-field correction of filled scans, compared with that of the truth."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage

from studies.downstream import regions
from studies.downstream.fills import TRUTH, VOIDED, Subject

NAMES = (VOIDED, "biharmonic", "2D fast", "3D fast", "3D realistic")


def measured(subject: Subject, fill: str) -> Iterator[dict[str, Any]]:
    """Yield a row: the difference of the field from the truth's in per cent, up to a factor of the whole brain."""
    brain_XYZ = subject.image(TRUTH) > 0
    region = regions.regions(subject.mask(), brain_XYZ) * brain_XYZ
    difference = field(subject, fill) - field(subject, TRUTH)
    percent = 100 * (difference - difference[region > 1].mean())
    yield {"case": subject.id, "fill": fill} | regions.lengths(percent, region)


@lru_cache(2)
def field(subject: Subject, fill: str) -> np.ndarray:
    """Return the logarithm of a scan's bias field, X Y Z."""
    from studies.downstream import tools

    (box,) = ndimage.find_objects((subject.mask() | (subject.image(TRUTH) > 0)).astype(np.uint8))
    return tools.bias(subject.image(fill), box)
