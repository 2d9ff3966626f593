"""Preprocessing of a case with exact inverses: orientation, intensity, crop.

Shapes: X Y Z the file's array, L P S the array re-oriented to LPS, S H W the frame: the region of every axial slice
that the network can see, slices first, H along L and W along P.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

from brats_inpainting.config import FRAME, FRAME_MULTIPLE
from brats_inpainting.data import nifti
from brats_inpainting.data.cases import LoadedCase, background_level
from brats_inpainting.errors import CaseError

log = logging.getLogger(__name__)

INTENSITY_PERCENTILES = (0.1, 99.9)
MAX_GAP = 2  # voxels; a component of the mask farther from all tissue is background
MIN_TISSUE = 0.01  # lowest scaled intensity of tissue, above ringing and rounding in the background


@dataclass(frozen=True)
class Orientation:
    """The permutation and flips of axes that bring an array to LPS, without resampling."""

    to_lps: np.ndarray
    from_lps: np.ndarray

    @classmethod
    def of(cls, affine: np.ndarray) -> Orientation:
        """Derive the orientation from an affine; oblique axes are mapped to the nearest anatomical ones."""
        own, lps = io_orientation(affine), axcodes2ornt(("L", "P", "S"))
        return cls(ornt_transform(own, lps), ornt_transform(lps, own))

    def apply(self, array_XYZ: np.ndarray) -> np.ndarray:
        """Return the array in LPS."""
        return apply_orientation(array_XYZ, self.to_lps)

    def undo(self, array_LPS: np.ndarray) -> np.ndarray:
        """Return the array in the file's orientation."""
        return apply_orientation(array_LPS, self.from_lps)


@dataclass(frozen=True)
class Intensity:
    """The linear map from [low, high] to [0, 1] (paper §3.1)."""

    low: float
    high: float

    @classmethod
    def of(cls, volume: np.ndarray, percentiles: tuple[float, float] = INTENSITY_PERCENTILES) -> Intensity:
        """Compute the percentiles over all voxels, including background."""
        low, high = np.percentile(volume, percentiles)
        return cls(float(low), float(high))

    def scale(self, volume: np.ndarray) -> np.ndarray:
        """Clip to [low, high] and map to [0, 1], float32."""
        scaled = (np.asarray(volume, np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.clip(scaled, 0, 1)

    def undo(self, scaled: np.ndarray) -> np.ndarray:
        """Map [0, 1] back to [low, high]."""
        return scaled * np.float32(self.high - self.low) + np.float32(self.low)


@dataclass(frozen=True)
class Frame:
    """The in-plane rectangle that is cropped from every slice, zero-padded outside the image."""

    start: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def around(cls, occupied_LPS: np.ndarray) -> Frame:
        """Return the central 224 × 224, re-centred if that crops the occupied region, enlarged if it does not fit."""
        sides = [_side(occupied_LPS.max(axis=others)) for others in ((1, 2), (0, 2))]
        return cls((sides[0].start, sides[1].start), (_length(sides[0]), _length(sides[1])))

    def cut(self, array_LPS: np.ndarray) -> np.ndarray:
        """Return the frame of every slice, S × H × W."""
        framed_SHW = np.zeros((array_LPS.shape[2], *self.size), array_LPS.dtype)
        source, target = self._overlap(array_LPS.shape)
        framed_SHW[:, *target] = np.moveaxis(array_LPS[source], 2, 0)
        return framed_SHW

    def undo(self, framed_SHW: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return slices of the original size, 0 outside the frame."""
        array_LPS = np.zeros(shape, framed_SHW.dtype)
        source, target = self._overlap(shape)
        array_LPS[source] = np.moveaxis(framed_SHW[:, *target], 0, 2)
        return array_LPS

    def _overlap(self, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the overlap of frame and image, in indices of the image and of the frame."""
        spans = [
            (max(start, 0), min(start + size, n), start)
            for start, size, n in zip(self.start, self.size, shape[:2], strict=True)
        ]
        return tuple(slice(a, b) for a, b, _ in spans), tuple(slice(a - s, b - s) for a, b, s in spans)


def span(
    start: int,
    stop: int,
    *,
    window: int,
    step: int = 0,
    margin: int = 0,
    length: int | None = None,
    rng: np.random.Generator | None = None,
) -> slice:
    """Place a window along one axis so that it covers ``start`` to ``stop``.

    Args:
        start: first covered index.
        stop: one past the last.
        window: minimum length of the window.
        step: the window grows in multiples of ``step`` until everything fits; 0 keeps its length.
        margin: indices of context that the window includes before ``start`` and after ``stop``.
        length: length of the axis, if the window must stay on it; on a shorter axis it starts at 0.
        rng: draws the position among all that cover the interval; if None, the window is centred.
    """
    size = window
    if step:
        size += step * int(np.ceil(max(0, stop - start + 2 * margin - window) / step))
        size = size if length is None else min(size, max(window, step * int(np.ceil(length / step))))
    first = (start + stop - size) // 2
    if rng:
        low, high = sorted((stop - size, start))
        first = int(rng.integers(low, high + 1))
    if length is not None:
        first = int(np.clip(first, 0, max(0, length - size)))
    return slice(first, first + size)


def cut(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Return a copy of a box of an array, zero-padded outside the array."""
    box = np.zeros(size, array.dtype)
    ends = [(max(a, 0), min(a + n, length), a) for a, n, length in zip(start, size, array.shape, strict=True)]
    if all(first < last for first, last, _ in ends):
        box[tuple(slice(a - s, b - s) for a, b, s in ends)] = array[tuple(slice(a, b) for a, b, _ in ends)]
    return box


def occupied(along: np.ndarray) -> tuple[int, int]:
    """Return the first non-zero index and one past the last; the whole axis if all are zero."""
    indices = np.flatnonzero(along) if along.any() else np.arange(len(along))
    return int(indices[0]), int(indices[-1]) + 1


def _side(along: np.ndarray) -> slice:
    """Return the frame along one axis."""
    start, stop = occupied(along)
    centre = (len(along) - FRAME) // 2
    if centre <= start and stop <= centre + FRAME:
        return slice(centre, centre + FRAME)
    return span(start, stop, window=FRAME, step=FRAME_MULTIPLE)


def _length(side: slice) -> int:
    return side.stop - side.start


@dataclass(frozen=True)
class Scan:
    """A case prepared for the network, with the parameters of the inverse transforms.

    ``voided_XYZ`` has the file's intensities, with background in the mask; ``image_SHW`` is in [0, 1], with 0 in the
    mask; both masks are bool. Components of the mask in the background are only in ``mask_XYZ`` and stay background.
    ``box`` is the bounding box of the remaining tissue, in the frame.
    """

    loaded: LoadedCase
    orientation: Orientation
    intensity: Intensity
    frame: Frame
    voided_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    image_SHW: np.ndarray
    mask_SHW: np.ndarray
    box: tuple[slice, slice, slice]

    @property
    def id(self) -> str:
        """The case's id."""
        return self.loaded.id

    def inside(self, framed_SHW: np.ndarray) -> np.ndarray:
        """Return the scan in the file's intensities, filled from ``framed_SHW`` in the mask, unchanged elsewhere."""
        result_XYZ, mask_XYZ = self.voided_XYZ.copy(), self._unframed(self.mask_SHW)
        result_XYZ[mask_XYZ] = self.intensity.undo(np.clip(self._unframed(framed_SHW)[mask_XYZ], 0, 1))
        return result_XYZ

    def everywhere(self, framed_SHW: np.ndarray) -> np.ndarray:
        """Return ``framed_SHW`` mapped min–max to the input's 0.5 and 99.5 percentiles, as the paper does (§3.3).

        Raises:
            CaseError: one of the two ranges is empty.
        """
        whole_XYZ = np.clip(self._unframed(framed_SHW), 0, 1)
        own, target = Intensity.of(whole_XYZ, (0, 100)), Intensity.of(self.voided_XYZ, (0.5, 99.5))
        if not (own.high > own.low and target.high > target.low):
            raise CaseError(
                f"{self.id}: the intensities between the percentiles 0.5 and 99.5, or of the fill, are constant\n"
                "  Crop the background, or use another preset than paper."
            )
        return target.undo(own.scale(whole_XYZ))

    def undo_std(self, std_SHW: np.ndarray) -> np.ndarray:
        """Return a standard deviation in the file's intensities, 0 outside the mask."""
        scale = np.float32(self.intensity.high - self.intensity.low)
        return np.where(self.mask_XYZ, self._unframed(std_SHW) * scale, np.float32(0))

    def _unframed(self, framed_SHW: np.ndarray) -> np.ndarray:
        shape_LPS = self.orientation.apply(self.mask_XYZ).shape
        return self.orientation.undo(self.frame.undo(framed_SHW, shape_LPS))


def prepare(loaded: LoadedCase, *, dilate: float = 0.0) -> Scan:
    """Prepare a case for the network (paper §3.1): void, scale to [0, 1], re-orient to LPS, frame.

    Args:
        loaded: the case.
        dilate: millimetres by which the mask is dilated first.

    Raises:
        CaseError: the scan is constant outside the dilated mask.
    """
    mask_XYZ = grow(loaded.mask_XYZ, dilate, loaded.spacing)
    level = background_level(loaded.image_XYZ, mask_XYZ)
    voided_XYZ = np.where(mask_XYZ, np.float32(level), loaded.image_XYZ)
    intensity = Intensity.of(voided_XYZ)
    if not intensity.high > intensity.low:
        intensity = Intensity(float(voided_XYZ.min()), float(voided_XYZ.max()))
    if not intensity.high > intensity.low:
        raise CaseError(f"{loaded.id}: nothing but background is left outside the mask\n  Give a smaller mask.")
    orientation = Orientation.of(loaded.template.affine)
    image_LPS, mask_LPS = (orientation.apply(a) for a in (intensity.scale(voided_XYZ), mask_XYZ))
    frame = Frame.around(mask_LPS | (orientation.apply(voided_XYZ) != level))
    image_SHW, mask_SHW = frame.cut(image_LPS), frame.cut(mask_LPS)
    image_SHW[mask_SHW] = 0
    tissue_SHW = image_SHW > MIN_TISSUE
    stray_SHW = _without_tissue(mask_SHW, tissue_SHW)
    if stray_SHW.any():
        warning = f"{np.count_nonzero(stray_SHW):,} voxels of the mask lie in the background and stay background"
        loaded.warnings.append(warning)
        log.warning("%s: %s", loaded.id, warning)
    mask_SHW &= ~stray_SHW
    box = _box(tissue_SHW)
    return Scan(loaded, orientation, intensity, frame, voided_XYZ, mask_XYZ, image_SHW, mask_SHW, box)


def _without_tissue(mask_SHW: np.ndarray, tissue_SHW: np.ndarray) -> np.ndarray:
    """Return the connected components of a mask without tissue within ``MAX_GAP``."""
    stray_SHW = np.zeros_like(mask_SHW)
    if mask_SHW.any():
        inner = ndimage.find_objects(mask_SHW.astype(np.uint8))[0]
        box = tuple(slice(max(0, side.start - MAX_GAP), side.stop + MAX_GAP) for side in inner)
        labels, _ = ndimage.label(mask_SHW[box], np.ones((3, 3, 3)))
        near = ndimage.binary_dilation(tissue_SHW[box], np.ones((3, 3, 3)), iterations=MAX_GAP)
        stray_SHW[box] = mask_SHW[box] & ~np.isin(labels, np.unique(labels[near & mask_SHW[box]]))
    return stray_SHW


def _box(tissue_SHW: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the bounding box of tissue; the whole frame if there is none."""
    s, h, w = (slice(*occupied(tissue_SHW.max(axis=others))) for others in ((1, 2), (0, 2), (0, 1)))
    return s, h, w


def grow(mask_XYZ: np.ndarray, millimetres: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """Return the mask dilated by a distance."""
    if not millimetres or not mask_XYZ.any():
        return mask_XYZ
    return ndimage.distance_transform_edt(~mask_XYZ, sampling=spacing) <= millimetres


def smooth(image_SHW: np.ndarray, sigma: float | tuple[float, float, float]) -> np.ndarray:
    """Apply a Gaussian filter of ``sigma`` voxels, or one each for x, y and z (paper §3.3); 0 returns the input."""
    if not sigma:
        return image_SHW
    return np.moveaxis(ndimage.gaussian_filter(np.moveaxis(image_SHW, 0, 2), sigma), 2, 0)


def read(path: Path) -> np.ndarray:
    """Read a file's scaled values in LPS, float32.

    Raises:
        CaseError: the file cannot be read.
    """
    return in_lps(nifti.read(path))


def in_lps(image: Nifti1Image) -> np.ndarray:
    """Return an image's scaled values in LPS, float32."""
    return Orientation.of(image.affine).apply(nifti.values(image))
