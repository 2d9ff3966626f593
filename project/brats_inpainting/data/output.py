"""Results as NIfTI files: the input's geometry and header, written atomically."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image

from brats_inpainting.data import nifti
from brats_inpainting.data.validation import LoadedCase
from brats_inpainting.errors import CaseError
from brats_inpainting.files import atomic_write


def image_like(loaded: LoadedCase, volume_XYZ: np.ndarray, *, keep_dtype: bool = False) -> Nifti1Image:
    """Return an image with the input's shape, affine, codes, units and other header fields.

    Float32 with slope 1. Voxels equal to ``loaded.image_XYZ`` are unchanged: they have the input's scaled values, as
    float32. If the input is stored with more than 24 bits (float64, 32- and 64-bit integers) and float32 would round
    an unchanged voxel, the image is float64 and unchanged voxels have the input's scaled values in float64.
    With ``keep_dtype`` the image has the input's type and scaling: values are rounded and clipped to its range, and
    unchanged voxels keep their stored value.

    Raises:
        CaseError: the input can no longer be read.
    """
    template = loaded.template
    if keep_dtype:
        return _stored_like(loaded, volume_XYZ)
    header = template.header.copy()
    values_XYZ = _exact(loaded, volume_XYZ)
    header.set_data_dtype(values_XYZ.dtype)
    header.set_slope_inter(1, 0)
    return type(template)(values_XYZ.reshape(template.shape), template.affine, header, template.extra)


def _exact(loaded: LoadedCase, volume_XYZ: np.ndarray) -> np.ndarray:
    """Return the volume as float32, or as float64 if unchanged voxels need it, with their values from the input."""
    volume_XYZ = volume_XYZ.astype(np.float32)
    dtype = loaded.template.get_data_dtype()
    if dtype.itemsize < 4 or (dtype.kind == "f" and dtype.itemsize == 4):
        return volume_XYZ
    exact_XYZ = nifti.exact_values(loaded.template)
    rounded_XYZ = (volume_XYZ == loaded.image_XYZ) & (exact_XYZ != loaded.image_XYZ)
    if not rounded_XYZ.any():
        return volume_XYZ
    return np.where(rounded_XYZ, exact_XYZ, volume_XYZ)


def _stored_like(loaded: LoadedCase, volume_XYZ: np.ndarray) -> Nifti1Image:
    template = loaded.template
    slope, inter = (getattr(template.dataobj, name, default) for name, default in (("slope", 1.0), ("inter", 0.0)))
    stored_XYZ = nifti.unscaled(template).reshape(loaded.image_XYZ.shape)
    values_XYZ = (volume_XYZ.astype(np.float64) - inter) / slope
    if stored_XYZ.dtype.kind in "iu":
        limits = np.iinfo(stored_XYZ.dtype)
        values_XYZ = np.clip(np.rint(values_XYZ), limits.min, limits.max)
    kept_XYZ = np.where(volume_XYZ == loaded.image_XYZ, stored_XYZ, values_XYZ.astype(stored_XYZ.dtype))
    image = type(template)(kept_XYZ.reshape(template.shape), template.affine, template.header.copy(), template.extra)
    image.header.set_slope_inter(slope, inter)  # the constructor resets it
    return image


def array_like(loaded: LoadedCase, volume_XYZ: np.ndarray) -> np.ndarray:
    """Return an array with the input's shape, which may have trailing axes of length one."""
    return volume_XYZ.reshape(loaded.template.shape)


def save(image: Nifti1Image, path: Path) -> None:
    """Write an image atomically, as NIfTI or FreeSurfer volume by the suffix of ``path``.

    A FreeSurfer volume has no float64: its voxels are float32 then.

    Raises:
        CaseError: the disk is full or the folder cannot be written.
    """
    try:
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            nifti.write(image, file, name=path.name)
    except OSError as error:
        raise CaseError(f"{path.name}: cannot be written to {path.parent} ({error.strerror or error}).") from error
