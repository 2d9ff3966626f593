"""Filled scans, and the truth where it is known → scores, one row a model and case. Every volume is read once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import track

from brats_inpainting import metrics
from brats_inpainting.data import cases, volume
from brats_inpainting.data.cases import Case
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.progress import console

UNKNOWN = float("nan")
WORKERS = 4  # cases at a time at most; each takes up to half a gigabyte


@dataclass(frozen=True)
class Row:
    """One model's scores of one case, NaN where the truth is not known, and how many voxels it changed.

    Scores are taken inside the healthy mask; without a truth, the stripe index inside the whole mask.
    """

    case: str
    model: str
    ssim: float = UNKNOWN
    psnr: float = UNKNOWN
    mse: float = UNKNOWN
    rmse: float = UNKNOWN
    mae: float = UNKNOWN
    msle: float = UNKNOWN
    psnr_01: float = UNKNOWN
    stripe_index: float = UNKNOWN
    stripe_index_truth: float = UNKNOWN
    boundary_contrast: float = UNKNOWN
    changed_inside: int = 0
    changed_outside: int = 0


@dataclass(frozen=True)
class Exam:
    """All volumes of one case, X × Y × Z in LPS, in the scan's own intensities.

    ``fills`` has the filled scan of each model; ``std_XYZ`` is the standard deviation of its samples.
    """

    id: str
    voided_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    truth_XYZ: np.ndarray | None = None
    healthy_XYZ: np.ndarray | None = None
    std_XYZ: np.ndarray | None = None
    fills: dict[str, np.ndarray] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def scored_XYZ(self) -> np.ndarray:
        """Where a fill is looked at: the healthy mask, or the whole mask where no truth is known."""
        return self.mask_XYZ if self.healthy_XYZ is None else self.healthy_XYZ

    def rows(self) -> list[Row]:
        """Score every model; what cannot be scored is noted in ``failed``."""
        rows = []
        for model, filled_XYZ in self.fills.items():
            try:
                rows.append(self._row(model, filled_XYZ))
            except CaseError as error:
                self.failed[f"{model}/{self.id}"] = f"{self.id}, {model}: {error}"
        return rows

    def _row(self, model: str, filled_XYZ: np.ndarray) -> Row:
        if filled_XYZ.shape != self.mask_XYZ.shape:
            raise CaseError(f"{filled_XYZ.shape} voxels, but the case has {self.mask_XYZ.shape}")
        scores: dict[str, float] = {}
        if self.truth_XYZ is not None and self.healthy_XYZ is not None:
            pair_XYZ = filled_XYZ, self.truth_XYZ
            scores |= metrics.score(*pair_XYZ, self.voided_XYZ, self.healthy_XYZ)._asdict()
            scores["boundary_contrast"] = metrics.boundary_contrast(*pair_XYZ, self.healthy_XYZ)
            scores["stripe_index_truth"] = metrics.stripe_index(self.truth_XYZ, self.healthy_XYZ)
        if self.scored_XYZ.any():
            scores["stripe_index"] = metrics.stripe_index(filled_XYZ, self.scored_XYZ)
        changed_XYZ = filled_XYZ != self.voided_XYZ
        inside, outside = (np.count_nonzero(changed_XYZ & region) for region in (self.mask_XYZ, ~self.mask_XYZ))
        return Row(self.id, model, **scores, changed_inside=int(inside), changed_outside=int(outside))


Look = Callable[[Exam, list[Row]], None]


def evaluate(
    fills: Mapping[Case, Mapping[str, Path]],
    *,
    truth_needed: bool = True,
    report_path: Path | None = None,
    look: Look | None = None,
    quiet: bool = False,
) -> tuple[list[Row], dict[str, str]]:
    """Score every case, several at a time; one that cannot be scored does not stop the others.

    Args:
        fills: for every case, the filled scan of each model, see ``find``.
        truth_needed: a case without ``t1n`` and ``mask-healthy`` beside its inputs fails; else it is looked at without.
        report_path: folder of the run's uncertainty maps, if there are any.
        look: told each case's volumes and rows while they are in memory, from several threads.
        quiet: show no progress.

    Returns:
        The rows in the order of the cases, and what failed with the reason.
    """

    def one(case: Case) -> tuple[list[Row], dict[str, str]]:
        try:
            exam = examine(case, fills[case], truth_needed=truth_needed, report_path=report_path)
        except CaseError as error:
            return [], {case.id: f"{case.id}: {error}"}
        rows = exam.rows()
        if look and rows:
            look(exam, rows)
        return rows, exam.failed

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(WORKERS, cpus)) as pool:
        done = track(pool.map(one, fills), "scoring", total=len(fills), console=console, transient=True, disable=quiet)
        results = list(done)
    return [row for rows, _ in results for row in rows], {k: v for _, failed in results for k, v in failed.items()}


def find(folders: Mapping[str, Path], data_path: Path, *, pooled: bool = False) -> dict[Case, dict[str, Path]]:
    """List the cases of ``data_path``, and for each the filled scan ``{id}-t1n-inference.nii.gz`` of every model.

    Args:
        folders: model → folder.
        data_path: folder of complete cases, with ``t1n`` and ``mask-healthy`` beside the inputs.
        pooled: a model need not have filled every case, as in a cross-validation.

    Raises:
        ConfigError: when a folder does not exist or ``data_path`` holds no case.
    """
    for folder in folders.values():
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder\n  Give the folder that infer wrote.")
    found = {
        case: {model: folder / cases.output_name(case.id) for model, folder in folders.items()}
        for case in cases.find(data_path)
    }
    if not pooled:
        return found
    return {case: {m: path for m, path in paths.items() if path.exists()} for case, paths in found.items()}


def names(folders: list[Path]) -> dict[str, Path]:
    """Give every folder of predictions a name: its own, or as much of its path as tells it from the others."""
    unique = {folder.resolve(): folder for folder in folders}
    for depth in range(1, max(len(path.parts) for path in unique) + 1):
        named = {"/".join(path.parts[-depth:]): folder for path, folder in unique.items()}
        if len(named) == len(unique):
            break
    return named


def examine(
    case: Case, fills: Mapping[str, Path], *, truth_needed: bool = True, report_path: Path | None = None
) -> Exam:
    """Read all volumes of a case.

    Raises:
        CaseError: when a file cannot be read, or the truth is needed and not there.
    """
    truth, healthy = (beside(case, kind) for kind in ("t1n", "mask-healthy"))
    known = truth_needed or (metrics.can_score() and truth.exists() and healthy.exists())
    std = [report_path / std_name(path) for path in fills.values()] if report_path else []
    exam = Exam(
        case.id,
        volume.read(case.image),
        volume.read(case.mask) > 0.5,
        volume.read(truth) if known else None,
        volume.read(healthy) > 0.5 if known else None,
        volume.read(std[0]) if len(std) == 1 and std[0].exists() else None,
    )
    for model, path in fills.items():
        try:
            exam.fills[model] = volume.read(path)
        except CaseError as error:
            exam.failed[f"{model}/{case.id}"] = f"{case.id}, {model}: {error}"
    return exam


def std_name(filled: Path) -> str:
    """Return the name of a filled scan's uncertainty map in the report's folder."""
    return filled.name.replace(".nii", "-std.nii")


def beside(case: Case, kind: str) -> Path:
    """Return the path of the truth (``t1n``) or of another mask (``mask-healthy``), named like the case's own files."""
    if kind == "t1n":
        return case.image.with_name(re.sub(r"(?i)[-_]voided(?=\.nii)", "", case.image.name))
    return case.mask.with_name(re.sub(r"(?i)mask(?=\.nii)", kind, case.mask.name))
