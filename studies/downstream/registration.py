"""Registration of filled scans to a template, compared with that of the truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from studies.downstream import fills, regions
from studies.downstream.fills import TRUTH, VOIDED, Subject

AGAIN, MASKED = "truth again", "cost-function masking"
NAMES = (AGAIN, VOIDED, MASKED, *fills.FILLS)
STAGES = ("affine", "SyN")
ITERATIONS = (40, 20, 0)  # of SyN at 8, 4 and 2 mm: the default of antspyx


def measured(subject: Subject, fill: str, *, iterations: tuple[int, ...] = ITERATIONS) -> Iterator[dict[str, Any]]:
    """Yield a row for each stage: how far the template's voxels land from where the truth's registration puts them."""
    from studies.downstream.tools import brain

    truth, found = (registered(subject, name, iterations) for name in (TRUTH, fill))
    true_brain = brain(subject.image(TRUTH))
    labels = regions.regions(subject.mask(), true_brain) * true_brain
    region = truth.carry(labels)
    differences = (found.affine_XYZ3 - truth.affine_XYZ3, found.displacement_XYZ3 - truth.displacement_XYZ3)
    for stage, difference in zip(STAGES, differences, strict=True):
        yield {"case": subject.id, "fill": fill, "stage": stage} | regions.lengths(difference, region)


def registered(subject: Subject, fill: str, iterations: tuple[int, ...] = ITERATIONS) -> Any:
    """Register a scan, once; then read it from the work folder. ``truth again`` has another seed."""
    from studies.downstream.tools import Registration, register

    folder = subject.work / f"SyN-{'-'.join(map(str, iterations))}" / fill.replace(" ", "-")
    path = folder / f"{subject.id}.npz"
    if path.exists():
        with np.load(path) as file:
            return Registration(file["displacement"], file["affine"])
    image = subject.image({AGAIN: TRUTH, MASKED: VOIDED}.get(fill, fill))
    left_out = subject.mask() if fill == MASKED else None
    found = register(image, seed=1 + (fill == AGAIN), left_out_XYZ=left_out, iterations=iterations)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, displacement=found.displacement_XYZ3, affine=found.affine)
    return found
