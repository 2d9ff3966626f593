"""A case as arrays, and back: orientation, intensity, crop, each with its exact undo; NIfTI in and out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class Intensity:
    """The linear map from [low, high] to [0, 1] (paper §3.1)."""

    low: float
    high: float

    @classmethod
    def of(cls, volume: np.ndarray) -> Intensity:
        """Take the 0.1 and 99.9 percentiles over all voxels, background included."""
        low, high = np.percentile(volume, PERCENTILES)
        return cls(float(low), float(high))

    def scale(self, volume: np.ndarray) -> np.ndarray:
        """Clip to [low, high] and map to [0, 1], float32."""
        scaled = (np.asarray(volume, np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.clip(scaled, 0, 1)

    def undo(self, scaled: np.ndarray) -> np.ndarray:
        """Map [0, 1] back to [low, high]."""
        return scaled * np.float32(self.high - self.low) + np.float32(self.low)
