"""Whether the standard deviation of preset ``uncertainty`` marks the voxels whose tissue class is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage

from studies.downstream import segmentation
from studies.downstream.fills import TRUTH, UNCERTAINTY, Subject
from studies.downstream.regions import area

NAMES = (UNCERTAINTY,)
TENTH = 10  # per cent of the voxels


def measured(subject: Subject, fill: str) -> Iterator[dict[str, Any]]:
    """Yield a row: area under the ROC curve of the standard deviation, and of the depth in the mask, for comparison."""
    found, truth = (segmentation.classes(subject, name, "Atropos") for name in (fill, TRUTH))
    inside_XYZ = subject.mask() & (truth > 0)
    wrong = (found != truth)[inside_XYZ]
    spread = subject.spread()[inside_XYZ]
    depth = ndimage.distance_transform_edt(subject.mask())[inside_XYZ]
    low, high = np.percentile(spread, [TENTH, 100 - TENTH])
    yield {
        "case": subject.id,
        "fill": fill,
        "voxels": wrong.size,
        "wrong": float(wrong.mean()),
        "auc": area(spread, wrong),
        "auc_depth": area(depth, wrong),
        "wrong_lowest_tenth": float(wrong[spread <= low].mean()),
        "wrong_highest_tenth": float(wrong[spread >= high].mean()),
    }
