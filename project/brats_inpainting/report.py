"""Pictures of filled brains."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from brats_inpainting.errors import ConfigError

PLANES = ("sagittal", "coronal", "axial")  # the plane across axis 0, 1, 2 of an LPS array


def mosaic(views: Mapping[str, np.ndarray], mask_XYZ: np.ndarray, path: Path, *, title: str) -> None:
    """Write a PNG: one column per volume, one row per plane, all through the mask's centre.

    Args:
        views: name → volume in LPS, X × Y × Z, all in the same intensities; the last one sets the grey levels.
        mask_XYZ: bool, outlined in the first view; not empty.
        path: the PNG to write.
        title: the line above everything.
    """
    centre = [round(float(c)) for c in np.argwhere(mask_XYZ).mean(axis=0)]
    reference = list(views.values())[-1]
    white = float(np.percentile(reference[reference > 0], 99.5))
    box = ndimage.find_objects((reference > 0).astype(np.uint8))[0]
    figure = _figure((3 * len(views), 9), facecolor="black", layout="constrained")
    figure.suptitle(title, color="white")
    grid = figure.subplots(3, len(views), squeeze=False)
    for axes, axis in zip(grid, (2, 1, 0), strict=True):
        for column, (ax, (name, volume)) in enumerate(zip(axes, views.items(), strict=True)):
            ax.imshow(_plane(volume, axis, centre, box), cmap="gray", vmin=0, vmax=white)
            if column == 0:
                ax.contour(_plane(mask_XYZ, axis, centre, box), [0.5], colors="#ffb000", linewidths=0.8)
            ax.set_title(f"{name}, {PLANES[axis]}", color="white", fontsize=9)
            ax.set_axis_off()
    figure.savefig(path, dpi=100)


def curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a PNG of a training run: losses on the left, validation scores on the right, against the step.

    Args:
        rows: what metrics.jsonl holds, each with its ``step``.
        path: the PNG to write.
    """
    figure = _figure((11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
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
    figure.savefig(path, dpi=100)


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(size: tuple[float, float], **settings: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib\n  pip install 'brats-inpainting[report]'") from error
    return Figure(figsize=size, **settings)


def _plane(volume_XYZ: np.ndarray, axis: int, centre: list[int], box: tuple[slice, ...]) -> np.ndarray:
    """Cut a plane of an LPS volume to the brain, anterior or superior up."""
    cut = volume_XYZ[tuple(centre[i] if i == axis else side for i, side in enumerate(box))]
    return cut.T if axis == 2 else cut.T[::-1]
