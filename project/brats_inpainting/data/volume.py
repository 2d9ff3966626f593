"""Preprocessing of a case with exact inverses: brain, intensity, orientation, resolution, crop.

Shapes: X Y Z the file's array, L P S the array re-oriented to LPS, S H W the frame: the region of every axial slice of
1 mm that the network can see, slices first, H along L and W along P.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import io_orientation
from scipy import ndimage

from brats_inpainting.data import nifti
from brats_inpainting.data.background import Background
from brats_inpainting.data.grid import Grid
from brats_inpainting.data.transforms import Frame, Intensity, Orientation, bounding_box
from brats_inpainting.data.validation import LoadedCase
from brats_inpainting.errors import CaseError

log = logging.getLogger(__name__)

MAX_GAP = 2  # voxels; a component of the mask farther from all tissue is background
MIN_TISSUE = 0.01  # lowest scaled intensity of tissue, above ringing and rounding in the background


@dataclass(frozen=True)
class Scan:
    """A case prepared for the network, with the parameters of the inverse transforms.

    ``voided_XYZ`` has the file's intensities, with background in the mask; ``image_SHW`` is in [0, 1], with 0 in the
    mask, and 0 outside the brain mask of a whole head; both masks are bool. The frame lies in the network's grid.
    Components of the mask in the background are only in ``mask_XYZ``, and are not filled (``fill_XYZ``). ``box`` is
    the bounding box of the remaining tissue, in the frame.
    """

    loaded: LoadedCase
    orientation: Orientation
    grid: Grid
    background: Background
    intensity: Intensity
    frame: Frame
    voided_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    fill_XYZ: np.ndarray
    image_SHW: np.ndarray
    mask_SHW: np.ndarray
    box: tuple[slice, slice, slice]

    @property
    def id(self) -> str:
        """The case's id."""
        return self.loaded.id

    def inside(self, framed_SHW: np.ndarray) -> np.ndarray:
        """Return the scan in the file's intensities, filled from ``framed_SHW`` in the mask, unchanged elsewhere.

        Where the network finds no tissue, a head stays as it is around its brain mask, and padding is continued.
        """
        result_XYZ, box = self.voided_XYZ.copy(order="K"), bounding_box(self.fill_XYZ, margin=1)
        inner_XYZ, fill_XYZ = result_XYZ[box], self.fill_XYZ[box]
        scaled_XYZ = self._undo(framed_SHW)[box]
        inner_XYZ[fill_XYZ] = self.intensity.undo(np.clip(scaled_XYZ[fill_XYZ], 0, 1))
        empty_XYZ = fill_XYZ & (scaled_XYZ < MIN_TISSUE)
        if self.loaded.brain_XYZ is not None:
            outside_XYZ = empty_XYZ & ~self.loaded.brain_XYZ[box]
            inner_XYZ[outside_XYZ] = self.loaded.image_XYZ[box][outside_XYZ]
        elif self.background.is_padding:
            padding_XYZ = ~self.background.foreground(self.loaded.image_XYZ[box]) & ~self.mask_XYZ[box]
            labels_XYZ, _ = ndimage.label(padding_XYZ | empty_XYZ)
            connected_XYZ = np.isin(labels_XYZ, np.unique(labels_XYZ[padding_XYZ]))
            inner_XYZ[empty_XYZ & connected_XYZ] = self.background.level
        return result_XYZ

    def everywhere(self, framed_SHW: np.ndarray) -> np.ndarray:
        """Return ``framed_SHW`` mapped min–max to the input's 0.5 and 99.5 percentiles, as the paper does (§3.3).

        A whole head stays as it is outside its brain mask, and so does padding.

        Raises:
            CaseError: one of the two ranges is empty.
        """
        whole_XYZ = np.clip(self._undo(framed_SHW), 0, 1)
        seen_XYZ = _seen(self.voided_XYZ, self.mask_XYZ, self.loaded.brain_XYZ, self.background)
        own, target = Intensity.of(whole_XYZ, (0, 100)), Intensity.of(seen_XYZ, (0.5, 99.5))
        if not (own.high > own.low and target.high > target.low):
            raise CaseError(
                f"{self.id}: the intensities between the percentiles 0.5 and 99.5, or of the fill, are constant\n"
                "  Crop the background, or use another preset than paper."
            )
        filled_XYZ = target.undo(own.scale(whole_XYZ))
        if self.loaded.brain_XYZ is not None:
            return np.where(self.loaded.brain_XYZ | self.fill_XYZ, filled_XYZ, self.voided_XYZ)
        if self.background.is_padding:
            known_XYZ = ~self.fill_XYZ & ~self.background.foreground(self.loaded.image_XYZ)
            return np.where(known_XYZ, self.loaded.image_XYZ, filled_XYZ)
        return filled_XYZ

    def undo_std(self, std_SHW: np.ndarray) -> np.ndarray:
        """Return a standard deviation in the file's intensities, 0 outside the mask."""
        scale = np.float32(self.intensity.high - self.intensity.low)
        return np.where(self.mask_XYZ, np.maximum(self._undo(std_SHW), 0) * scale, np.float32(0))

    def _undo(self, framed_SHW: np.ndarray) -> np.ndarray:
        """Return a frame in the file's grid and orientation."""
        shape_LPS = self.grid.network
        return self.orientation.undo(self.grid.undo(self.frame.undo(framed_SHW, shape_LPS)))


def prepare(loaded: LoadedCase, *, dilate: float = 0.0, resample: bool = True) -> Scan:
    """Prepare a case for the network (paper §3.1): void, scale to [0, 1], re-orient to LPS, resample to 1 mm, frame.

    Args:
        loaded: the case.
        dilate: millimetres by which the mask is dilated first.
        resample: bring scans whose voxels are not 1 mm to 1 mm.

    Raises:
        CaseError: the scan is constant outside the dilated mask, or absurdly large at 1 mm.
    """
    mask_XYZ = grow(loaded.mask_XYZ, dilate, loaded.spacing)
    if loaded.brain_XYZ is not None:
        mask_XYZ = mask_XYZ & (loaded.brain_XYZ | loaded.mask_XYZ)  # a head is not filled where its skull is
    background = Background.of(loaded.image_XYZ, mask_XYZ, loaded.brain_XYZ)
    seen_XYZ = _seen(loaded.image_XYZ, mask_XYZ, loaded.brain_XYZ, background)
    intensity = _intensity(seen_XYZ, loaded.id)
    orientation = Orientation.of(loaded.template.affine)
    image_LPS, mask_LPS = (orientation.apply(a) for a in (intensity.scale(seen_XYZ), mask_XYZ))
    grid = _grid(loaded, orientation, mask_LPS.shape, resample=resample)
    occupied_LPS = grid.nearest(orientation.apply(_occupied(seen_XYZ, background)))
    image_LPS, mask_LPS = np.clip(grid.apply(image_LPS, mask_LPS), 0, 1), grid.cover(mask_LPS)
    frame = Frame.around(mask_LPS | occupied_LPS)
    image_SHW, mask_SHW = frame.cut(image_LPS), frame.cut(mask_LPS)
    image_SHW[mask_SHW] = 0
    tissue_SHW = image_SHW > max(MIN_TISSUE, background.noise / (intensity.high - intensity.low))
    stray_SHW = _without_tissue(mask_SHW, tissue_SHW)
    mask_SHW &= ~stray_SHW
    fill_XYZ = mask_XYZ
    if stray_SHW.any():
        fill_XYZ = mask_XYZ & ~orientation.undo(grid.undo_mask(frame.undo(stray_SHW, grid.network)))
    voided_XYZ = np.where(
        mask_XYZ if loaded.brain_XYZ is None else fill_XYZ, np.float32(background.level), loaded.image_XYZ
    )
    _warn(loaded, grid, int(np.count_nonzero(mask_XYZ & ~fill_XYZ)))
    return Scan(
        loaded,
        orientation,
        grid,
        background,
        intensity,
        frame,
        voided_XYZ,
        mask_XYZ,
        fill_XYZ,
        image_SHW,
        mask_SHW,
        _box(tissue_SHW),
    )


def _seen(
    image_XYZ: np.ndarray, mask_XYZ: np.ndarray, brain_XYZ: np.ndarray | None, background: Background
) -> np.ndarray:
    """Return what the network may see of an image: nothing in the mask, outside the brain mask, and of padding."""
    hidden_XYZ = mask_XYZ if brain_XYZ is None else mask_XYZ | ~brain_XYZ
    return np.where(hidden_XYZ, np.float32(background.floor), background.floored(image_XYZ))


def _occupied(seen_XYZ: np.ndarray, background: Background) -> np.ndarray:
    """Return where the network sees tissue, bool."""
    return abs(seen_XYZ - np.float32(background.floor)) > background.noise


def _intensity(seen_XYZ: np.ndarray, case_id: str) -> Intensity:
    """Return the scale of what the network sees."""
    intensity = Intensity.of(seen_XYZ)
    if not intensity.high > intensity.low:
        intensity = Intensity(float(seen_XYZ.min()), float(seen_XYZ.max()))
    if not intensity.high > intensity.low:
        raise CaseError(
            f"{case_id}: nothing but background is left outside the mask\n"
            "  Give a smaller mask, or the brain mask of this scan."
        )
    return intensity


def _grid(loaded: LoadedCase, orientation: Orientation, shape_LPS: tuple[int, ...], *, resample: bool) -> Grid:
    """Return the network's grid.

    Raises:
        CaseError: it would have more voxels than any head.
    """
    order = np.argsort(orientation.to_lps[:, 0])
    spacing = tuple(loaded.spacing[axis] for axis in order)
    grid = Grid.of(shape_LPS, spacing, resample=resample)
    if prod(grid.network) > nifti.MAX_VOXELS:
        size = nifti.format_shape(grid.network)
        raise CaseError(f"{loaded.id}: {size} mm, larger than any head\n  Correct the voxel size in its header.")
    return grid


def _warn(loaded: LoadedCase, grid: Grid, strays: int) -> None:
    """Note and log what a user should be warned of in the preparation, and log whether voxels are resampled."""
    found = []
    voxel = " × ".join(f"{side:.3g}" for side in loaded.spacing)
    if grid.resamples:
        log.info("%s: voxels of %s mm are filled at 1 mm; the result has the scan's own", loaded.id, voxel)
    elif not grid.is_near_1_mm:
        found.append(f"voxels of {voxel} mm are not resampled; the network was trained at 1 mm, so expect a worse fill")
    if strays:
        where = (
            "in the background and stay background" if loaded.brain_XYZ is None else "outside the brain and are kept"
        )
        found.append(f"{strays:,} voxels of the mask lie {where}")
    for warning in found:
        loaded.warnings.append(warning)
        log.warning("%s: %s", loaded.id, warning)


def _without_tissue(mask_SHW: np.ndarray, tissue_SHW: np.ndarray) -> np.ndarray:
    """Return the connected components of a mask without tissue within ``MAX_GAP``."""
    stray_SHW = np.zeros_like(mask_SHW)
    if mask_SHW.any():
        box = bounding_box(mask_SHW, margin=MAX_GAP)
        labels, _ = ndimage.label(mask_SHW[box], np.ones((3, 3, 3)))
        near = ndimage.binary_dilation(tissue_SHW[box], np.ones((3, 3, 3)), iterations=MAX_GAP)
        stray_SHW[box] = mask_SHW[box] & ~np.isin(labels, np.unique(labels[near & mask_SHW[box]]))
    return stray_SHW


def _box(tissue_SHW: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the bounding box of tissue; the whole frame if there is none."""
    s, h, w = bounding_box(tissue_SHW)
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


def sides_in_lps(image: Nifti1Image) -> tuple[float, float, float]:
    """Return the sides of an image's voxels along x, y and z in LPS, in mm."""
    sides = dict(zip(io_orientation(image.affine)[:, 0], voxel_sizes(nifti.affine_mm(image)), strict=True))
    return sides[0], sides[1], sides[2]


def in_lps(image: Nifti1Image) -> np.ndarray:
    """Return an image's scaled values in LPS, float32."""
    return Orientation.of(image.affine).apply(nifti.values(image))
