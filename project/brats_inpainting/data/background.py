"""The background of a scan: its intensity, its noise, and whether it is padding.

Shapes: X Y Z the file's array.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SHARE = 0.25  # of the voxels on the faces that must have nearly the same value
NOISE_WIDTHS = 10  # from the shortest interval of SHARE to the end of its distribution, normal or Rayleigh
MAX_NOISE = 0.1  # of the brightest tissue
RINGING = 0.02  # of the brightest tissue; splines ring around an edge
MAX_DARKER = 0.01  # of the voxels; background is darker than tissue, or constant
PADDING_GAP = 1.5  # of the upper half of the tissue's range; background that far below its middle was not measured
PADDING = -1000  # background at or below is padding if tissue is not negative: −1024, −32768
SAMPLE = 10_000_000  # voxels; larger volumes are sampled on a coarser grid, from which percentiles are estimated


@dataclass(frozen=True)
class Background:
    """The background, in the file's intensities.

    Attributes:
        level: its intensity; 0 in BraTS.
        noise: voxels that differ from ``level`` by at most this are background.
        floor: the intensity that stands for background in the scale.
        is_padding: whether ``level`` was not measured, such as −1024 around tissue of 0 to 1000.
        found: whether there is any; otherwise tissue reaches all faces, and ``level`` is 0 or the minimum.
        ceiling: brighter voxels belong to bright padding.
    """

    level: float
    noise: float
    floor: float
    is_padding: bool = False
    found: bool = True
    ceiling: float = np.inf

    @classmethod
    def of(cls, image_XYZ: np.ndarray, mask_XYZ: np.ndarray, brain_XYZ: np.ndarray | None = None) -> Background:
        """Find the most common intensity of the volume's faces outside the mask, with tolerance for noise.

        Around the brain mask of a whole head, what the network sees is constant, and no brighter than the brain.
        """
        found = cls._of_faces(image_XYZ, mask_XYZ)
        if brain_XYZ is None or not (tissue := image_XYZ[brain_XYZ & ~mask_XYZ]).size:
            return found
        return replace(found, noise=0.0, floor=min(found.floor, float(np.percentile(tissue, 0.1))))

    @classmethod
    def _of_faces(cls, image_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> Background:
        rim = [face[~masked] for face, masked in zip(faces(image_XYZ), faces(mask_XYZ), strict=True)]
        level, width = _most_common(np.concatenate(rim))
        every = (slice(None, None, 1 + int((image_XYZ.size / SAMPLE) ** (1 / 3))),) * 3
        sample = image_XYZ[every][~mask_XYZ[every]]
        if not sample.size:
            return cls(level, 0.0, level)
        reach = float(np.percentile(abs(sample - level), 99.9))
        noise = min(NOISE_WIDTHS * width, MAX_NOISE * reach)
        if width and np.count_nonzero(sample < level - noise) > MAX_DARKER * sample.size:
            lowest = max(float(sample.min()), 0.0)
            return cls(lowest, 0.0, lowest, found=False)
        tissue = sample[abs(sample - level) > max(noise, RINGING * reach)]
        if not tissue.size:
            return cls(level, 0.0, level)
        low, middle, high = (float(end) for end in np.percentile(tissue, (10, 50, 99.9)))
        floor = 0.0 if middle >= 0 else low
        if level > high:
            return cls(level, noise, floor, is_padding=True, ceiling=high)
        # the middle, because voxels at the brain's edge can blend with the padding
        padding = level < min(0.0, middle - PADDING_GAP * (high - middle)) or (level <= PADDING and middle >= 0)
        return cls(level, noise, floor if padding else level, is_padding=padding)

    def floored(self, image_XYZ: np.ndarray) -> np.ndarray:
        """Return an image whose padding, and what blends with it, is ``floor``."""
        if not self.is_padding:
            return image_XYZ
        floor = np.float32(self.floor)
        return np.where(image_XYZ > self.ceiling, floor, np.maximum(image_XYZ, floor))

    def foreground(self, image_XYZ: np.ndarray) -> np.ndarray:
        """Return where an image is not background, bool."""
        if not self.found:
            return np.ones(image_XYZ.shape, bool)
        return image_XYZ != self.level if not self.noise else abs(image_XYZ - np.float32(self.level)) > self.noise


def faces(array_XYZ: np.ndarray) -> list[np.ndarray]:
    """Return views of the six faces of a volume."""
    return [np.moveaxis(array_XYZ, axis, 0)[end] for axis in range(3) for end in (0, -1)]


def _most_common(values: np.ndarray) -> tuple[float, float]:
    """Return the median and the width of the shortest interval that contains ``SHARE`` of the values."""
    if not values.size:
        return 0.0, 0.0
    ordered = np.sort(values)
    length = max(1, int(SHARE * ordered.size))
    widths = ordered[length - 1 :] - ordered[: ordered.size - length + 1]
    start = int(np.argmin(widths))
    return float(ordered[start + length // 2]), float(widths[start])
