"""FreeSurfer volumes, ``.mgz`` and ``.mgh``, read as NIfTI images in memory, and written."""

from __future__ import annotations

import gzip
from typing import BinaryIO

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.fileholders import FileHolder
from nibabel.freesurfer.mghformat import MGHError, MGHHeader, MGHImage, footer_dtype, header_dtype
from nibabel.nifti1 import Nifti1Header, Nifti1Image

from brats_inpainting.data.source import Source
from brats_inpainting.errors import CaseError

SUFFIXES = (".mgz", ".mgh")
MAGIC = b"\0\0\0\1"  # version 1, big-endian; a NIfTI file starts with its header's size
TYPES = (0, 1, 3, 4, 10)  # uint8, int32, float32, int16, uint16
HEADER = "mgh"  # key of the FreeSurfer header among a NIfTI image's extras


def header_of(start: bytes, name: str) -> MGHHeader:
    """Return the header in a file's first bytes; the repetition time and others follow the voxels.

    Raises:
        CaseError: the voxels are of a type that has no counterpart here.
    """
    header = MGHHeader(start[: header_dtype.itemsize])
    if (code := int(header["type"])) not in TYPES:
        raise CaseError(f"{name}: voxels of FreeSurfer's type {code}. Convert it with mri_convert -odt float.")
    return header


def as_nifti(header: MGHHeader, affine: np.ndarray, source: Source) -> Nifti1Image:
    """Return a volume as a NIfTI image whose voxels are read when they are needed.

    Its sform and qform have code 1 if its orientation is known, its unit is mm, and ``write`` finds its FreeSurfer
    header.
    """
    source.seek(header.get_footer_offset())
    complete = MGHHeader(header.binaryblock[: header_dtype.itemsize] + source.read(footer_dtype.itemsize))
    nifti = Nifti1Header()
    nifti.set_data_shape(header.get_data_shape())
    nifti.set_data_dtype(header.get_data_dtype())
    nifti.set_xyzt_units("mm")
    code = int(header["goodRASFlag"] != 0)  # otherwise coronal slices are assumed
    nifti.set_sform(affine, code)
    nifti.set_qform(affine, code)
    voxels = ArrayProxy(source, (nifti.get_data_shape(), header.get_data_dtype(), header.get_data_offset()), mmap=False)
    where = {"image": FileHolder(str(source.path))}
    return Nifti1Image(voxels, affine, nifti, extra={HEADER: complete}, file_map=where)


def write(image: Nifti1Image, affine_mm: np.ndarray, file: BinaryIO | gzip.GzipFile) -> None:
    """Write a NIfTI image as FreeSurfer volume, in its own data type, or float32 where FreeSurfer has no such type.

    An image that was read from a FreeSurfer volume keeps that header's fields.
    """
    voxels_XYZ = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    slope, inter = image.header.get_slope_inter()
    if slope not in {None, 1} or inter not in {None, 0}:
        voxels_XYZ = (voxels_XYZ * slope + (inter or 0)).astype(np.float32)
    volume = MGHImage(voxels_XYZ, affine_mm, image.extra.get(HEADER))
    try:
        volume.set_data_dtype(voxels_XYZ.dtype.newbyteorder("="))
    except MGHError:
        volume.set_data_dtype(np.float32)
    volume.to_stream(file)
