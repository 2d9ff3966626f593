"""Fills without a network: what any model must beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from brats_inpainting import container
from brats_inpainting.config import BASELINES
from brats_inpainting.data import windows
from brats_inpainting.data.volume import Scan
from brats_inpainting.data.windows import Stack
from brats_inpainting.filler import Filled
from brats_inpainting.progress import Watch

LEVELS = 65535
TELEA_RADIUS = 5  # voxels around a point that it is filled from
MIDLINE_SEARCH = 24  # half voxels that the midline may lie from the middle of the brain


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
    for z in windows.masked_slices(scan.mask_SHW):
        image_HW, mask_HW = scan.image_SHW[z], scan.mask_SHW[z]
        filled_SHW[z] = fill(image_HW, mask_HW) if not mask_HW.all() else scan.image_SHW[_known(scan)].mean()
    return filled_SHW


METHODS: dict[str, Callable[[Scan], np.ndarray]] = {name: globals()[name] for name in BASELINES}


@dataclass(frozen=True)
class Baseline:
    """A ``Filler`` without a network: any function of a scan that returns its frame filled, S × H × W in [0, 1]."""

    method: Callable[[Scan], np.ndarray]
    dilate: float = 0.0

    def settings(self) -> dict[str, Any]:
        """Return the method's name."""
        return {"method": self.method.__name__, "dilate": self.dilate}

    def facts(self) -> dict[str, Any]:
        """Return nothing more."""
        return {}

    def fill(
        self, scans: Iterable[Scan], *, seed: int = 0, keep: bool = False, progress: Watch | None = None
    ) -> Iterator[Stack]:
        """Yield every scan; ``finish`` does the work."""
        for scan in scans:
            if progress:
                progress.open(1)
                progress.advance(1)
            yield Stack(scan, (), samples=1)

    def finish(self, stack: Stack) -> Filled:
        """Fill a scan."""
        return Filled(stack.scan, stack.scan.inside(self.method(stack.scan)))
