"""Commands for filled scans: evaluate, report, picture."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from brats_inpainting.cli import reports
from brats_inpainting.cli.app import (
    DataPath,
    NoImages,
    Predictions,
    Viewer,
    app,
    finish,
    folder,
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
        Path | None, folder("report-path", "Folder for report.html and the scores as .csv, .json, .md, .tex.")
    ] = None,
    pooled: Annotated[bool, option("pooled", "The folders are folds of a cross-validation.")] = False,
    published: Annotated[bool, option("published", "Add the paper's scores (on other data) to the table.")] = False,
    no_images: NoImages = False,
    viewer: Viewer = False,
) -> None:
    """Score filled scans inside the healthy mask, as BraTS does."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import tables

    page = reports.start(report_path, predictions, images=not no_images, viewer=viewer) if report_path else None
    fills = scoring.find(scoring.names(predictions), data_path, pooled=pooled)
    rows, failed = scoring.evaluate(fills, report_path=report_path, on_case=page.add if page else None, quiet=quiet())
    grids = tables.grids(rows, pooled=pooled, published=published)
    for grid in grids:
        wide.print(grid.rich())
    if report_path and page:
        if rows:
            tables.write(rows, grids, report_path)
        out.print(f"written: {page.write(grids, failed, reports.folders(fills))}")
    finish(failed)


@app.command()
def report(
    predictions: Predictions,
    data_path: DataPath,
    report_path: Annotated[Path, folder("report-path", "Folder for report.html; use that of infer for its run.json.")],
    no_images: NoImages = False,
    viewer: Viewer = False,
) -> None:
    """Write an HTML report on filled scans. Ground truth is optional."""
    from brats_inpainting import evaluate as scoring

    page = reports.start(report_path, predictions, images=not no_images, viewer=viewer)
    finish(reports.write(scoring.find(scoring.names(predictions), data_path), report_path, page))


@app.command()
def picture(
    predictions: Predictions,
    data_path: DataPath,
    case: Annotated[list[str], option("case", "Case id; repeat for more rows.", metavar="<id>")],
    output: Annotated[Path, option("output", "PNG file to write.")],
    plane: Annotated[
        list[PlaneName] | None, option("plane", "Repeatable. Default: all three.", metavar=f"[{'|'.join(PlaneName)}]")
    ] = None,
    slice_: Annotated[int | None, option("slice", "Slice index. Default: where the mask is largest.", min=0)] = None,
) -> None:
    """Draw scan, mask, fills and truth side by side. The paper's figures 4 and 5 are of this kind."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import files, pictures

    if output.suffix != ".png":
        raise ConfigError(f"{output}: not a PNG\n  Use a file name that ends in .png.")
    files.make_writable(output.parent)
    fills = {found.id: (found, paths) for found, paths in scoring.find(scoring.names(predictions), data_path).items()}
    rows = []
    for case_id in case:
        if case_id not in fills:
            raise ConfigError(f"{case_id}: no such case in {data_path}\n  There are: {', '.join(fills)}.")
        volumes = scoring.read_volumes(*fills[case_id], truth_needed=False)
        finish(volumes.failed)
        mask_XYZ = volumes.mask_XYZ * volumes.white
        views = {volumes.input_name: volumes.voided_XYZ, "mask": mask_XYZ, **volumes.filled}
        for name in plane or reversed(pictures.PLANES):
            cut = volumes.plane(str(name), slice_)
            label = f", {case_id}, {name} {cut.index}"
            rows.append(pictures.Row(label, cut, views, volumes.mask_XYZ, volumes.white))
    pictures.mosaic(rows, output)
    out.print(f"written: {output}")
