"""Image files as bytes, decompressed where their first bytes are gzip's; what is wrong with a file that is no image."""

from __future__ import annotations

import gzip
import zlib
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any

from brats_inpainting.errors import CaseError

MAX_TRAILING = 2**26  # bytes after the voxels that are read to verify the checksum
ANNEX = "its content is not fetched (DataLad, git-annex). Run datalad get"  # and the path
OTHER_FORMATS = (  # offset, bytes, what it is and what to do
    (0, b"version https://git-lfs", "a Git LFS pointer, not the image. Run git lfs pull."),
    (344, b"ni1\0", "the header of a .hdr/.img pair. Convert the pair with fslchfiletype NIFTI_GZ."),
    (4, b"ni2\0", "the header of a .hdr/.img pair. Convert the pair with fslchfiletype NIFTI_GZ."),
    (128, b"DICM", "a DICOM file. Convert its series with dcm2niix."),
    (0, b"NRRD", "an NRRD file. Convert it to .nii.gz, in 3D Slicer for example."),
    (0, b"\x89HDF", "an HDF5 or MINC file. Convert it with mnc2nii."),
    (0, b"CDF", "a MINC file. Convert it with mnc2nii."),
    (0, b"BZh", "compressed by bzip2. Decompress it with bunzip2."),
    (0, b"\xfd7zXZ", "compressed by xz. Decompress it with unxz."),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd. Decompress it with unzstd."),
    (0, b"PK\3\4", "a ZIP archive. Extract it."),
)


class Source(BufferedIOBase):
    """The bytes of a file, decompressed if it is gzip, whatever its name.

    An array proxy of nibabel reads voxels from it. The file is opened for each read, so no handle stays open.
    """

    def __init__(self, path: Path) -> None:
        """Check that there is a file.

        Raises:
            CaseError: there is none, or it is a folder, a pipe, a device or a broken link.
        """
        if not path.is_file():
            raise CaseError(_missing(path))
        self.path = path
        self.position = 0

    def open(self) -> gzip.GzipFile | BufferedReader:
        """Open the file at its beginning."""
        with self.path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        return gzip.open(self.path, "rb") if compressed else self.path.open("rb")

    def seek(self, position: int, _whence: int = 0) -> int:
        """Choose where the next read begins."""
        self.position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        """Return up to ``size`` bytes."""
        with self.open() as file:
            file.seek(self.position)
            content = file.read(size)
        self.position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and return the number of bytes read."""
        with self.open() as file:
            file.seek(self.position)
            count = file.readinto(buffer)
        self.position += count
        return count

    def check_length(self, needed: int) -> None:
        """Read the file in chunks to verify its checksum, and that it has as many bytes as its header requires.

        Raises:
            CaseError: it is damaged or too short.
        """
        held = 0
        try:
            with self.open() as file:
                while held < needed + MAX_TRAILING and (chunk := file.read(2**20)):  # gzip's checksum is at the end
                    held += len(chunk)
        except (EOFError, OSError, zlib.error) as error:
            raise CaseError(f"{self.path.name}: truncated or damaged ({error}). Copy it again.") from error
        if held < needed:
            raise CaseError(f"{self.path.name}: has {held:,} bytes, but its header requires {needed:,}. Copy it again.")


def describe(path: Path, start: bytes) -> str:
    """Return what a file is that is no NIfTI or FreeSurfer volume, by its first bytes, and what to do."""
    for offset, magic, meaning in OTHER_FORMATS:
        if start[offset:].startswith(magic):
            return f"{path.name}: {meaning}"
    if b"annex/objects/" in start[:300]:  # git-annex writes this text in place of a link
        return f"{path.name}: {ANNEX} {path}"
    if not start:
        return f"{path.name}: empty, so probably truncated. Copy it again."
    return f"{path.name}: not a NIfTI file (.nii or .nii.gz), or damaged. Convert it to .nii.gz, or copy it again."


def listing(folder: Path) -> str:
    """Return the names of a folder's first five files, in printable ASCII."""
    try:
        names = [_printable(path.name) for path in sorted(folder.iterdir())]
    except OSError:
        return "nothing readable"
    return ", ".join([*names[:5], *(["..."] if names[5:] else [])]) or "nothing"


def _missing(path: Path) -> str:
    """Return why a path is not a file, and what to do."""
    if path.is_symlink() and not path.exists():
        target = _printable(str(path.readlink()))
        advice = f"{ANNEX} {path}" if "annex/objects" in target else "copy that file too, or mount its folder."
        return f"{path.name}: a link to {target}, which does not exist: {advice}"
    what = "a folder, a pipe or a device, not a file" if path.exists() else "no such file"
    return f"{path.name}: {what} in {path.parent}. Put it there. Found: {listing(path.parent)}."


def _printable(name: str) -> str:
    return ascii(name)[1:-1]
