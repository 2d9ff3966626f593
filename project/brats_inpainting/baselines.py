"""Fills without a network: what any model must beat."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from brats_inpainting import container
from brats_inpainting.data import cases, volume, windows
from brats_inpainting.data.volume import Scan
from brats_inpainting.errors import CaseError, ConfigError

LEVELS = 65535
TELEA_RADIUS = 5  # voxels around a point that it is filled from
MIDLINE_SEARCH = 24  # half voxels that the midline may lie from the middle of the brain

log = logging.getLogger(__name__)


def mean(scan: Scan) -> np.ndarray:
    """Fill with the mean of the scan's brain outside the mask: S × H × W in [0, 1]."""
    return np.where(scan.mask_SHW, scan.image_SHW[_known(scan)].mean(), scan.image_SHW)


def _known(scan: Scan) -> np.ndarray:
    """Return where there is tissue outside the mask."""
    return (scan.image_SHW > 0) & ~scan.mask_SHW


def biharmonic(scan: Scan) -> np.ndarray:
    """Fill every axial slice with the biharmonic surface through its surroundings (scikit-image): S × H × W."""
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError as error:
        raise container.missing("biharmonic needs scikit-image", "baselines") from error
    return _slice_by_slice(scan, inpaint_biharmonic)


def telea(scan: Scan) -> np.ndarray:
    """Fill every axial slice by fast marching from the mask's edge inwards (Telea 2004, OpenCV): S × H × W."""
    try:
        import cv2
    except ImportError as error:
        raise container.missing("telea needs OpenCV", "baselines") from error

    def fill(image_HW: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
        levels_HW = np.rint(image_HW * LEVELS).astype(np.uint16)  # OpenCV adds constants of about 1 to every result
        return cv2.inpaint(levels_HW, mask_HW.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA) / np.float32(LEVELS)

    return _slice_by_slice(scan, fill)


def mirror(scan: Scan) -> np.ndarray:
    """Fill from the other hemisphere, and with the mean where that is masked too: S × H × W in [0, 1].

    The midsagittal plane is the one, near the brain's middle and parallel to the image's sides, that best maps known
    tissue onto known tissue (least mean squared difference), half of it at least.
    """
    known_SHW = _known(scan)
    left, right = np.flatnonzero((known_SHW | scan.mask_SHW).any(axis=(0, 2)))[[0, -1]]
    middle = left + right
    shifts = sorted(range(middle - MIDLINE_SEARCH, middle + MIDLINE_SEARCH + 1), key=lambda shift: abs(shift - middle))

    def mismatch(shift: int) -> float:
        both_SHW = known_SHW & _reflected(known_SHW, shift)
        if 2 * both_SHW.sum() < known_SHW.sum():
            return float("inf")
        return float(np.square(scan.image_SHW - _reflected(scan.image_SHW, shift))[both_SHW].mean())

    shift = min(shifts, key=mismatch)
    filled_SHW = np.where(_reflected(scan.mask_SHW, shift), mean(scan), _reflected(scan.image_SHW, shift))
    return np.where(scan.mask_SHW, filled_SHW, scan.image_SHW)


def _reflected(array_SHW: np.ndarray, shift: int) -> np.ndarray:
    """Return the array with voxel i of the left–right axis where shift − i was, 0 where nothing was."""
    width = array_SHW.shape[1]
    origin = shift - np.arange(width)
    there = (origin >= 0) & (origin < width)
    reflected_SHW = np.zeros_like(array_SHW)
    reflected_SHW[:, there] = array_SHW[:, origin[there]]
    return reflected_SHW


def _slice_by_slice(scan: Scan, fill: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply ``fill(image_HW, mask_HW)`` to every masked slice."""
    filled_SHW = scan.image_SHW.copy()
    for z in windows.masked(scan.mask_SHW):
        image_HW, mask_HW = scan.image_SHW[z], scan.mask_SHW[z]
        filled_SHW[z] = fill(image_HW, mask_HW) if not mask_HW.all() else scan.image_SHW[_known(scan)].mean()
    return filled_SHW


METHODS: dict[str, Callable[[Scan], np.ndarray]] = {
    "mean": mean,
    "biharmonic": biharmonic,
    "telea": telea,
    "mirror": mirror,
}


def fill_folder(method: str, data_path: Path, output_path: Path, *, overwrite: bool = False) -> dict[str, str]:
    """Fill every case of a folder; return the cases that failed, and why.

    Raises:
        ConfigError: when an output exists and may not be overwritten.
    """
    volume.make_writable(output_path)
    found = cases.find(data_path)
    there = [output_path / cases.output_name(case.id) for case in found]
    if not overwrite and (old := [path for path in there if path.exists()]):
        raise ConfigError(f"{old[0]}: exists already\n  Say --overwrite, or give another folder.")
    failed = {}
    for case in found:
        try:
            scan = volume.prepare(cases.load(case))
            filled_XYZ = scan.inside(METHODS[method](scan))
            volume.save(volume.image_like(scan.loaded, filled_XYZ), output_path / cases.output_name(case.id))
        except CaseError as error:
            failed[case.id] = str(error)
        else:
            log.info("%s: filled", case.id)
    return failed
