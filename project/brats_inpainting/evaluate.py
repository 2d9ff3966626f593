"""Predictions and truth → scores, one row a case, as in the paper's tables 1 and 2."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from brats_inpainting import metrics
from brats_inpainting.data import cases, volume
from brats_inpainting.data.cases import Case
from brats_inpainting.errors import CaseError, ConfigError


@dataclass(frozen=True)
class Row:
    """One case's scores inside the healthy mask, and what changed against the input inside and outside the mask."""

    case: str
    ssim: float
    psnr: float
    mse: float
    changed_inside: float
    changed_outside: float


COLUMNS = ("case", "SSIM", "PSNR", "MSE", "voxels changed inside", "outside the mask")


def evaluate(predictions: Path, data_path: Path, report_path: Path | None = None) -> tuple[list[Row], dict[str, str]]:
    """Score every case of ``data_path``; a case that cannot be scored does not stop the others.

    Args:
        predictions: folder with ``{id}-t1n-inference.nii.gz``.
        data_path: folder of complete cases, with ``t1n`` and ``mask-healthy`` beside the inputs.
        report_path: receives scores.csv, and one picture per case.

    Returns:
        The rows, and the cases that failed with the reason.

    Raises:
        ConfigError: when ``data_path`` holds no case, there are no predictions, or the report cannot be written.
    """
    if not predictions.is_dir():
        raise ConfigError(f"{predictions}: no such folder\n  Give the folder that infer wrote.")
    if report_path:
        volume.make_writable(report_path)
    rows, failed = [], {}
    for case in cases.find(data_path):
        try:
            rows.append(_row(case, predictions, report_path))
        except CaseError as error:
            failed[case.id] = f"{case.id}: {error}"
    if report_path and rows:
        with (report_path / "scores.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    return rows, failed


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return the mean, the standard deviation (of the sample) and the median over two or more cases, as rows."""
    table = np.array([list(asdict(row).values())[1:] for row in rows], float)
    moments = {"mean": table.mean(axis=0), "± std": table.std(axis=0, ddof=1), "median": np.median(table, axis=0)}
    return [Row(name, *(float(v) for v in values)) for name, values in moments.items()]


def cells(row: Row) -> tuple[str, ...]:
    """Format a row for a table."""
    counts = (f"{row.changed_inside:,.0f}", f"{row.changed_outside:,.0f}")
    return (row.case, f"{row.ssim:.4f}", f"{row.psnr:.2f}", f"{row.mse:.5f}", *counts)


def _row(case: Case, predictions: Path, report_path: Path | None) -> Row:
    voided_XYZ, mask_XYZ = volume.read(case.image), volume.read(case.mask) > 0.5
    truth_XYZ = volume.read(case.image.with_name(case.image.name.replace("-voided", "").replace("_voided", "")))
    healthy_XYZ = volume.read(case.mask.with_name(case.mask.name.replace("mask.nii", "mask-healthy.nii"))) > 0.5
    filled_XYZ = volume.read(predictions / cases.output_name(case.id))
    scores = metrics.score(filled_XYZ, truth_XYZ, voided_XYZ, healthy_XYZ)
    if report_path:
        from brats_inpainting import report

        text = f"{case.id}   SSIM {scores.ssim:.3f}   PSNR {scores.psnr:.2f}   MSE {scores.mse:.4f}"
        views = {"voided": voided_XYZ, "filled": filled_XYZ, "truth": truth_XYZ}
        report.mosaic(views, healthy_XYZ, report_path / f"{case.id}.png", title=text)
    changed_XYZ = filled_XYZ != voided_XYZ
    inside, outside = (int(np.count_nonzero(changed_XYZ & region)) for region in (mask_XYZ, ~mask_XYZ))
    return Row(case.id, scores.ssim, scores.psnr, scores.mse, inside, outside)
