"""How much memory is free, in a container too, and how many slices, or voxels of a box, fit into it.

On a CPU running out of memory cannot be caught.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

from brats_inpainting.config import FRAME, UNetConfig
from brats_inpainting.errors import ConfigError

# Peak of a float32 pass over slices of 224 × 224, in feature maps of the network's width, where freed memory is kept:
# the paper's takes at most 347 MB a slice (13.5 maps), small-2 at most 76 MB (11.9 maps): docs/reliability.md.
MAPS = 16
BOX_MAPS = 20  # likewise of a pass over a box, in maps of its first level: volume-1 takes at most 18.3
SHARE = 0.5  # of what is free; the rest is for those who share the machine
BESIDE = {2: 430 * 2**20, 3: 500 * 2**20}  # bytes by dimensions: scans, what libraries take; from the start of a fill
UNLIMITED = 2**60  # cgroup v1 writes a number beyond all memory where there is no limit


def batch_size(unet: UNetConfig, most: int, limit: int | None = None) -> int:
    """Return how many slices, 1 to ``most``, a network can take at a time in the memory that is free, or allowed."""
    available = min((size for size in (free(), limit) if size is not None), default=None)
    if available is None:
        return most
    return max(1, min(most, int(SHARE * (available - BESIDE[2]) / (FRAME**2 * _voxel_bytes(unet)))))


def batches(unet: UNetConfig, size: int, most: int, limit: int | None = None) -> int:
    """Return how many batches of so many slices, 1 to ``most``, fit likewise; 1 where nothing tells what is free."""
    nothing_tells = free() is None and limit is None
    return 1 if nothing_tells else max(1, batch_size(unet, size * most, limit) // size)


def most_voxels(unet: UNetConfig, device: torch.device, limit: int | None = None) -> int | None:
    """Return how many voxels a box may have in the memory that is free, or allowed; ``None`` where nothing tells."""
    available = (
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free() if device.type == "cpu" else None
    )
    known = [size for size in (available, limit if device.type == "cpu" else None) if size is not None]
    beside = BESIDE[3] if device.type == "cpu" else 0
    return max(0, int(SHARE * (min(known) - beside) / _voxel_bytes(unet))) if known else None


def short(unet: UNetConfig, voxels: int) -> bool:
    """Tell whether what is free now is not enough for a pass over a window of so many voxels."""
    available = free()
    return available is not None and available < _needed(unet, voxels)


def refuse_too_little(unet: UNetConfig, window: int) -> None:
    """Refuse to begin on a CPU whose free memory is not enough for one window: the kernel would end the process.

    Args:
        unet: the network, loaded already.
        window: the least side of a window in voxels.

    Raises:
        ConfigError: saying how much is needed, and how much is free.
    """
    needed, available = _needed(unet, window**unet.dims), free()
    if available is not None and available < needed:
        lighter = " or take --weights small-2, which needs less." if unet.dims == 3 else "."
        raise ConfigError(
            f"{available / 1e9:.2f} GB of memory are free, but a window of {window} voxels a side needs"
            f" {needed / 1e9:.2f} GB\n  Give the process more (docker run --memory 4g){lighter}"
        )


def _needed(unet: UNetConfig, voxels: int) -> float:
    """Return the bytes of a float32 pass over a window of so many voxels, or pixels, with all that is beside it."""
    return BESIDE[unet.dims] + voxels * _voxel_bytes(unet)


def _voxel_bytes(unet: UNetConfig) -> float:
    """Return the peak of a float32 pass for each voxel of its window, or pixel."""
    return (MAPS if unet.dims == 2 else BOX_MAPS) * 4 * unet.width / unet.patch**unet.dims


def free(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take: the system's, or what its cgroups leave, if that is less.

    ``root`` is where ``proc`` and ``sys`` lie. ``None`` where nothing tells, as on macOS.
    """
    system = re.search(r"MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"))
    found = [int(system[1]) * 1024] if system else []
    return min(found + _headrooms(root), default=None)


def peak() -> int:
    """Return the largest resident memory that this process has had, in bytes, PyTorch included."""
    if own := re.search(r"VmHWM:\s+(\d+) kB", _text(Path("/proc/self/status"))):
        return int(own[1]) * 1024  # not inherited from the parent on Linux, as the other is
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _headrooms(root: Path) -> list[int]:
    """Return what every memory cgroup above this process leaves; page cache that can be dropped counts as free."""
    left = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = Path(own.lstrip("/"))  # not there where a container sees its own cgroup as the root
        for folder in {mount / parent for parent in (group, *group.parents)}:
            limit, used = (_text(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit() and int(limit) < UNLIMITED:
                cache = re.search(r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                left.append(max(0, int(limit) - int(used) + (int(cache[1]) if cache else 0)))
    return left


def _text(path: Path) -> str:
    """Return what a file of the kernel says, nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
