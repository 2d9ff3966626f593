"""Many cases into one output folder: nothing is lost when one of them, or the run itself, fails."""

from __future__ import annotations

import glob
import json
import logging
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from brats_inpainting.data import cases, volume, windows
from brats_inpainting.data.cases import Case
from brats_inpainting.data.volume import Scan
from brats_inpainting.data.windows import Stack
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.evaluate import named_after
from brats_inpainting.host import ahead
from brats_inpainting.infer import Inpainter
from brats_inpainting.progress import Watch, duration

log = logging.getLogger(__name__)

LONG = 25  # passes of the network over a window: so many, on a CPU, are told of before they begin
RECORD_SHARE = 20  # run.json, which grows with the run, is written for a twentieth of the time at most
Existing = Literal["error", "overwrite", "resume"]


@dataclass
class Run:
    """Cases to be filled and where each goes; then what became of them.

    ``report_path`` receives run.json, the single samples and their standard deviation: the output folder holds filled
    scans and nothing else.
    """

    inpainter: Inpainter
    jobs: dict[Path, Case]
    seed: int = 0
    keep_dtype: bool = False
    report_path: Path | None = None
    quiet: bool = False
    threads: int = field(default_factory=torch.get_num_threads)
    failed: dict[str, str] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    _recorded: float = field(default=0.0, init=False)  # when run.json may be written again

    def start(self, existing: Existing) -> None:
        """Make the folders, drop what a killed run left behind, and settle what happens to existing outputs.

        Raises:
            ConfigError: when a folder cannot be written, or outputs exist and nothing was said about them, or were
                made with other settings than those of the run that resumes.
        """
        if self.inpainter.sampling.samples > 1 and not self.report_path:
            log.warning("the samples and their uncertainty map are not kept; --report-path gives them a place")
        folders = {target.parent for target in self.jobs}
        for folder in folders | ({self.report_path} if self.report_path else set()):
            volume.make_writable(folder)
        present = {path for folder in folders for path in folder.iterdir()}
        there = [target for target in self.jobs if target in present]
        if there and existing == "error":
            raise ConfigError(
                f"{there[0]}: exists already{f', and so do {len(there) - 1} more' if there[1:] else ''}\n"
                "  Say --resume to keep what is finished, or --overwrite to make everything anew."
            )
        if existing == "resume":
            self._resume(there)

    def go(self) -> None:
        """Fill all cases; a case that fails is noted in ``failed`` and never stops the others."""
        by_id = {case.id: target for target, case in self.jobs.items()}
        with Watch(len(self.jobs), quiet=self.quiet) as watch, ThreadPoolExecutor(1) as writer:
            under_way: deque[Future[None]] = deque()

            def deliver(stack: Stack) -> None:
                """Finish and write in a thread beside; one at a time, because what waits takes memory."""
                while under_way:
                    under_way.popleft().result()
                under_way.append(writer.submit(self._deliver, stack, by_id[stack.scan.id], watch))

            stacks = self._stacks(watch, deliver)
            for stack in self.inpainter.fill(stacks, seed=self.seed, on_pass=watch.advance):
                deliver(stack)
            for last in under_way:
                last.result()
        self.record()

    def fill(self, case: Case, target: Path) -> dict[str, Any]:
        """Fill one case, and nothing beside it; return what is to be noted about it.

        Raises:
            CaseError: when it cannot be done.
        """
        stack = self.inpainter.stack(self._prepare(case), keep=self._keeping)
        return self._write(next(self.inpainter.fill([stack], seed=self.seed), stack), target)

    def finished(self, case_id: str, target: Path, report: dict[str, Any], watch: Watch) -> None:
        """Tell about a finished case, and write it down."""
        self.reports[case_id] = report
        if time.monotonic() > self._recorded:
            self.record()
        watch.close()
        log.info(
            "%s: %d slices in %s, %s voxels changed inside the %smask, %s outside, written to %s",
            case_id,
            report["slices"],
            duration(report["seconds"]),
            f"{report['voxels_changed_inside']:,}",
            "grown " if self.inpainter.sampling.dilate else "",
            f"{report['voxels_changed_outside']:,}",
            target,
        )

    def fail(self, case_id: str, error: CaseError, watch: Watch) -> None:
        """Keep the reason why a case failed for the end of the run."""
        self.failed[case_id] = str(error)
        watch.close()
        log.warning("%s: failed, the reason stands at the end", case_id)

    def settings(self) -> dict[str, Any]:
        """Return everything that the outputs depend on."""
        return {
            "sampling": self.inpainter.sampling.model_dump(mode="json"),
            "weights": self.inpainter.weights.sha256,
            "diffusion": self.inpainter.weights.diffusion.model_dump(mode="json"),
            "precision": self.inpainter.precision,
            "seed": self.seed,
            "keep_dtype": self.keep_dtype,
        }

    @property
    def _keeping(self) -> bool:
        return self.report_path is not None and self.inpainter.sampling.samples > 1

    def _stacks(self, watch: Watch, deliver: Callable[[Stack], None]) -> Iterator[Stack]:
        sampling = self.inpainter.sampling
        for case, prepared in zip(self.jobs.values(), ahead(self._prepare, self.jobs.values()), strict=True):
            try:
                scan = prepared.result()
            except CaseError as error:
                self.fail(case.id, error, watch)
                continue
            stack = self.inpainter.stack(scan, keep=self._keeping)
            if stack.missing and not watch.known and sampling.passes >= LONG:
                self._foretell(stack)
            watch.open(stack.missing * sampling.passes)
            if stack.missing:
                yield stack
            else:
                deliver(stack)

    def _foretell(self, stack: Stack) -> None:
        """Say how long a case will take on a CPU, and what would be faster: one pass over one batch is timed."""
        if self.inpainter.device.type != "cpu":
            return
        size, channels = self.inpainter.batch_size, self.inpainter.weights.network.config.in_channels
        x_NCV = torch.zeros(size, channels, *stack.windows[0].shape)
        started = time.perf_counter()
        with torch.inference_mode():
            self.inpainter.network_pass(x_NCV, torch.zeros(1))
        seconds, passes = time.perf_counter() - started, self.inpainter.sampling.passes
        batches = -(-stack.missing // size)  # the last one is filled up
        log.info(
            "%s takes %s passes of the network, on this CPU about %s; a smaller --steps or another --preset is faster",
            stack.scan.id,
            f"{stack.missing * passes:,}",
            duration(batches * passes * seconds),
        )

    def _prepare(self, case: Case) -> Scan:
        try:
            return volume.prepare(cases.load(case), dilate=self.inpainter.sampling.dilate)
        except MemoryError as error:
            raise _case_error(case.id, error) from error

    def _deliver(self, stack: Stack, target: Path, watch: Watch) -> None:
        try:
            report = self._write(stack, target)
        except CaseError as error:
            self.fail(stack.scan.id, error, watch)
        else:
            self.finished(stack.scan.id, target, report, watch)

    def _write(self, stack: Stack, target: Path) -> dict[str, Any]:
        """Finish a scan and write it, and whatever explains it; return what is to be noted."""
        scan = stack.scan
        started = time.perf_counter()
        try:
            result_XYZ, spread_XYZ = self.inpainter.finish(stack)
            volume.save(volume.image_like(scan.loaded, result_XYZ, keep_dtype=self.keep_dtype), target)
            self._forget(target)
            if spread_XYZ is not None and self.report_path:
                self._keep("std", spread_XYZ, stack, target)
                for number, sample_XYZ in enumerate(self.inpainter.single_samples(stack), 1):
                    self._keep(f"sample-{number}", sample_XYZ, stack, target)
            digest = checkpoint.sha256(target)
        except (MemoryError, OSError) as error:  # somebody may take files away while we work
            raise _case_error(scan.id, error) from error
        changed_XYZ = result_XYZ != scan.loaded.image_XYZ
        return {
            "output": target.name,
            "sha256": digest,
            "slices": len(windows.masked(scan.mask_SHW)),
            "windows": len(stack.windows),
            "voxels_in_mask": int(scan.loaded.mask_XYZ.sum()),
            "voxels_in_grown_mask": int(scan.mask_XYZ.sum()),
            "voxels_changed_inside": int(np.count_nonzero(changed_XYZ & scan.mask_XYZ)),
            "voxels_changed_outside": int(np.count_nonzero(changed_XYZ & ~scan.mask_XYZ)),
            "seconds": round(stack.seconds + time.perf_counter() - started, 2),
            "warnings": scan.loaded.warnings,
        }

    def _keep(self, what: str, volume_XYZ: np.ndarray, stack: Stack, target: Path) -> None:
        """Write a volume that explains a result, named after it, beside the report."""
        assert self.report_path
        volume.save(volume.image_like(stack.scan.loaded, volume_XYZ), self.report_path / named_after(target, what))

    def _forget(self, target: Path) -> None:
        """Remove what explained an earlier result of the same name."""
        escaped = target.with_name(glob.escape(target.name))
        for what in ("std", "sample-*") if self.report_path else ():
            for old in self.report_path.glob(named_after(escaped, what)):  # type: ignore[union-attr]
                old.unlink()

    def _resume(self, there: list[Path]) -> None:
        """Leave out what is finished: every output, or, where a run.json tells, those it lists."""
        record = self.report_path / "run.json" if self.report_path else None
        if there and not (record and record.exists()):
            log.warning(
                "no run.json in --report-path: nobody knows with which settings the %d kept files were made;"
                " a --report-path from the start on lets --resume compare them",
                len(there),
            )
            # without a hash, so that the page does not take them for this run's
            kept = {"settings": "unknown, kept by --resume"}
            self.reports = {self.jobs[target].id: {"output": target.name, **kept} for target in there}
        elif there and record:
            stored = _read_record(record)
            before = {"precision": "fp32"} | stored["settings"]  # older records have no other
            if differing := [name for name, value in self.settings().items() if before.get(name) != value]:
                raise ConfigError(
                    f"{record}: the outputs there were made with another {' and '.join(differing)}\n"
                    "  Repeat those settings, or say --overwrite, or choose another output folder."
                )
            if stored["batch_size"] != self.inpainter.batch_size:
                log.warning(
                    "the files there were made with --batch-size %s: last bits may differ", stored["batch_size"]
                )
            self.reports = stored["cases"]
            there = [target for target in there if self.jobs[target].id in self.reports]
        self.jobs = {target: case for target, case in self.jobs.items() if target not in there}
        log.info("%d finished cases kept, %d to do", len(there), len(self.jobs))

    def record(self) -> None:
        """Write run.json: settings, versions and what became of every case, so that the run can be repeated."""
        if not self.report_path:
            return
        started = time.monotonic()
        packages = ("brats-inpainting", "torch", "numpy", "nibabel", "scipy")
        content = {
            "settings": self.settings(),
            "weights": str(self.inpainter.weights),
            "device": str(self.inpainter.device),
            "batch_size": self.inpainter.batch_size,
            "most_voxels": self.inpainter.most_voxels,
            "threads": self.threads,
            "side_by_side": self.inpainter.side_by_side,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            "cases": self.reports,
            "failed": dict(self.failed),  # the reader may add to it meanwhile
        }
        try:
            with volume.whole_or_not_at_all(self.report_path / "run.json") as hidden:
                hidden.write_text(json.dumps(content, indent=2) + "\n")
        except OSError as error:
            log.warning("run.json cannot be written to %s (%s); the fills go on", self.report_path, error.strerror)
        ended = time.monotonic()
        self._recorded = ended + RECORD_SHARE * (ended - started)


def _case_error(case_id: str, error: MemoryError | OSError) -> CaseError:
    """Say in words why a case failed."""
    if isinstance(error, MemoryError):
        return CaseError(f"{case_id}: not enough memory for it\n  Give the process more, or crop the scan.")
    return CaseError(f"{case_id}: {error}\n  Run it again with --resume.")


def _read_record(record: Path) -> dict[str, Any]:
    try:
        stored = json.loads(record.read_text())
        return {name: dict(stored[name]) for name in ("settings", "cases")} | {"batch_size": stored.get("batch_size")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{record}: not a record of this software\n  Remove it, or say --overwrite.") from error
