"""Writing files atomically, checking output folders, and hashing; nothing here imports torch."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import IO

from brats_inpainting import container
from brats_inpainting.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: temporary folders of killed runs stay
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".partial-"  # prefix of a temporary folder's name
UNFINISHED = "unfinished.part"  # a name that no client's pattern for results matches
LOCK = "lock"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``path`` when the block succeeds, and is removed when it fails.

    The unfinished file lies in a temporary folder of this writer, next to ``path``.
    """
    with _temporary_folder(path.parent) as folder:
        unfinished = folder / UNFINISHED
        yield unfinished
        unfinished.replace(path)


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder that holds a locked file while its writer lives, so that no other run removes it."""
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(parent: Path) -> tuple[Path, IO[str]]:
    """Make the folder and lock the file in it; once more if another run removed it before it was locked."""
    while True:
        folder = Path(mkdtemp(prefix=TEMPORARY, dir=parent))
        with suppress(FileNotFoundError):
            lock = (folder / LOCK).open("w")
            _lock(lock, wait=True)
            if (folder / LOCK).exists():
                return folder, lock
            lock.close()


def _lock(file: IO[str], *, wait: bool) -> bool:
    """Lock an open file for this process; return whether that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (OSError, AttributeError):  # locked by another process, or locks are not supported
        return False
    return True


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of killed writers; those of live ones are locked, and stay."""
    for folder in parent.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # of another user, or gone meanwhile
            if not (folder / LOCK).exists():
                folder.rmdir()  # fails unless it is empty
                continue
            with (folder / LOCK).open("r+") as lock:
                if _lock(lock, wait=False):
                    shutil.rmtree(folder)


def make_writable(folder: Path) -> None:
    """Create a folder, check that files can be written there, and remove what killed runs left behind.

    Raises:
        ConfigError: when that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(folder):
            remove_leftovers(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: no folder that can be written ({error.strerror})\n"
            "  Give another, or mount it writable. In a container, make it before, and run as its owner:\n"
            "  --user $(id -u):$(id -g)."
        ) from error
    container.warn_if_lost(folder)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar_name(filled: Path, kind: str) -> str:
    """Return the file name of an auxiliary volume of a filled scan: ``std``, ``sample-1``."""
    return re.sub(r"(\.nii(\.gz)?|\.mg[zh])$", rf"-{kind}\1", filled.name)
