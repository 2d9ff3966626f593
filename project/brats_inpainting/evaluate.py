"""Score filled scans against the truth, one row per model and case; each volume is read once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from rich.progress import track

from brats_inpainting import container, files, metrics, record
from brats_inpainting.data import cases, nifti, validation, volume
from brats_inpainting.data.cases import Case
from brats_inpainting.data.lesion import UNAMBIGUOUS, lesion_of
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.host import cpus
from brats_inpainting.pictures import Plane, white
from brats_inpainting.progress import console

UNKNOWN = float("nan")
WORKERS = 4  # cases at a time at most
RESERVED = {"voided", "scan", "mask", "truth", "uncertainty", "pooled"}  # names of views and lines in the report


@dataclass(frozen=True)
class ScoreRow:
    """One model's scores for one case (NaN without ground truth) and the number of voxels it changed.

    Scores are computed inside the healthy mask; without ground truth, the stripe index inside the whole mask.
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
class CaseVolumes:
    """All volumes of one case, X × Y × Z in LPS, in the scan's own intensities.

    ``sides_XYZ`` are the voxels' in mm, ``brain_XYZ`` is the brain mask of a whole head. ``fills`` maps each model to
    its filled scan. ``facts`` is the entry of the first one in infer's ``run.json``; ``std_XYZ`` is the standard
    deviation of its samples, read only for a single model.
    """

    id: str
    voided_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    truth_XYZ: np.ndarray | None = None
    healthy_XYZ: np.ndarray | None = None
    std_XYZ: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    fills: dict[str, np.ndarray] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    sides_XYZ: tuple[float, float, float] = (1.0, 1.0, 1.0)
    brain_XYZ: np.ndarray | None = None

    @property
    def input_name(self) -> str:
        """What ``voided_XYZ`` is: ``voided`` with one value in most of the mask, or ``scan`` with its lesion."""
        inside = self.voided_XYZ[self.mask_XYZ]
        return "voided" if inside.size and np.mean(inside == np.median(inside)) > 0.5 else "scan"

    @cached_property
    def tissue_XYZ(self) -> np.ndarray:
        """The brain: its mask in a whole head, otherwise what is not background; bool."""
        return validation.tissue(self.voided_XYZ, self.brain_XYZ, self.mask_XYZ)

    @cached_property
    def white(self) -> float:
        """Intensity displayed as white, near the brain's maximum; lesions, and fat in whole heads, can be brighter."""
        if self.truth_XYZ is None:
            return white(self.voided_XYZ[self.tissue_XYZ & ~self.mask_XYZ])
        return white(self.truth_XYZ[self.tissue_XYZ | self.mask_XYZ])

    def plane(self, name: str, index: int | None = None) -> Plane:
        """Return a plane cropped to the brain, by default where the scored region is largest."""
        return Plane.through(self.scored_XYZ, self.tissue_XYZ, name, index, self.sides_XYZ)

    @property
    def scored_XYZ(self) -> np.ndarray:
        """The region that is scored: the healthy mask, or the whole mask without ground truth."""
        return self.mask_XYZ if self.healthy_XYZ is None else self.healthy_XYZ

    @property
    def filled(self) -> dict[str, np.ndarray]:
        """The filled scans and, if available, the truth."""
        return self.fills | ({} if self.truth_XYZ is None else {"truth": self.truth_XYZ})

    def score(self) -> list[ScoreRow]:
        """Score every model; add those that cannot be scored to ``failed``."""
        rows = []
        for model, filled_XYZ in self.fills.items():
            try:
                rows.append(self._row(model, filled_XYZ))
            except CaseError as error:
                self.failed[f"{model}/{self.id}"] = f"{self.id}, {model}: {error}"
        return rows

    def _row(self, model: str, filled_XYZ: np.ndarray) -> ScoreRow:
        if bad := np.count_nonzero(~np.isfinite(filled_XYZ)):
            raise CaseError(f"{bad:,} voxels are NaN or infinite")
        scores: dict[str, float] = {}
        if self.truth_XYZ is not None and self.healthy_XYZ is not None:
            scores |= metrics.score(filled_XYZ, self.truth_XYZ, self.voided_XYZ, self.healthy_XYZ)._asdict()
            pair_XYZ = self.scored_tissue(filled_XYZ), self.scored_tissue(self.truth_XYZ)
            scores["boundary_contrast"] = metrics.boundary_contrast(*pair_XYZ, self.healthy_XYZ)
            scores["stripe_index_truth"] = metrics.stripe_index(pair_XYZ[1], self.healthy_XYZ)
        if self.scored_XYZ.any():
            scores["stripe_index"] = metrics.stripe_index(self.scored_tissue(filled_XYZ), self.scored_XYZ)
        changed_XYZ = filled_XYZ != self.voided_XYZ
        inside, outside = (np.count_nonzero(changed_XYZ & region) for region in (self.mask_XYZ, ~self.mask_XYZ))
        return ScoreRow(self.id, model, **scores, changed_inside=int(inside), changed_outside=int(outside))

    def scored_tissue(self, volume_XYZ: np.ndarray) -> np.ndarray:
        """Set the unscored part of the mask to 0: lesion in the truth, synthetic tissue in a fill."""
        return np.where(self.mask_XYZ & ~self.scored_XYZ, 0, volume_XYZ)


OnCase = Callable[[CaseVolumes, list[ScoreRow]], None]


def evaluate(
    fills: Mapping[Case, Mapping[str, Path]],
    *,
    truth_needed: bool = True,
    report_path: Path | None = None,
    on_case: OnCase | None = None,
    quiet: bool = False,
) -> tuple[list[ScoreRow], dict[str, str]]:
    """Score all cases concurrently; a case that cannot be scored does not stop the others.

    Args:
        fills: case → model → path of the filled scan, see ``find``.
        truth_needed: fail cases without ``t1n`` and ``mask-healthy`` next to their inputs.
        report_path: folder of infer's ``run.json``, see ``read_volumes``.
        on_case: called with each case's volumes and rows, from several threads.
        quiet: show no progress.

    Returns:
        The rows in the order of the cases, and the reasons of failures by case or model.
    """

    def one(case: Case) -> tuple[list[ScoreRow], dict[str, str]]:
        try:
            volumes = read_volumes(case, fills[case], truth_needed=truth_needed, report_path=report_path)
        except CaseError as error:
            return [], {case.id: f"{case.id}: {error}"}
        rows = volumes.score()
        if on_case and rows:
            on_case(volumes, rows)
        return rows, volumes.failed

    with ThreadPoolExecutor(min(WORKERS, cpus())) as pool:
        done = track(pool.map(one, fills), "scoring", total=len(fills), console=console, transient=True, disable=quiet)
        results = list(done)
    return [row for rows, _ in results for row in rows], {k: v for _, failed in results for k, v in failed.items()}


def find(folders: Mapping[str, Path], data_path: Path, *, pooled: bool = False) -> dict[Case, dict[str, Path]]:
    """List the cases of ``data_path`` with the filled scans ``{id}-t1n-inference.nii.gz`` of each model.

    Args:
        folders: model → folder.
        data_path: folder of complete cases, with ``t1n`` and ``mask-healthy`` next to the inputs.
        pooled: each model filled some of the cases, as in a cross-validation.

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
    found = {case: {m: path for m, path in paths.items() if path.exists()} for case, paths in found.items()}
    if twice := [case.id for case, paths in found.items() if len(paths) > 1]:
        raise ConfigError(f"{twice[0]}: in several folders\n  With --pooled, each case must be in one folder only.")
    return found


def names(folders: list[Path]) -> dict[str, Path]:
    """Return model name → folder; the name is the folder's (on the host), numbered if it occurs twice.

    Raises:
        ConfigError: when the report uses a name for something else.
    """
    named: dict[str, Path] = {}
    for folder in {path.resolve(): path for path in folders}.values():
        name = container.name_of(folder)
        if name in RESERVED:
            raise ConfigError(f"{folder}: the report uses the name {name} for something else\n  Rename the folder.")
        same = sum(container.name_of(path) == name for path in named.values())
        named[f"{name} ({same + 1})" if same else name] = folder
    return named


def read_volumes(
    case: Case, fills: Mapping[str, Path], *, truth_needed: bool = True, report_path: Path | None = None
) -> CaseVolumes:
    """Read all volumes of a case.

    Args:
        case: paths of the inputs.
        fills: model → path of the filled scan.
        truth_needed: fail without ``t1n`` and ``mask-healthy``; otherwise they are read if they exist.
        report_path: folder of infer's ``run.json``, whose entry is used if it describes the first model's file.

    Raises:
        CaseError: when a file cannot be read or lies on another grid, or a needed truth is missing.
    """
    grid = nifti.read(case.image)
    image_XYZ, brain_XYZ = volume.in_lps(grid), _brain(case.brain, grid) if case.brain else None
    truth, healthy = sibling_path(case, "t1n"), sibling_path(case, "mask-healthy")
    if truth_needed and not (truth and healthy):
        raise CaseError(f"{case.image.name}: not the challenge's naming\n  Let the name end in -t1n-voided.nii.gz.")
    known = truth_needed or (metrics.can_score() and all(path and path.exists() for path in (truth, healthy)))
    facts = recorded_facts(case.id, fills, report_path)
    only = next(iter(fills.values())) if facts and len(fills) == 1 else None  # the std picture names no model
    std = report_path / files.sidecar_name(only, "std") if report_path and only else None
    volumes = CaseVolumes(
        case.id,
        image_XYZ,
        _lesion(case, grid, image_XYZ, brain_XYZ),
        _read(truth, grid) if truth and known else None,
        _read(healthy, grid) > 0.5 if healthy and known else None,
        _read(std, grid) if std and std.exists() else None,
        facts,
        sides_XYZ=volume.sides_in_lps(grid),
        brain_XYZ=brain_XYZ,
    )
    if volumes.healthy_XYZ is not None and (over := np.count_nonzero(volumes.healthy_XYZ & ~volumes.mask_XYZ)):
        raise CaseError(f"{over:,} voxels of mask-healthy lie outside the mask and were not to be filled")
    for model, path in fills.items():
        try:
            volumes.fills[model] = _read(path, grid)
        except CaseError as error:
            volumes.failed[f"{model}/{case.id}"] = f"{case.id}, {model}: {error}"
    if not fills:
        volumes.failed[case.id] = f"{case.id}: filled by no model"
    return volumes


def recorded_facts(case_id: str, fills: Mapping[str, Path], report_path: Path | None) -> dict[str, Any]:
    """Return the entry of the first model's fill in infer's run.json, if the file's hash matches; else nothing."""
    if report_path is None or not fills:
        return {}
    facts = record.read(report_path).get("cases", {}).get(case_id, {})
    model, path = next(iter(fills.items()))
    return facts | {"model": model} if path.exists() and facts.get("sha256") == files.sha256(path) else {}


def _read(path: Path, grid: Nifti1Image) -> np.ndarray:
    """Read a volume that must be on the grid of the voided scan."""
    image = nifti.read(path)
    if not validation.same_affine(image, grid) or image.shape[:3] != grid.shape[:3]:
        raise CaseError(
            f"{path.name}: {image.shape} voxels on another grid than the scan's {grid.shape}\n"
            "  Give it the scan's shape and affine."
        )
    return volume.in_lps(image)


def _lesion(case: Case, grid: Nifti1Image, image_XYZ: np.ndarray, brain_XYZ: np.ndarray | None) -> np.ndarray:
    """Return the region that infer fills: the lesions of all masks of a case, bool.

    Without options, all values above 0.5 are lesion: what infer refuses as ambiguous is not filled either.
    """
    read = {path.name: _read(path, grid) for path in (case.mask, *case.more_masks)}
    if case.reading == UNAMBIGUOUS:
        lesions = [values_XYZ > 0.5 for values_XYZ in read.values()]
    else:
        lesions = [lesion_of(values_XYZ, case.reading, name=name)[0] for name, values_XYZ in read.items()]
    return validation.joined(lesions, case.reading, image_XYZ, brain_XYZ)


def _brain(path: Path, grid: Nifti1Image) -> np.ndarray:
    brain_XYZ = validation.brain_on_grid(nifti.read(path), grid)
    return volume.in_lps(Nifti1Image(brain_XYZ.astype(np.uint8), grid.affine)) > 0


def sibling_path(case: Case, kind: str) -> Path | None:
    """Return the path of the truth (``t1n``) or of another mask (``mask-healthy``) next to the case's inputs.

    ``None`` if the inputs do not follow the challenge's names.
    """
    given, pattern, new = (case.image, "[-_]voided", "") if kind == "t1n" else (case.mask, "mask", kind)
    name, found = re.subn(rf"(?i){pattern}(?=\.(nii|mgz))", new, given.name)
    return given.with_name(name) if found else None
