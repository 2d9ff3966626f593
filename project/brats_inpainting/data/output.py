"""Results as NIfTI files: the input's geometry and header, written atomically."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image

from brats_inpainting.data import nifti
from brats_inpainting.data.cases import LoadedCase
from brats_inpainting.errors import CaseError
from brats_inpainting.files import atomic_write


def image_like(loaded: LoadedCase, volume_XYZ: np.ndarray, *, keep_dtype: bool = False) -> Nifti1Image:
    """Return an image with the input's shape, affine, codes, units and other header fields.

    Float32 with slope 1; with ``keep_dtype`` the input's type and scaling: values are rounded and clipped to its range,
    and unchanged voxels keep their stored value.
    """
    template = loaded.template
    header = template.header.copy()
    if not keep_dtype:
        header.set_data_dtype(np.float32)
        header.set_slope_inter(1, 0)
        return type(template)(volume_XYZ.astype(np.float32).reshape(template.shape), template.affine, header)
    slope, inter = (getattr(template.dataobj, name, default) for name, default in (("slope", 1.0), ("inter", 0.0)))
    stored_XYZ = nifti.unscaled(template).reshape(loaded.image_XYZ.shape)
    values_XYZ = (volume_XYZ.astype(np.float64) - inter) / slope
    if stored_XYZ.dtype.kind in "iu":
        limits = np.iinfo(stored_XYZ.dtype)
        values_XYZ = np.clip(np.rint(values_XYZ), limits.min, limits.max)
    kept_XYZ = np.where(volume_XYZ == loaded.image_XYZ, stored_XYZ, values_XYZ.astype(stored_XYZ.dtype))
    image = type(template)(kept_XYZ.reshape(template.shape), template.affine, header)
    image.header.set_slope_inter(slope, inter)  # the constructor resets it
    return image


def array_like(loaded: LoadedCase, volume_XYZ: np.ndarray) -> np.ndarray:
    """Return an array with the input's shape, which may have trailing axes of length one."""
    return volume_XYZ.reshape(loaded.template.shape)


def save(image: Nifti1Image, path: Path) -> None:
    """Write an image atomically.

    Raises:
        CaseError: the disk is full or the folder cannot be written.
    """
    try:
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            nifti.write(image, file, compress=path.suffix == ".gz")
    except OSError as error:
        raise CaseError(f"{path.name}: cannot be written to {path.parent} ({error.strerror or error}).") from error
