"""Defensive NIfTI reading: validate the header before allocating."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.arrayproxy import ArrayProxy, is_proxy
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.openers import Opener
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError, SpatialImage
from nibabel.wrapstruct import WrapStructError

from brats_inpainting.data import freesurfer
from brats_inpainting.data.source import Source, describe
from brats_inpainting.errors import CaseError
from brats_inpainting.host import muted

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the affine of a bare array: BraTS order, 1 mm
MAX_VOXELS = 512**3
MAX_OFFSET = 2**26  # bytes before the voxels (64 MB): larger header extensions are rejected
QUATERNION_TOLERANCE = 1e-3  # of the squared length of b c d
MILLIMETRES = {1: 1000.0, 3: 0.001}  # of a header's unit: metre, micrometre
ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError, WrapStructError)


class _Header(Nifti1Header):  # type: ignore[misc]
    """A NIfTI-1 header whose quaternion may be longer than 1 by rounding, as ITK and FSL accept it."""

    def get_qform_quaternion(self) -> np.ndarray:
        """Return the quaternion a b c d; if b c d are too long, a is 0 and the others are normalised, as ITK does."""
        try:
            return super().get_qform_quaternion()
        except ValueError:
            bcd = np.array([self[f"quatern_{axis}"] for axis in "bcd"], np.float64)
            if not bcd @ bcd < 1 + QUATERNION_TOLERANCE:
                raise
            return np.r_[0, bcd / np.linalg.norm(bcd)]


class _Header2(_Header, Nifti2Header):  # type: ignore[misc]
    """Likewise, NIfTI-2."""


class _Image(Nifti1Image):  # type: ignore[misc]
    header_class = _Header


class _Image2(Nifti2Image):  # type: ignore[misc]
    header_class = _Header2


def read(path: Path) -> Nifti1Image:
    """Open a NIfTI file or FreeSurfer volume, compressed or not, after validating its header and length.

    The format is recognised by the first bytes, not by the name. Voxels are read when they are needed.

    Raises:
        CaseError: the file is missing, damaged, or not a numeric volume.
    """
    try:
        source = Source(path)  # not Nifti1Image.from_bytes, which would hold the whole file
        with muted():  # nibabel warns of harmless oddities in headers
            header = _header(source)
            affine = header.get_best_affine().astype(np.float64)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        _check_grid(shape, dtype, affine, path.name)
        source.check_length(header.get_data_offset() + math.prod(map(int, shape)) * dtype.itemsize)
        if isinstance(header, MGHHeader):
            return freesurfer.as_nifti(header, affine, source)
        image_class = _Image2 if isinstance(header, _Header2) else _Image
        voxels, where = ArrayProxy(source, header, mmap=False), {"image": FileHolder(str(path))}
        with muted():
            return image_class(voxels, affine, header, file_map=where)
    except CaseError:
        raise
    except PermissionError as error:
        raise CaseError(f"{path.name}: cannot be read ({error.strerror}). Run chmod a+r on it.") from error
    except ERRORS as error:
        raise CaseError(f"{path.name}: not a NIfTI file, or damaged ({error}). Export it again.") from error


def as_image(given: Any, affine: np.ndarray = LPS) -> SpatialImage:
    """Read a path, or wrap an array as a volume with an affine; NIfTI images are returned unchanged.

    Raises:
        CaseError: the file cannot be read, or the array is not numeric.
    """
    if isinstance(given, str | Path):
        return read(Path(given))
    if isinstance(given, MGHImage):
        return Nifti1Image(given.dataobj, given.affine)
    if isinstance(given, SpatialImage):
        return given
    values = np.asarray(given)
    if values.dtype.kind not in "biuf":
        raise CaseError(f"image or mask: {type(given).__name__}, neither numbers nor an image\n  Read it with nibabel.")
    return Nifti1Image(values.astype(np.float32), affine)


def check(image: object, name: str) -> None:
    """Validate an image's header before its voxels are read.

    Raises:
        CaseError: it does not describe one numeric 3D volume of at most MAX_VOXELS.
    """
    if not isinstance(image, Nifti1Image):
        raise CaseError(f"{name}: {type(image).__name__}, not NIfTI. Convert it to .nii.gz.")
    _check_grid(image.shape, image.get_data_dtype(), image.affine, name)


def affine_mm(image: Nifti1Image) -> np.ndarray:
    """Return the affine in millimetres; the image's own may be in metres or micrometres, as its header's units say."""
    unit = int(image.header["xyzt_units"]) % 8
    return np.diag([*[MILLIMETRES.get(unit, 1.0)] * 3, 1.0]) @ image.affine


def write(image: Nifti1Image, file: BinaryIO, *, name: str) -> None:
    """Write an image in the format of a name's suffix: .nii.gz, .nii, .mgz or .mgh."""
    suffix = Path(name).suffix
    if suffix in {".gz", ".mgz"}:
        with gzip.GzipFile("", "wb", Opener.default_compresslevel, file, mtime=0) as compressed:
            _write(image, compressed, suffix)
    else:
        _write(image, file, suffix)


def values(image: Nifti1Image) -> np.ndarray:
    """Return the scaled values, X × Y × Z, float32; overflow gives infinity, which validation reports.

    Raises:
        CaseError: the file can no longer be read.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _voxels(image, np.asanyarray).reshape(image.shape[:3]).astype(np.float32)


def exact_values(image: Nifti1Image) -> np.ndarray:
    """Return the scaled values, X × Y × Z, float64.

    Raises:
        CaseError: the file can no longer be read.
    """
    return _voxels(image, np.asanyarray).reshape(image.shape[:3]).astype(np.float64, copy=False)


def unscaled(image: Nifti1Image) -> np.ndarray:
    """Return the stored values, without scaling.

    Raises:
        CaseError: the file can no longer be read.
    """
    return _voxels(image, lambda data: data.get_unscaled() if is_proxy(data) else np.asanyarray(data))


def format_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text, such as 240×240×155."""
    return "×".join(map(str, shape))


def _write(image: Nifti1Image, file: BinaryIO | gzip.GzipFile, suffix: str) -> None:
    if suffix in freesurfer.SUFFIXES:
        freesurfer.write(image, affine_mm(image), file)
    else:
        image.to_stream(file)


def _voxels(image: Nifti1Image, get: Callable[[Any], np.ndarray]) -> np.ndarray:
    try:
        return get(image.dataobj)
    except ERRORS as error:
        name = Path(image.get_filename() or "image").name
        raise CaseError(f"{name}: its voxels can no longer be read ({error}). Is the file still there?") from error


def _check_grid(shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray, name: str) -> None:
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise CaseError(f"{name}: {format_shape(shape)} voxels, but one 3D volume is needed. Extract one volume.")
    if dtype.kind not in "iuf":
        raise CaseError(f"{name}: voxels of type {dtype}, but numbers are needed. Convert it to float32.")
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise CaseError(f"{name}: {format_shape(shape)} voxels, more than {MAX_VOXELS:,}. Crop it.")
    if not np.isfinite(affine).all() or np.isnan(io_orientation(affine)).any():
        raise CaseError(f"{name}: its affine does not span three dimensions. Repair the header.")


def _header(source: Source) -> Nifti1Header | MGHHeader:
    """Return the header in a file's first bytes.

    nibabel trusts the length of a header extension, and reads to the end of the file if it is negative. So lengths are
    validated first, and it only sees the bytes before the voxels.
    """
    name = source.path.name
    with source.open() as file:
        start = file.read(Nifti2Header.sizeof_hdr)
        if start.startswith(freesurfer.MAGIC):
            return freesurfer.header_of(start, name)
        kind = _Header2 if start[4:8] == b"n+2\0" else _Header
        if kind is _Header and start[344:348] != b"n+1\0":
            raise CaseError(describe(source.path, start))
        header = kind(start[: kind.sizeof_hdr], check=False)
        offset = int(header["vox_offset"])
        if not 0 <= offset <= MAX_OFFSET:
            raise CaseError(f"{name}: its header puts the voxels at byte {offset:,}. Export it again.")
        held = start + file.read(max(0, offset - len(start)))
    _check_extensions(held, header, offset, name)
    header = kind.from_fileobj(BytesIO(held))
    trailing = header["dim"][4 : header["dim"][0] + 1]
    trailing[trailing == 0] = 1  # as ITK and FSL read it
    return header


def _check_extensions(held: bytes, header: Nifti1Header, offset: int, name: str) -> None:
    size = header.sizeof_hdr
    at = size + 4
    while held[size : size + 1] > b"\0" and offset - at >= 16:
        length = int(np.frombuffer(held, f"{header.endianness}i4", 1, at)[0])
        if not 8 <= length <= offset - at:
            raise CaseError(f"{name}: damaged, a header extension of {length:,} bytes. Export it again.")
        at += length
