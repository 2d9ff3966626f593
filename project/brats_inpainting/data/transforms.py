"""Invertible transforms of a volume: orientation, intensity, crop.

Shapes: X Y Z the file's array, L P S the array re-oriented to LPS, S H W the frame: the region of every axial slice
that the network can see, slices first, H along L and W along P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from brats_inpainting.config import FRAME, FRAME_MULTIPLE

INTENSITY_PERCENTILES = (0.1, 99.9)


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
        low, high = np.percentile(volume.ravel(order="K"), percentiles)
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


def bounding_box(mask: np.ndarray, *, margin: int = 0) -> tuple[slice, ...]:
    """Return the bounding box of a mask, with a margin, inside the array; the whole array if the mask is empty."""
    axes = range(mask.ndim)
    ends = (occupied(np.asarray(mask.any(axis=tuple(other for other in axes if other != axis)))) for axis in axes)
    return tuple(slice(max(0, start - margin), stop + margin) for start, stop in ends)


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
