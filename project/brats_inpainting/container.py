"""What differs in the container image: no more packages, folders that are mounted, and what is lost with it."""

from __future__ import annotations

import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path

from brats_inpainting.errors import ConfigError

INSIDE = "BRATS_INPAINTING_FOLDERS" in os.environ
MOUNTS = Path("/proc/self/mountinfo")  # fields 4 and 5: the folder in its own file system, the mount point
NAMELESS = re.compile(r"mlcube_io\d+")  # how MLCube names mount points

log = logging.getLogger(__name__)


def offers(module: str) -> bool:
    """Return whether help lists what needs an optional package; in the image, only what is installed."""
    return not INSIDE or find_spec(module) is not None


def missing(what: str, extra: str) -> ConfigError:
    """Return the error for an optional package that is not installed."""
    command = f"pip install 'brats-inpainting[{extra}]'"
    where = "The image has no more packages: outside the container, run" if INSIDE else "Run"
    return ConfigError(f"{what}\n  {where} {command}.")


def warn_if_lost(folder: Path) -> None:
    """Warn, in the container, of a folder that is not on the host and so is removed with the container."""
    folder = folder.resolve()
    if INSIDE and not any(os.path.ismount(path) for path in [folder, *folder.parents][:-1]):
        log.warning(
            "%s is in the container only, and lost with it; mount a folder of yours there: -v FOLDER:%s", folder, folder
        )


def name_of(folder: Path) -> str:
    """Return the name of a folder; of a mount point named by MLCube, that of the folder on the host."""
    folder = folder.resolve()
    if not NAMELESS.fullmatch(folder.name):
        return folder.name
    mounts = [line.split()[3:5] for line in MOUNTS.read_text().splitlines()] if MOUNTS.exists() else []
    origin = {_unescaped(point): _unescaped(root) for root, point in mounts}.get(str(folder), "")
    return Path(origin).name or folder.name


def _unescaped(path: str) -> str:
    """Undo the octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
