"""Tissue segmentation of filled scans, compared with that of the truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from studies.downstream import fills, regions
from studies.downstream.fills import TRUTH, Subject

AGAIN = "truth again"
NAMES = (AGAIN, fills.VOIDED, *fills.FILLS)
ML = 1e-3  # of a voxel of 1 mm
MM = 1.5  # voxel size at which the tools work
TOOLS = ("Atropos", "HMRF")


def measured(subject: Subject, fill: str, *, mm: float = MM) -> Iterator[dict[str, Any]]:
    """Yield a row for each tool and tissue: Dice by region, and the error of the whole volume in ml."""
    region = regions.regions(subject.mask(), subject.image(TRUTH) > 0)
    for tool in TOOLS:
        if fill == AGAIN and tool == "HMRF":  # nothing in it is random
            continue
        found, truth = (classes(subject, name, tool, mm) for name in (fill, TRUTH))
        for tissue, name in enumerate(regions.TISSUES, 1):
            error = (np.count_nonzero(found == tissue) - np.count_nonzero(truth == tissue)) * ML
            row = {"case": subject.id, "fill": fill, "tool": tool, "tissue": name}
            yield row | regions.overlap(found, truth, region, tissue) | {"ml": error}


def classes(subject: Subject, fill: str, tool: str, mm: float = MM) -> np.ndarray:
    """Return the classes of a scan, uint8, X Y Z; computed once, then read from the work folder."""
    path = subject.work / f"{tool}-{mm}" / fill.replace(" ", "-") / f"{subject.id}.npz"
    if not path.exists():
        from studies.downstream.tools import segment

        path.parent.mkdir(parents=True, exist_ok=True)
        image_XYZ = subject.image(TRUTH if fill == AGAIN else fill)
        np.savez_compressed(path, segment(tool, image_XYZ, mm=mm, seed=int(fill == AGAIN)))
    with np.load(path) as file:
        return file["arr_0"]
