"""docs/evidence.png: one case, its tissue classes, and how far registration strays, by fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brats_inpainting.pictures import Plane, figure, white
from studies.downstream import registration, segmentation
from studies.downstream.fills import TRUTH, VOIDED, Subject

CASE = "90065-000"
COLUMNS = (VOIDED, "biharmonic", "2D fast", "3D fast", "3D realistic", TRUTH)
REGISTERED = (VOIDED, registration.MASKED, "biharmonic", "2D fast", "3D fast", registration.AGAIN)
FARTHEST = 5.0  # mm, brightest
GREYS = {"cmap": "gray", "vmin": 0}


def draw(subjects: Sequence[Subject], path: Path) -> None:
    """Draw the picture of ``CASE``."""
    (subject,) = (subject for subject in subjects if subject.id == CASE)
    mask_XYZ, truth_XYZ = subject.mask(), subject.image(TRUTH)
    drawing = figure((15, 9.2), facecolor="black", layout="constrained")
    grid = drawing.subplots(3, len(COLUMNS))
    for ax in grid.flat:
        ax.set_axis_off()
    plane = Plane.through(mask_XYZ, truth_XYZ > 0, "axial")
    row(grid[0], {name: subject.image(name) for name in COLUMNS}, plane, mask_XYZ, GREYS | {"vmax": white(truth_XYZ)})
    classes = {f"{name}: tissue": segmentation.classes(subject, name, "Atropos") for name in COLUMNS}
    row(grid[1], classes, plane, mask_XYZ, GREYS | {"vmax": 3})
    strays, carried_XYZ = displacements(subject)
    there = Plane.through(carried_XYZ, next(iter(strays.values())) >= 0, "axial")
    drawn = row(grid[2], strays, there, carried_XYZ, {"cmap": "magma", "vmin": 0, "vmax": FARTHEST})
    bar = drawing.colorbar(drawn, ax=grid[2], shrink=0.8)
    bar.ax.tick_params(colors="white")
    bar.set_label("mm from the truth's registration", color="white")
    drawing.savefig(path, dpi=80)


def row(axes: Any, views: Mapping[str, np.ndarray], plane: Plane, mask_XYZ: np.ndarray, colours: dict[str, Any]) -> Any:
    """Draw one row of panels, with the mask outlined; return the last panel's image."""
    for ax, (name, volume_XYZ) in zip(axes, views.items(), strict=True):
        drawn = ax.imshow(plane.cut(volume_XYZ), **colours)
        ax.contour(plane.cut(mask_XYZ), [0.5], colors="#ffb000", linewidths=0.8)
        ax.set_title(name, color="white", fontsize=11)
    return drawn


def displacements(subject: Subject) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the size of the displacement's difference on the template, NaN outside its brain, and the mask there."""
    from studies.downstream.tools import template

    truth = registration.registered(subject, TRUTH)
    brain_XYZ = template().numpy() > 0
    found = {}
    for fill in REGISTERED:
        difference = registration.registered(subject, fill).displacement_XYZ3 - truth.displacement_XYZ3
        name = "truth, another seed" if fill == registration.AGAIN else fill
        found[name] = np.where(brain_XYZ, np.linalg.norm(difference, axis=-1), np.nan)
    return found, truth.carry(subject.mask().astype(np.uint8)) > 0
