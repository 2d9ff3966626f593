"""One NIfTI file of which nothing is believed: what its header says is looked at before memory is taken for it."""

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
MAX_OFFSET = 2**26  # bytes before the voxels: 64 MB of header extensions, more than any scanner or tool writes
SLACK = 2**26  # bytes behind the voxels that are read to check them; nobody needs more
DAMAGE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError, WrapStructError)


def read(path: Path) -> Nifti1Image:
    """Open one NIfTI file; refuse what lies about its size before memory is taken for it.

    Raises:
        CaseError: when it is missing, damaged, or no volume of numbers.
    """
    try:
        # Not from_bytes: the chunked, bounded read below would remain, and each image would keep its file in memory.
        with muted():  # of oddities in a header that change nothing
            image = _kind(path).from_filename(path)
        check(image, path.name)
        _check_length(path, int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize)
    except CaseError:
        raise
    except DAMAGE as error:
        raise CaseError(f"{path.name}: not a NIfTI file, or a damaged one ({error}). Export it again.") from error
    return image


def as_image(given: Any) -> SpatialImage:
    """Read a path, and take an array as an LPS volume with voxels of 1 mm; return images as they are.

    Raises:
        CaseError: when a file cannot be read, or what is given holds no numbers.
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
    """Look at everything that a header says before the voxels are read.

    Raises:
        CaseError: when it does not describe one volume of numbers, of a size that can be worked with.
    """
    if not isinstance(image, Nifti1Image):
        raise CaseError(f"{name}: {type(image).__name__}, not NIfTI. Convert it to .nii.gz.")
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise CaseError(f"{name}: {times(shape)} voxels, but one 3D volume is needed. Extract one volume.")
    if dtype.kind not in "iuf":
        raise CaseError(f"{name}: voxels of type {dtype}, but numbers are needed. Convert it to float32.")
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise CaseError(f"{name}: {times(shape)} voxels, more than {MAX_VOXELS:,}. Crop it.")
    if not np.isfinite(image.affine).all() or np.isnan(io_orientation(image.affine)).any():
        raise CaseError(f"{name}: its affine does not span three dimensions. Repair the header.")


def write(image: Nifti1Image, file: BinaryIO, *, compress: bool) -> None:
    """Write the bytes that nibabel writes to a .nii or .nii.gz; a hidden file's name does not tell it which."""
    if not compress:
        image.to_stream(file)
        return
    with gzip.GzipFile("", "wb", Opener.default_compresslevel, file, mtime=0) as compressed:
        image.to_stream(compressed)


def values(image: Nifti1Image) -> np.ndarray:
    """Return the scaled values, X × Y × Z, float32; what overflows becomes infinite, and is reported as such.

    Raises:
        CaseError: when the file can no longer be read.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _voxels(image, np.asanyarray).reshape(image.shape[:3]).astype(np.float32)


def stored(image: Nifti1Image) -> np.ndarray:
    """Return the numbers as the file has them, without their scaling.

    Raises:
        CaseError: when the file can no longer be read.
    """
    return _voxels(image, lambda data: data.get_unscaled() if is_proxy(data) else np.asanyarray(data))


def times(shape: tuple[int, ...]) -> str:
    """Write a shape for people."""
    return "×".join(map(str, shape))


def _voxels(image: Nifti1Image, get: Callable[[Any], np.ndarray]) -> np.ndarray:
    try:
        return get(image.dataobj)
    except DAMAGE as error:
        name = Path(image.get_filename() or "image").name
        raise CaseError(f"{name}: its voxels can no longer be read ({error}). Is the file still there?") from error


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _kind(path: Path) -> type[Nifti1Image]:
    """Tell NIfTI-1 and -2 from everything else by the first bytes, and follow the extensions before the voxels.

    nibabel reads as many bytes as an extension says, to the end of the file for a negative number.
    """
    if not path.is_file():
        what = "a folder, a pipe or a device, not a file" if path.exists() else "no such file"
        raise CaseError(f"{path.name}: {what} in {path.parent}. Put it there. Found: {listing(path.parent)}.")
    with _opened(path) as file:
        start = file.read(Nifti2Image.header_class.sizeof_hdr)
        kind = Nifti2Image if start[4:8] == b"n+2\0" else Nifti1Image
        size = kind.header_class.sizeof_hdr
        if kind is Nifti1Image and start[344:348] != b"n+1\0":
            raise CaseError(f"{path.name}: not a NIfTI file of its own, or a damaged one. Convert it to .nii.gz.")
        header = kind.header_class(start[:size], check=False)
        offset = int(header["vox_offset"])
        if not 0 <= offset <= MAX_OFFSET:
            raise CaseError(f"{path.name}: its voxels are said to begin at byte {offset:,}. Export it again.")
        held = start + file.read(max(0, offset - len(start)))
    at = size + 4
    while held[size : size + 1] > b"\0" and offset - at >= 16:
        length = int(np.frombuffer(held, f"{header.endianness}i4", 1, at)[0])
        if not 8 <= length <= offset - at:
            raise CaseError(f"{path.name}: damaged, a header extension of {length:,} bytes. Export it again.")
        at += length
    return kind


def listing(folder: Path) -> str:
    """Name the first five files of a folder, in characters that every terminal shows."""
    try:
        names = [ascii(path.name)[1:-1] for path in sorted(folder.iterdir())]
    except OSError:
        return "nothing that can be read"
    return ", ".join([*names[:5], *(["..."] if names[5:] else [])]) or "nothing at all"


def _check_length(path: Path, needed: int) -> None:
    """Read through a file, a little at a time, to learn whether it holds what its header promises."""
    held = 0
    try:
        with _opened(path) as file:
            while held < needed + SLACK and (chunk := file.read(2**20)):  # gzip's checksum stands at the very end
                held += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise CaseError(f"{path.name}: truncated or damaged ({error}). Copy it again.") from error
    if held < needed:
        raise CaseError(f"{path.name}: holds {held:,} bytes, but its header promises {needed:,}. Copy it again.")
