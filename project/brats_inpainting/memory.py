"""Free memory, cgroup limits included, and the batch sizes and boxes that fit into it.

Running out of memory on a CPU cannot be caught, so it is avoided by planning.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from brats_inpainting.config import FRAME, UNetConfig
from brats_inpainting.errors import ConfigError

# Peak memory of a float32 pass over slices of 224 × 224, in feature maps of the network's width. Measured: 13.5 maps
# (347 MB per slice) for the paper's network, 11.9 maps (76 MB) for small-2, by tests/reliability/memory.py.
MAPS = 16
BOX_MAPS = 20  # likewise for a box, in maps of the first level; measured: 18.3 for volume-1
SHARE = 0.5  # of free memory; the rest is left to other processes
OVERHEAD = {2: 430 * 2**20, 3: 500 * 2**20}  # bytes by dimensions: scans and libraries
UNLIMITED = 2**60  # cgroup v1 reports a huge number for no limit


def batch_size(unet: UNetConfig, most: int, limit: int | None = None) -> int:
    """Return the batch size, 1 to ``most`` slices, that fits into free memory and ``limit`` bytes."""
    available = min((size for size in (free(), limit) if size is not None), default=None)
    if available is None:
        return most
    return max(1, min(most, int(SHARE * (available - OVERHEAD[2]) / (FRAME**2 * _voxel_bytes(unet)))))


def batches(unet: UNetConfig, size: int, most: int, limit: int | None = None) -> int:
    """Return how many batches of ``size`` slices, 1 to ``most``, fit likewise; 1 if free memory is unknown."""
    unknown = free() is None and limit is None
    return 1 if unknown else max(1, batch_size(unet, size * most, limit) // size)


def most_voxels(unet: UNetConfig, device: torch.device, limit: int | None = None) -> int | None:
    """Return the largest number of voxels of a box that fits likewise; ``None`` if free memory is unknown."""
    available = (
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free() if device.type == "cpu" else None
    )
    known = [size for size in (available, limit if device.type == "cpu" else None) if size is not None]
    overhead = OVERHEAD[3] if device.type == "cpu" else 0
    return max(0, int(SHARE * (min(known) - overhead) / _voxel_bytes(unet))) if known else None


def too_little_for(unet: UNetConfig, voxels: int) -> bool:
    """Return whether free memory is insufficient for a pass over a window of ``voxels`` voxels."""
    available = free()
    return available is not None and available < _needed(unet, voxels)


def refuse_too_little(unet: UNetConfig, window: int) -> None:
    """Raise an error if free memory is insufficient for one window: the kernel would kill the process.

    Args:
        unet: the network, already in memory.
        window: the smallest side of a window in voxels.

    Raises:
        ConfigError: with the needed and the free memory.
    """
    needed, available = _needed(unet, window**unet.dims), free()
    if available is not None and available < needed:
        lighter = " or use --weights small-2, which needs less." if unet.dims == 3 else "."
        raise ConfigError(
            f"{available / 1e9:.2f} GB of memory are free, but a window with sides of {window} voxels needs"
            f" {needed / 1e9:.2f} GB\n  Give the process more (docker run --memory 4g){lighter}"
        )


def _needed(unet: UNetConfig, voxels: int) -> float:
    """Return the bytes of a float32 pass over a window, overhead included."""
    return OVERHEAD[unet.dims] + voxels * _voxel_bytes(unet)


def _voxel_bytes(unet: UNetConfig) -> float:
    """Return the peak bytes of a float32 pass per voxel (3D) or pixel (2D) of its window."""
    return (MAPS if unet.dims == 2 else BOX_MAPS) * 4 * unet.width / unet.patch**unet.dims


def free(root: Path = Path("/")) -> int | None:
    """Return the bytes available to this process: of the system or its cgroups, whichever is less.

    ``root`` is the folder of ``proc`` and ``sys``. ``None`` if unknown, as on macOS.
    """
    system = re.search(r"MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"))
    found = [int(system[1]) * 1024] if system else []
    return min(found + _free_in_cgroups(root), default=None)


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    import resource  # Unix only

    if own := re.search(r"VmHWM:\s+(\d+) kB", _text(Path("/proc/self/status"))):
        return int(own[1]) * 1024  # unlike ru_maxrss, not inherited from the parent
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _free_in_cgroups(root: Path) -> list[int]:
    """Return the free bytes of each memory cgroup of this process; reclaimable page cache counts as free."""
    left = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = Path(own.lstrip("/"))  # missing if a container sees its own cgroup as the root
        for folder in {mount / parent for parent in (group, *group.parents)}:
            limit, used = (_text(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit() and int(limit) < UNLIMITED:
                cache = re.search(r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                left.append(max(0, int(limit) - int(used) + (int(cache[1]) if cache else 0)))
    return left


def _text(path: Path) -> str:
    """Return a file's text, empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
