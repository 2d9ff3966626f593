"""Baselines: filling without a network."""

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
from brats_inpainting.errors import CaseError, InpaintingError
from brats_inpainting.filler import Filled, InpaintMixin
from brats_inpainting.progress import ProgressBar

LEVELS = 65535
TELEA_RADIUS = 5  # voxels
MIDLINE_SEARCH = 24  # largest distance of the midline from the brain's middle, in half voxels


def mean(scan: Scan) -> np.ndarray:
    """Fill with the mean of the tissue outside the mask: S × H × W in [0, 1]."""
    return np.where(scan.mask_SHW, scan.image_SHW[_known(scan)].mean(), scan.image_SHW)


def _known(scan: Scan) -> np.ndarray:
    """Return the tissue outside the mask, bool."""
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
        levels_HW = np.rint(image_HW * LEVELS).astype(np.uint16)  # OpenCV adds constants of about 1
        return cv2.inpaint(levels_HW, mask_HW.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA) / np.float32(LEVELS)

    return _slice_by_slice(scan, fill)


def mirror(scan: Scan) -> np.ndarray:
    """Fill from the other hemisphere, or with the mean where both are masked: S × H × W in [0, 1].

    The midsagittal plane is the sagittal plane near the brain's middle with the least mean squared difference between
    known tissue and its reflection, which must overlap with at least half of it.
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
    """Return the array with index i of the left–right axis taken from shift − i, 0 outside."""
    width = array_SHW.shape[1]
    origin = shift - np.arange(width)
    inside = (origin >= 0) & (origin < width)
    reflected_SHW = np.zeros_like(array_SHW)
    reflected_SHW[:, inside] = array_SHW[:, origin[inside]]
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
class Baseline(InpaintMixin):
    """A ``Filler`` without a network; ``method`` returns the filled frame of a scan, S × H × W in [0, 1]."""

    method: Callable[[Scan], np.ndarray]
    dilate: float = 0.0
    resample: bool = True

    def settings(self) -> dict[str, Any]:
        """Return the method's name and the dilation."""
        return {"method": self.method.__name__, "dilate": self.dilate, "resample": self.resample}

    def facts(self) -> dict[str, Any]:
        """Return an empty dict."""
        return {}

    def fill(
        self, scans: Iterable[Scan], *, seed: int = 0, keep: bool = False, progress: ProgressBar | None = None
    ) -> Iterator[Stack]:
        """Yield every scan; ``finish`` fills it."""
        for scan in scans:
            if progress:
                progress.open(1)
                progress.advance(1)
            yield Stack(scan, (), samples=1)

    def finish(self, stack: Stack) -> Filled:
        """Fill a scan.

        Raises:
            CaseError: the method failed, or its result is not a filled frame.
        """
        scan = stack.scan
        try:
            filled_SHW = np.asarray(self.method(scan))
        except InpaintingError:
            raise
        except Exception as error:
            raise CaseError(f"{scan.id}: {self.method.__name__} failed: {error!r}") from error
        if filled_SHW.shape != scan.image_SHW.shape or not np.isfinite(filled_SHW).all():
            raise CaseError(
                f"{scan.id}: {self.method.__name__} returned {filled_SHW.dtype}, {filled_SHW.shape}\n"
                f"  Return numbers in [0, 1], of the shape {scan.image_SHW.shape}, without NaN."
            )
        return Filled(scan, scan.inside(filled_SHW))
