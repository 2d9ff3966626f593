"""Differences inside the container image: fixed packages, mounted folders, files that are lost with it."""

from __future__ import annotations

import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path

from brats_inpainting.errors import ConfigError

INSIDE = "BRATS_INPAINTING_FOLDERS" in os.environ
MOUNTS = Path("/proc/self/mountinfo")  # fields 4 and 5: the folder in its own file system, the mount point
NAMELESS = re.compile(r"mlcube_io\d+")  # mount points by MLCube

log = logging.getLogger(__name__)


def offers(module: str) -> bool:
    """Return whether help lists options that need a package: always, but in the image only if it is installed."""
    return not INSIDE or find_spec(module) is not None


def missing(what: str, extra: str) -> ConfigError:
    """Return the error for an optional package that is not installed."""
    command = f"pip install 'brats-inpainting[{extra}]'"
    where = "The image does not include it. Outside the container, run" if INSIDE else "Run"
    return ConfigError(f"{what}\n  {where} {command}.")


def warn_if_lost(folder: Path) -> None:
    """Warn if a folder is inside the container only and will be removed with it."""
    folder = folder.resolve()
    if INSIDE and not any(os.path.ismount(path) for path in [folder, *folder.parents][:-1]):
        log.warning("%s is in the container only; to keep it, mount a host folder: -v FOLDER:%s", folder, folder)


def name_of(folder: Path) -> str:
    """Return a folder's name; for a mount point by MLCube, that of the folder on the host."""
    folder = folder.resolve()
    if not NAMELESS.fullmatch(folder.name):
        return folder.name
    mounts = [line.split()[3:5] for line in MOUNTS.read_text().splitlines()] if MOUNTS.exists() else []
    origin = {_unescaped(point): _unescaped(root) for root, point in mounts}.get(str(folder), "")
    return Path(origin).name or folder.name


def _unescaped(path: str) -> str:
    """Decode octal escapes, such as those of spaces."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
