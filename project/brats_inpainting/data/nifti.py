"""Defensive NIfTI reading: validate the header before allocating."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.arrayproxy import is_proxy
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image
from nibabel.openers import Opener
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError, SpatialImage
from nibabel.wrapstruct import WrapStructError

from brats_inpainting.errors import CaseError
from brats_inpainting.host import muted

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the affine of a bare array: BraTS order, 1 mm
MAX_VOXELS = 512**3
MAX_OFFSET = 2**26  # bytes before the voxels (64 MB): larger header extensions are rejected
MAX_TRAILING = 2**26  # bytes after the voxels that are read to verify the checksum
ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError, WrapStructError)


def read(path: Path) -> Nifti1Image:
    """Open a NIfTI file after validating its header and length.

    Raises:
        CaseError: the file is missing, damaged, or not a numeric volume.
    """
    try:
        # from_bytes would keep the whole file in memory, and still need the bounded read below.
        with muted():  # nibabel warns of harmless oddities in headers
            image = _image_class(path).from_filename(path)
        check(image, path.name)
        _check_length(path, int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize)
    except CaseError:
        raise
    except ERRORS as error:
        raise CaseError(f"{path.name}: not a NIfTI file, or damaged ({error}). Export it again.") from error
    return image


def as_image(given: Any) -> SpatialImage:
    """Read a path, or wrap an array as an LPS volume with 1 mm voxels; images are returned unchanged.

    Raises:
        CaseError: the file cannot be read, or the array is not numeric.
    """
    if isinstance(given, str | Path):
        return read(Path(given))
    if isinstance(given, SpatialImage):
        return given
    values = np.asarray(given)
    if values.dtype.kind not in "biuf":
        raise CaseError(f"image or mask: {type(given).__name__}, neither numbers nor an image\n  Read it with nibabel.")
    return Nifti1Image(values.astype(np.float32), LPS)


def check(image: object, name: str) -> None:
    """Validate an image's header before its voxels are read.

    Raises:
        CaseError: it does not describe one numeric 3D volume of at most MAX_VOXELS.
    """
    if not isinstance(image, Nifti1Image):
        raise CaseError(f"{name}: {type(image).__name__}, not NIfTI. Convert it to .nii.gz.")
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise CaseError(f"{name}: {format_shape(shape)} voxels, but one 3D volume is needed. Extract one volume.")
    if dtype.kind not in "iuf":
        raise CaseError(f"{name}: voxels of type {dtype}, but numbers are needed. Convert it to float32.")
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise CaseError(f"{name}: {format_shape(shape)} voxels, more than {MAX_VOXELS:,}. Crop it.")
    if not np.isfinite(image.affine).all() or np.isnan(io_orientation(image.affine)).any():
        raise CaseError(f"{name}: its affine does not span three dimensions. Repair the header.")


def write(image: Nifti1Image, file: BinaryIO, *, compress: bool) -> None:
    """Write an image as nibabel does for .nii or .nii.gz; a temporary file's name has neither suffix."""
    if not compress:
        image.to_stream(file)
        return
    with gzip.GzipFile("", "wb", Opener.default_compresslevel, file, mtime=0) as compressed:
        image.to_stream(compressed)


def values(image: Nifti1Image) -> np.ndarray:
    """Return the scaled values, X × Y × Z, float32; overflow gives infinity, which validation reports.

    Raises:
        CaseError: the file can no longer be read.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _voxels(image, np.asanyarray).reshape(image.shape[:3]).astype(np.float32)


def unscaled(image: Nifti1Image) -> np.ndarray:
    """Return the stored values, without scaling.

    Raises:
        CaseError: the file can no longer be read.
    """
    return _voxels(image, lambda data: data.get_unscaled() if is_proxy(data) else np.asanyarray(data))


def format_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text, such as 240×240×155."""
    return "×".join(map(str, shape))


def _voxels(image: Nifti1Image, get: Callable[[Any], np.ndarray]) -> np.ndarray:
    try:
        return get(image.dataobj)
    except ERRORS as error:
        name = Path(image.get_filename() or "image").name
        raise CaseError(f"{name}: its voxels can no longer be read ({error}). Is the file still there?") from error


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _image_class(path: Path) -> type[Nifti1Image]:
    """Return the class for a NIfTI-1 or -2 file, after validating the lengths of its header extensions.

    nibabel trusts an extension's length, and reads to the end of the file if it is negative.
    """
    if not path.is_file():
        what = "a folder, a pipe or a device, not a file" if path.exists() else "no such file"
        raise CaseError(f"{path.name}: {what} in {path.parent}. Put it there. Found: {listing(path.parent)}.")
    with _opened(path) as file:
        start = file.read(Nifti2Image.header_class.sizeof_hdr)
        kind = Nifti2Image if start[4:8] == b"n+2\0" else Nifti1Image
        size = kind.header_class.sizeof_hdr
        if kind is Nifti1Image and start[344:348] != b"n+1\0":
            raise CaseError(f"{path.name}: not a NIfTI file (.nii or .nii.gz), or damaged. Convert it to .nii.gz.")
        header = kind.header_class(start[:size], check=False)
        offset = int(header["vox_offset"])
        if not 0 <= offset <= MAX_OFFSET:
            raise CaseError(f"{path.name}: its header puts the voxels at byte {offset:,}. Export it again.")
        held = start + file.read(max(0, offset - len(start)))
    at = size + 4
    while held[size : size + 1] > b"\0" and offset - at >= 16:
        length = int(np.frombuffer(held, f"{header.endianness}i4", 1, at)[0])
        if not 8 <= length <= offset - at:
            raise CaseError(f"{path.name}: damaged, a header extension of {length:,} bytes. Export it again.")
        at += length
    return kind


def listing(folder: Path) -> str:
    """Return the names of a folder's first five files, in printable ASCII."""
    try:
        names = [ascii(path.name)[1:-1] for path in sorted(folder.iterdir())]
    except OSError:
        return "nothing readable"
    return ", ".join([*names[:5], *(["..."] if names[5:] else [])]) or "nothing"


def _check_length(path: Path, needed: int) -> None:
    """Read a file in chunks to verify that it is as long as its header requires."""
    held = 0
    try:
        with _opened(path) as file:
            while held < needed + MAX_TRAILING and (chunk := file.read(2**20)):  # gzip's checksum is at the end
                held += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise CaseError(f"{path.name}: truncated or damaged ({error}). Copy it again.") from error
    if held < needed:
        raise CaseError(f"{path.name}: has {held:,} bytes, but its header requires {needed:,}. Copy it again.")
