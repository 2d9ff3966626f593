"""The background of a scan: its intensity, its noise, and whether it is padding.

Shapes: X Y Z the file's array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARE = 0.25  # of the voxels on the faces that must have nearly the same value
NOISE_WIDTHS = 10  # from the shortest interval of SHARE to the end of its distribution, normal or Rayleigh
MAX_NOISE = 0.1  # of the brightest tissue
MAX_DARKER = 0.01  # of the voxels; background is darker than tissue, or constant
PADDING_GAP = 0.5  # of the tissue's range; background that far below the tissue is no measured intensity
SAMPLE = 10_000_000  # voxels; larger volumes are sampled on a coarser grid, from which percentiles are estimated


@dataclass(frozen=True)
class Background:
    """The background, in the file's intensities.

    Attributes:
        level: its intensity; 0 in BraTS.
        noise: voxels that differ from ``level`` by at most this are background.
        floor: the intensity that stands for background in the scale; differs from ``level`` if that is padding, such as
            −1024 around tissue of 0 to 1000.
        found: whether there is any; otherwise tissue reaches all faces, and ``level`` is 0 or the minimum.
    """

    level: float
    noise: float
    floor: float
    found: bool = True

    @classmethod
    def of(cls, image_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> Background:
        """Find the most common intensity of the volume's faces outside the mask, with tolerance for noise."""
        rim = [face[~masked] for face, masked in zip(faces(image_XYZ), faces(mask_XYZ), strict=True)]
        level, width = _most_common(np.concatenate(rim))
        every = (slice(None, None, 1 + int((image_XYZ.size / SAMPLE) ** (1 / 3))),) * 3
        sample = image_XYZ[every][~mask_XYZ[every]]
        noise = min(NOISE_WIDTHS * width, MAX_NOISE * float(np.percentile(abs(sample - level), 99.9)))
        if width and np.count_nonzero(sample < level - noise) > MAX_DARKER * sample.size:
            lowest = max(float(sample.min()), 0.0)
            return cls(lowest, 0.0, lowest, found=False)
        tissue = sample[abs(sample - level) > noise]
        if not tissue.size:
            return cls(level, 0.0, level)
        low, high = (float(end) for end in np.percentile(tissue, (0.1, 99.9)))
        padding = level < low - PADDING_GAP * (high - low) or level > high
        return cls(level, noise, min(low, 0.0) if padding else level)

    @property
    def is_padding(self) -> bool:
        """Whether the background's intensity was not measured."""
        return self.floor != self.level

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
