"""The network's grid of 1 mm, and a scan's own: resampling, and its undo.

Shapes: L P S a volume in LPS order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from brats_inpainting.data.transforms import bounding_box

TOLERANCE = 0.05 + 1e-6  # mm; voxels within it count as 1 mm; headers are float32
MARGIN = 8  # voxels around the mask in which the nearest tissue is looked for


@dataclass(frozen=True)
class Grid:
    """The sizes of a volume in its own voxels and in the network's, and its own voxel size in mm."""

    own: tuple[int, ...]
    network: tuple[int, ...]
    spacing: tuple[float, ...]

    @classmethod
    def of(cls, shape: Sequence[int], spacing: Sequence[float], *, resample: bool = True) -> Grid:
        """Return the grid for a volume; the same as its own if all sides of its voxels are within 5 % of 1 mm."""
        own = cls(tuple(shape), tuple(shape), tuple(spacing))
        if not resample or own.is_near_1_mm:
            return own
        return replace(own, network=tuple(max(1, round(n * s)) for n, s in zip(shape, spacing, strict=True)))

    @property
    def is_near_1_mm(self) -> bool:
        """Whether all sides of its own voxels are within 5 % of 1 mm."""
        return all(abs(side - 1) <= TOLERANCE for side in self.spacing)

    @property
    def resamples(self) -> bool:
        """Whether the two grids differ."""
        return self.own != self.network

    def apply(self, image_LPS: np.ndarray, hole_LPS: np.ndarray) -> np.ndarray:
        """Resample an image; voxels of ``hole_LPS`` are first replaced by the nearest others, so as not to blend in."""
        return resize(_closed(image_LPS, hole_LPS, self.spacing), self.network) if self.resamples else image_LPS

    def undo(self, image_LPS: np.ndarray) -> np.ndarray:
        """Resample an image of the network's grid to the volume's own."""
        return resize(image_LPS, self.own) if self.resamples else image_LPS

    def cover(self, mask_LPS: np.ndarray) -> np.ndarray:
        """Return a mask in the network's grid: voxels whose centre is masked, or that contain a masked centre."""
        if not self.resamples:
            return mask_LPS
        covered_LPS, box = self.nearest(mask_LPS), bounding_box(mask_LPS)
        centres = np.argwhere(mask_LPS[box]) + [side.start for side in box] + 0.5
        covered_LPS[tuple((centres * self.network / self.own).astype(int).T)] = True
        return covered_LPS

    def undo_mask(self, mask_LPS: np.ndarray) -> np.ndarray:
        """Return a mask of the network's grid in the volume's own."""
        return _nearest(mask_LPS, self.own)

    def nearest(self, mask_LPS: np.ndarray) -> np.ndarray:
        """Return a mask at the centres of the network's voxels."""
        return _nearest(mask_LPS, self.network)


def resize(image_LPS: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize a volume by cubic convolution (Keys 1981, a = −0.5), low-pass filtered where it becomes smaller; float32.

    The faces of the volume stay where they are. PyTorch's filter for pictures is applied to the planes of the first two
    axes, then along the third.
    """
    import torch
    from torch.nn.functional import interpolate

    def planes(stack_CHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if stack_CHW.shape[1:] == (height, width):
            return stack_CHW
        return interpolate(stack_CHW[None], (height, width), mode="bicubic", antialias=True)[0]

    across, down, deep = size
    image_SPL = planes(torch.from_numpy(np.ascontiguousarray(image_LPS.T, np.float32)), down, across)
    return planes(image_SPL.transpose(0, 1).contiguous(), deep, across).permute(2, 0, 1).numpy()


def _nearest(mask_LPS: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return a mask at the centres of other voxels of the same volume."""
    if mask_LPS.shape == tuple(size):
        return mask_LPS
    indices = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, mask_LPS.shape, strict=True)]
    return mask_LPS[np.ix_(*indices)]


def _closed(image_LPS: np.ndarray, hole_LPS: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Return the image with the voxels of a hole replaced by the nearest ones outside."""
    if not hole_LPS.any():
        return image_LPS
    box = bounding_box(hole_LPS, margin=MARGIN)
    nearest = ndimage.distance_transform_edt(
        hole_LPS[box], sampling=spacing, return_distances=False, return_indices=True
    )
    closed_LPS = image_LPS.copy(order="K")
    closed_LPS[box] = image_LPS[box][tuple(nearest)]
    return closed_LPS
