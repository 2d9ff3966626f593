"""PNG figures of filled scans and training curves; report.py writes the HTML report.

Shapes: X Y Z a volume in LPS; R C the rows and columns of a picture.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from brats_inpainting import container
from brats_inpainting.errors import ConfigError

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the plane's normal axis in an LPS array
WHITE = 99.5  # percentile of tissue intensities displayed as white


@dataclass(frozen=True)
class Plane:
    """A slice of a volume, cropped to the brain; ``aspect`` is its pixels' height over their width in mm."""

    name: str
    index: int
    box: tuple[slice, ...]
    aspect: float = 1.0

    @classmethod
    def through(
        cls,
        mask_XYZ: np.ndarray,
        brain_XYZ: np.ndarray,
        name: str,
        index: int | None = None,
        sides_XYZ: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> Plane:
        """Return the plane with a given index, by default where the mask is largest; voxels have sides in mm.

        Raises:
            ConfigError: when the index lies outside the volume.
        """
        axis = PLANES[name]
        if index is None:
            index = int(mask_XYZ.sum(axis=tuple({0, 1, 2} - {axis})).argmax())
        if not 0 <= index < mask_XYZ.shape[axis]:
            raise ConfigError(f"{name} slice {index}: the volume has slices 0 to {mask_XYZ.shape[axis] - 1}")
        boxes = ndimage.find_objects((brain_XYZ | mask_XYZ).astype(np.uint8))
        width, height = (side for i, side in enumerate(sides_XYZ) if i != axis)
        return cls(name, index, boxes[0] if boxes else (slice(None),) * 3, height / width)

    @property
    def left(self) -> str:
        """Label of the left side: R (the brain's right) or A (anterior)."""
        return "A" if self.name == "sagittal" else "R"

    def cut(self, volume_XYZ: np.ndarray) -> np.ndarray:
        """Return the cropped slice, R × C, anterior or superior up, the brain's left on the right."""
        axis = PLANES[self.name]
        cut = volume_XYZ[tuple(self.index if i == axis else side for i, side in enumerate(self.box))]
        return cut.T if self.name == "axial" else cut.T[::-1]


def white(volume_XYZ: np.ndarray) -> float:
    """Return the intensity displayed as white."""
    tissue = volume_XYZ[volume_XYZ > 0]
    return float(np.percentile(tissue, WHITE)) if tissue.size else 1.0


class Row(NamedTuple):
    """A row of a mosaic.

    Attributes:
        label: text after the name of each view.
        plane: the plane to draw.
        views: name → volume, X × Y × Z, LPS, same intensities.
        mask_XYZ: outlined in the first volume.
        white: intensity displayed as white.
    """

    label: str
    plane: Plane
    views: Mapping[str, np.ndarray]
    mask_XYZ: np.ndarray
    white: float


def mosaic(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Write a PNG: one row per plane, one column per volume."""
    columns = max(len(row.views) for row in rows)
    drawing = figure((3 * columns, 3.2 * len(rows)), facecolor="black", layout="constrained")
    drawing.suptitle(title, color="white")
    grid = drawing.subplots(len(rows), columns, squeeze=False)
    for ax in grid.flat:
        ax.set_axis_off()
    for axes, (label, plane, views, mask_XYZ, level) in zip(grid, rows, strict=True):
        for ax, (name, volume_XYZ) in zip(axes, views.items(), strict=False):
            ax.imshow(plane.cut(volume_XYZ), cmap="gray", vmin=0, vmax=level, aspect=plane.aspect)
            ax.set_title(f"{name}{label}", color="white", fontsize=9)
            ax.text(0.02, 0.5, plane.left, color="white", fontsize=9, transform=ax.transAxes)
        if plane.cut(mask_XYZ).any():
            axes[0].contour(plane.cut(mask_XYZ), [0.5], colors="#ffb000", linewidths=0.8)
    drawing.savefig(path, dpi=100)


def three_planes(views: Mapping[str, np.ndarray], mask_XYZ: np.ndarray, path: Path, *, title: str) -> None:
    """Write a mosaic of the axial, coronal and sagittal planes with the largest mask area.

    The last view is a skull-stripped brain, which sets crop and grey levels.
    """
    brain_XYZ = list(views.values())[-1]
    planes = [Plane.through(mask_XYZ, brain_XYZ > 0, name) for name in reversed(PLANES)]
    rows = [Row(f", {plane.name}", plane, views, mask_XYZ, white(brain_XYZ)) for plane in planes]
    mosaic(rows, path, title=title)


def curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Plot a training run as PNG: losses on the left, validation scores on the right, by step.

    Args:
        rows: the entries of metrics.jsonl, each with its ``step``.
        path: PNG file to write.
    """
    drawing = figure((11, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for name in ("loss", "mse_q1", "mse_q2", "mse_q3", "mse_q4"):
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            left.plot(*zip(*points, strict=True), label=name, alpha=1.0 if name == "loss" else 0.5)
    left.set(xlabel="step", ylabel="loss; squared error by quartile of t", yscale="log")
    left.legend()
    for name, axes, colour in (("ssim", right, "tab:blue"), ("psnr", right.twinx(), "tab:orange")):
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            axes.plot(*zip(*points, strict=True), color=colour, marker=".")
        axes.set_ylabel(name.upper(), color=colour)
    right.set(xlabel="step", title="held-out cases")
    drawing.savefig(path, dpi=100)


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def figure(size: tuple[float, float], **settings: Any) -> Any:
    """Return an empty matplotlib figure; size in inches.

    Raises:
        ConfigError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise container.missing("pictures need matplotlib", "report") from error
    return Figure(figsize=size, **settings)
