"""Pictures of filled brains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib\n  pip install 'brats-inpainting[report]'") from error
    centre = [round(float(c)) for c in np.argwhere(mask_XYZ).mean(axis=0)]
    reference = list(views.values())[-1]
    white = float(np.percentile(reference[reference > 0], 99.5))
    box = ndimage.find_objects((reference > 0).astype(np.uint8))[0]
    figure = Figure(figsize=(3 * len(views), 9), facecolor="black", layout="constrained")
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


def _plane(volume_XYZ: np.ndarray, axis: int, centre: list[int], box: tuple[slice, ...]) -> np.ndarray:
    """Cut a plane of an LPS volume to the brain, anterior or superior up."""
    cut = volume_XYZ[tuple(centre[i] if i == axis else side for i, side in enumerate(box))]
    return cut.T if axis == 2 else cut.T[::-1]
