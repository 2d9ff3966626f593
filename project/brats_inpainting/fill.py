"""Fill many cases: nothing is lost when one of them, or the run itself, fails."""

from __future__ import annotations

import glob
import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from brats_inpainting import files
from brats_inpainting.concurrent import prefetch
from brats_inpainting.data import cases, output, volume, windows
from brats_inpainting.data.cases import Case
from brats_inpainting.data.volume import Scan
from brats_inpainting.data.windows import Stack
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.filler import Filled, Filler
from brats_inpainting.layouts import Layout
from brats_inpainting.progress import ProgressBar, duration
from brats_inpainting.record import Record

if TYPE_CHECKING:
    from brats_inpainting.cluster import Workers

log = logging.getLogger(__name__)

Existing = Literal["error", "overwrite", "resume"]


@dataclass(frozen=True)
class Options:
    """How results are made.

    Attributes:
        seed: of the noise, 0 or more.
        keep_dtype: write the input's data type instead of float32.
        report_path: folder for single samples and their standard deviation; the output folder holds results only.
    """

    seed: int = 0
    keep_dtype: bool = False
    report_path: Path | None = None


def fill_folder(
    filler: Filler,
    layout: Layout,
    output_path: Path,
    *,
    options: Options = Options(),
    existing: Existing = "error",
    workers: Workers | None = None,
    quiet: bool = False,
) -> Record:
    """Fill all cases of a layout; a case that fails does not stop the others.

    Args:
        filler: the network (``Inpainter``), or any other ``Filler``.
        layout: lists the cases, and names the results.
        output_path: folder of the results, or the file of a single one.
        options: how results are made, and the folder that receives ``run.json`` and single samples.
        existing: what happens to outputs that exist: an error, overwrite them, or resume and keep those.
        workers: of a Dask cluster (``cluster.connect``); this process fills if not given.
        quiet: show no progress.

    Returns:
        The record, with the reasons why cases ``failed``.

    Raises:
        ConfigError: when a folder cannot be written, or outputs exist that must not be overwritten or do not fit.
    """
    jobs = layout.jobs(output_path)
    if workers:
        filler = workers.load(filler, jobs, options)
    settings = filler.settings() | {"seed": options.seed, "keep_dtype": options.keep_dtype} | _readings(jobs)
    record = Record(options.report_path, settings, filler.facts())
    todo = _start(jobs, record, existing)
    with ProgressBar(len(todo), quiet=quiet) as progress:
        try:
            (workers.fill if workers else _fill)(filler, todo, options, record, progress)
        finally:
            record.facts = filler.facts()  # the batch size may have been halved
            record.write()
    log.info("%d of %d cases filled", len(todo) - len(record.failed), len(todo))
    record.failed |= layout.describe(output_path, jobs)
    return record


def fill_case(filler: Filler, case: Case, target: Path, options: Options) -> dict[str, Any]:
    """Fill one case; return what is noted about it.

    Raises:
        CaseError: when it cannot be filled.
    """
    scan = _prepare(filler, case)
    (stack,) = filler.fill([scan], seed=options.seed, keep=options.report_path is not None)
    return _write(filler, stack, target, options)


def report_done(case_id: str, target: Path, report: dict[str, Any], record: Record, progress: ProgressBar) -> None:
    """Log a finished case, and note it."""
    record.done(case_id, report)
    progress.close()
    log.info(
        "%s: filled in %s, %s voxels changed inside the %smask, %s outside, written to %s",
        case_id,
        duration(report["seconds"]),
        f"{report['voxels_changed_inside']:,}",
        "grown " if report["voxels_in_grown_mask"] > report["voxels_in_mask"] else "",
        f"{report['voxels_changed_outside']:,}",
        target,
    )


def report_failed(case_id: str, error: CaseError, record: Record, progress: ProgressBar) -> None:
    """Note a case that failed, and log the reason; that of a single case is left to the end of the run."""
    record.fail(case_id, error)
    progress.close()
    if progress.cases > 1:
        log.warning("failed: %s", error)


def _readings(jobs: dict[Path, Case]) -> dict[str, Any]:
    """Return how the cases' masks are interpreted, for the settings of a run; empty for the default."""
    readings = {str(case.reading): case.reading.settings() for case in jobs.values()}
    return {"mask_reading": [readings[text] for text in sorted(readings)]} if any(readings) else {}


def _start(jobs: dict[Path, Case], record: Record, existing: Existing) -> dict[Path, Case]:
    """Make the folders, decide about outputs that exist, and return what is to be done."""
    folders = {target.parent for target in jobs}
    for folder in folders | ({record.folder} if record.folder else set()):
        files.make_writable(folder)
    present = {path for folder in folders for path in folder.iterdir()}
    there = {target: case for target, case in jobs.items() if target in present}
    if there and existing == "error":
        more = f", and so do {len(there) - 1} more" if len(there) > 1 else ""
        raise ConfigError(
            f"{next(iter(there))}: exists already{more}\n"
            "  Use --resume to keep what is finished, or --overwrite to replace everything."
        )
    if existing != "resume":
        return jobs
    kept = record.resume(there)
    log.info("%d finished cases kept, %d to do", len(kept), len(jobs) - len(kept))
    return {target: case for target, case in jobs.items() if target not in kept}


def _fill(filler: Filler, jobs: dict[Path, Case], options: Options, record: Record, progress: ProgressBar) -> None:
    """Fill cases in this process: one is read and one written while another is sampled."""
    targets = {case.id: target for target, case in jobs.items()}
    keep = options.report_path is not None
    with ThreadPoolExecutor(1) as writer:
        writing: deque[Future[None]] = deque()

        def deliver(stack: Stack) -> None:
            target = targets[stack.scan.id]
            try:
                report = _write(filler, stack, target, options)
            except CaseError as error:
                report_failed(stack.scan.id, error, record, progress)
            else:
                report_done(stack.scan.id, target, report, record, progress)

        scans = _prepared(filler, list(jobs.values()), record, progress)
        for stack in filler.fill(scans, seed=options.seed, keep=keep, progress=progress):
            while writing:  # one at a time: scans that wait take memory
                writing.popleft().result()
            writing.append(writer.submit(deliver, stack))
        for last in writing:
            last.result()


def _prepared(filler: Filler, found: list[Case], record: Record, progress: ProgressBar) -> Iterator[Scan]:
    """Yield the scans that can be read; the next one is read meanwhile."""
    for case, prepared in zip(found, prefetch(lambda case: _prepare(filler, case), found), strict=True):
        try:
            yield prepared.result()
        except CaseError as error:
            report_failed(case.id, error, record, progress)


def _prepare(filler: Filler, case: Case) -> Scan:
    try:
        return volume.prepare(cases.load(case), dilate=filler.dilate, resample=filler.resample)
    except MemoryError as error:
        raise _case_error(case.id, error) from error


def _write(filler: Filler, stack: Stack, target: Path, options: Options) -> dict[str, Any]:
    """Finish a scan and write it with its samples; return what is noted about it."""
    scan, started = stack.scan, time.perf_counter()
    try:
        filled = filler.finish(stack)
        output.save(output.image_like(scan.loaded, filled.volume_XYZ, keep_dtype=options.keep_dtype), target)
        if options.report_path:
            _write_sidecars(filled, target, options.report_path)
        digest = files.sha256(target)
    except (MemoryError, OSError) as error:  # files may be taken away meanwhile
        raise _case_error(scan.id, error) from error
    changed_XYZ = filled.volume_XYZ != scan.loaded.image_XYZ
    return {
        "output": target.name,
        "sha256": digest,
        "slices": len(windows.masked_slices(scan.mask_SHW)),
        "windows": len(stack.windows),
        "voxels_in_mask": int(scan.loaded.mask_XYZ.sum()),
        "voxels_in_grown_mask": int(scan.mask_XYZ.sum()),
        "voxels_changed_inside": int(np.count_nonzero(changed_XYZ & scan.mask_XYZ)),
        "voxels_changed_outside": int(np.count_nonzero(changed_XYZ & ~scan.mask_XYZ)),
        "seconds": round(stack.seconds + time.perf_counter() - started, 2),
        "warnings": scan.loaded.warnings,
    }


def _write_sidecars(filled: Filled, target: Path, folder: Path) -> None:
    """Write the standard deviation and the single samples of a result, in place of those of an earlier one."""
    escaped = target.with_name(glob.escape(target.name))
    for kind in ("std", "sample-*"):
        for old in folder.glob(files.sidecar_name(escaped, kind)):
            old.unlink()
    volumes = () if filled.std_XYZ is None else (("std", filled.std_XYZ),)
    for kind, volume_XYZ in chain(volumes, ((f"sample-{n}", each) for n, each in enumerate(filled.samples_XYZ, 1))):
        output.save(output.image_like(filled.scan.loaded, volume_XYZ), folder / files.sidecar_name(target, kind))


def _case_error(case_id: str, error: MemoryError | OSError) -> CaseError:
    """Return the reason why a case failed."""
    if isinstance(error, MemoryError):
        return CaseError(f"{case_id}: not enough memory for it\n  Give the process more, or crop the scan.")
    return CaseError(f"{case_id}: {error}\n  Run it again with --resume.")
