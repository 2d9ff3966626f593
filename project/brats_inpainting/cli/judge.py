"""The commands that examine filled scans: evaluate, report, picture."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from brats_inpainting.cli import pages
from brats_inpainting.cli.app import (
    DataPath,
    NoImages,
    Predictions,
    Viewer,
    app,
    finish,
    option,
    out,
    quiet,
    wide,
)
from brats_inpainting.errors import ConfigError

PlaneName = StrEnum("PlaneName", ["axial", "coronal", "sagittal"])


@app.command()
def evaluate(
    predictions: Predictions,
    data_path: DataPath,
    report_path: Annotated[
        Path | None, option("report-path", "Folder for report.html and the scores as .csv, .json, .md, .tex.")
    ] = None,
    pooled: Annotated[bool, option("pooled", "Folders of a cross-validation: each holds some of the cases.")] = False,
    published: Annotated[bool, option("published", "Set the paper's figures, of other data, beside them.")] = False,
    no_images: NoImages = False,
    viewer: Viewer = False,
) -> None:
    """Score filled scans against the truth inside the healthy mask, as the challenge does."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import tables

    page = pages.begin(report_path, predictions, images=not no_images, viewer=viewer) if report_path else None
    fills = scoring.find(scoring.names(predictions), data_path, pooled=pooled)
    rows, failed = scoring.evaluate(fills, report_path=report_path, look=page.look if page else None, quiet=quiet())
    grids = tables.grids(rows, pooled=pooled, published=published)
    for grid in grids:
        wide.print(grid.rich())
    if report_path and page:
        if rows:
            tables.write(rows, grids, report_path)
        out.print(f"written: {page.write(grids, failed, pages.folders(fills))}")
    finish(failed)


@app.command()
def report(
    predictions: Predictions,
    data_path: DataPath,
    report_path: Annotated[Path, option("report-path", "Folder for report.html; that of infer has its run.json.")],
    no_images: NoImages = False,
    viewer: Viewer = False,
) -> None:
    """Make the page about filled scans; the truth need not be known."""
    from brats_inpainting import evaluate as scoring

    page = pages.begin(report_path, predictions, images=not no_images, viewer=viewer)
    finish(pages.write(scoring.find(scoring.names(predictions), data_path), report_path, page))


@app.command()
def picture(
    predictions: Predictions,
    data_path: DataPath,
    case: Annotated[list[str], option("case", "Its id; several make several rows.")],
    output: Annotated[Path, option("output", "The PNG to write.")],
    plane: Annotated[list[PlaneName] | None, option("plane", "Default: all three.")] = None,
    slice_: Annotated[int | None, option("slice", "Default: where the mask is largest.", min=0)] = None,
) -> None:
    """Draw slices for a paper: voided scan, mask, fills, truth side by side (figures 4 and 5 of the paper)."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import files, pictures

    if output.suffix != ".png":
        raise ConfigError(f"{output}: not a PNG\n  Let it end in .png.")
    files.make_writable(output.parent)
    fills = {found.id: (found, paths) for found, paths in scoring.find(scoring.names(predictions), data_path).items()}
    rows = []
    for case_id in case:
        if case_id not in fills:
            raise ConfigError(f"{case_id}: no such case in {data_path}\n  There are: {', '.join(fills)}.")
        exam = scoring.examine(*fills[case_id], truth_needed=False)
        finish(exam.failed)
        mask_XYZ = exam.mask_XYZ * pictures.white(exam.voided_XYZ)
        views = {"voided": exam.voided_XYZ, "mask": mask_XYZ, **exam.filled}
        for name in plane or reversed(pictures.PLANES):
            cut = pictures.Plane.through(exam.scored_XYZ, exam.voided_XYZ != 0, str(name), slice_)
            rows.append((f", {case_id}, {name} {cut.index}", cut, views, exam.mask_XYZ))
    pictures.mosaic(rows, output)
    out.print(f"written: {output}")
