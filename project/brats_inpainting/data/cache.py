"""On-disk cache of prepared training scans: memory-mapped, built in parallel, reused, rebuilt when stale.

Shapes: X Y Z a file's own array; S H W a scan's framed axial slices, H along L and W along P.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from brats_inpainting.config import FRAME
from brats_inpainting.data import nifti, volume
from brats_inpainting.data.masks import Placed
from brats_inpainting.data.transforms import INTENSITY_PERCENTILES
from brats_inpainting.data.validation import LoadedCase
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.files import atomic_write
from brats_inpainting.host import cpus
from brats_inpainting.progress import duration

log = logging.getLogger(__name__)

LEVELS = 65535  # largest value of a stored image
RECORD = np.dtype([("image", np.uint16), ("distance", np.uint8)])  # a voxel on disk
ARRAYS = ("start", "voxels", "box")  # arrays of the .npz file: the healthy mask, and the bounding box of the brain
MAX_DISTANCE = 255  # voxels; larger distances to the tumour are clipped
SPACE_FACTOR = 1.05  # free space required, relative to the size of the cache
SCAN = re.compile(r"(?P<id>.+)[-_]t1n\.nii(\.gz)?", re.IGNORECASE)
MASKS = ("healthy", "unhealthy")


@dataclass(frozen=True)
class TrainingCase:
    """Files of a training case; either mask may be missing."""

    id: str
    t1n: Path
    healthy: Path | None
    unhealthy: Path | None

    @property
    def subject(self) -> str:
        """The id without the time point; a subject is never split between training and validation."""
        return re.sub(r"[-_]\d{3}$", "", self.id)

    @property
    def key(self) -> str:
        """Hash of the files' names, sizes and times, and of the preparation's constants."""
        given = [
            (p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in (self.t1n, self.healthy, self.unhealthy) if p
        ]
        content = (given, INTENSITY_PERCENTILES, FRAME, LEVELS, RECORD.descr, ARRAYS)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CachedScan:
    """A prepared case, memory-mapped at each access so that no file stays open.

    ``healthy`` is its healthy mask, ``box`` the bounding box of its tissue, both in the frame.
    """

    id: str
    path: Path
    healthy: Placed
    box: tuple[slice, slice, slice]

    @property
    def image_SHW(self) -> np.ndarray:
        """The image in [0, LEVELS]."""
        return np.load(self.path, mmap_mode="r")["image"]

    @property
    def distance_SHW(self) -> np.ndarray:
        """The distance of every voxel to the tumour mask in voxels, at most MAX_DISTANCE."""
        return np.load(self.path, mmap_mode="r")["distance"]


def find(folder: Path) -> list[TrainingCase]:
    """List the cases under a folder that have a complete T1, ``{id}-t1n.nii.gz``.

    Raises:
        ConfigError: there are none.
    """
    found = []
    for path in sorted(p for pattern in ("*", "*/*") for p in folder.glob(pattern) if SCAN.fullmatch(p.name)):
        candidates = [path.with_name(re.sub(r"(?i)t1n(?=\.nii)", f"mask-{kind}", path.name)) for kind in MASKS]
        healthy, unhealthy = (mask if mask.exists() else None for mask in candidates)
        found.append(TrainingCase(path.name[: path.name.lower().rindex("t1n") - 1], path, healthy, unhealthy))
    if not found:
        raise ConfigError(
            f"{folder}: no ID/ID-t1n.nii.gz found\n"
            "  Give the training folder of BraTS Local Synthesis, with complete scans."
        )
    return found


def prepare(files: Sequence[TrainingCase], cache: Path) -> list[CachedScan]:
    """Prepare the cases that are not in the cache, in parallel, and open all of them.

    Args:
        files: the cases.
        cache: folder of the arrays, two files a case, named by its id and its hash; stale ones are removed.

    Raises:
        CaseError: naming each case that cannot be used.
        ConfigError: not enough disk space.
    """
    cache.mkdir(parents=True, exist_ok=True)
    paths = {case: cache / f"{case.id}-{case.key}.npy" for case in files}
    current = {case.id: path for case, path in paths.items()}
    for path in cache.glob("*.npy"):
        case_id = path.stem.rpartition("-")[0]
        # other cases may belong to another run that shares the cache
        if case_id in current and path != current[case_id]:
            path.with_suffix(".npz").unlink(missing_ok=True)
            path.unlink()
    todo = [(case, path) for case, path in paths.items() if not path.exists()]
    if todo:
        _check_space(todo, cache)
        _prepare_all(todo)
    return [_open(case, path) for case, path in paths.items()]


def _check_space(todo: Sequence[tuple[TrainingCase, Path]], cache: Path) -> None:
    """Log the size of the arrays to write; raise ConfigError if it exceeds the free space."""
    depth = nifti.read(todo[0][0].t1n).shape[2]
    needed = len(todo) * depth * FRAME * FRAME * RECORD.itemsize
    free = shutil.disk_usage(cache).free
    log.info("preparing %d scans once: %.1f GB in %s, %.1f GB free", len(todo), needed / 1e9, cache, free / 1e9)
    if needed * SPACE_FACTOR > free:
        raise ConfigError(
            f"{cache}: the prepared scans take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free\n"
            "  Give another folder with --cache-path."
        )


def _prepare_all(todo: Sequence[tuple[TrainingCase, Path]]) -> None:
    started, failed = time.monotonic(), []
    workers = min(len(todo), cpus())
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_prepare, case, path) for case, path in todo]
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                if isinstance(job.exception(), CaseError):
                    failed.append(str(job.exception()))
                else:
                    job.result()
                if done % max(1, len(todo) // 10) == 0:
                    left = (time.monotonic() - started) * (len(todo) - done) / done
                    log.info("%d of %d scans prepared, %s left", done, len(todo), duration(left))
        except BaseException:  # including Ctrl-C and SIGTERM: cancel the jobs that have not started
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise CaseError("\n".join([*sorted(failed), f"{len(failed)} scans cannot be used\n  Repair or remove them."]))


def _prepare(case: TrainingCase, path: Path) -> None:
    """Write one case as an S × H × W array of records."""
    image = nifti.read(case.t1n)
    image_XYZ = nifti.values(image)
    masks = [_mask(file, image_XYZ.shape) for file in (case.healthy, case.unhealthy)]
    if not np.isfinite(image_XYZ).all() or image_XYZ.min() == image_XYZ.max():
        raise CaseError(f"{case.id}: {case.t1n.name} is constant, or contains NaN or infinity")
    scan = volume.prepare(LoadedCase(case.id, image, image_XYZ, np.zeros(image_XYZ.shape, bool), []))
    if scan.frame.size != (FRAME, FRAME):
        raise CaseError(f"{case.id}: the brain does not fit into {FRAME} × {FRAME} voxels\n  Resample it to 1 mm.")
    healthy_SHW, unhealthy_SHW = (scan.frame.cut(scan.orientation.apply(mask_XYZ)) for mask_XYZ in masks)
    distance_SHW = np.full(scan.image_SHW.shape, MAX_DISTANCE)
    if unhealthy_SHW.any():
        distance_SHW = np.minimum(ndimage.distance_transform_edt(~unhealthy_SHW), MAX_DISTANCE)
    packed_SHW = np.empty(scan.image_SHW.shape, RECORD)
    packed_SHW["image"], packed_SHW["distance"] = np.rint(scan.image_SHW * LEVELS), distance_SHW
    box = np.array([(side.start, side.stop) for side in scan.box])
    np.savez_compressed(path.with_suffix(".npz"), **Placed.of(healthy_SHW)._asdict(), box=box)
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:  # written last: marks the case as complete
        np.save(file, packed_SHW)


def _open(case: TrainingCase, path: Path) -> CachedScan:
    with np.load(path.with_suffix(".npz")) as stored:
        healthy = Placed(tuple(int(i) for i in stored["start"]), stored["voxels"])
        z, rows, columns = (slice(int(a), int(b)) for a, b in stored["box"])
    return CachedScan(case.id, path, healthy, (z, rows, columns))


def _mask(path: Path | None, shape: tuple[int, ...]) -> np.ndarray:
    if path is None:
        return np.zeros(shape, bool)
    mask_XYZ = nifti.values(nifti.read(path)) > 0.5
    if mask_XYZ.shape != shape:
        raise CaseError(f"{path.name}: {mask_XYZ.shape}, but its scan is {shape}")
    return mask_XYZ


def data_hash(files: Iterable[TrainingCase]) -> str:
    """Return a hash of a training run's ids and file sizes; a copy of the data has the same hash."""
    sizes = [(case.id, [p.stat().st_size for p in (case.t1n, case.healthy, case.unhealthy) if p]) for case in files]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()
