"""The HTML report on filled scans, for the commands infer, evaluate and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brats_inpainting.cli.app import log, out, quiet
from brats_inpainting.errors import ConfigError

if TYPE_CHECKING:
    from brats_inpainting.data.cases import Case
    from brats_inpainting.report import Report

MAX_CASES = 200  # in a report by infer: more take longer to draw than to fill


def keep_apart(report_path: Path | None, *filled: Path | None) -> None:
    """Reject a report path inside the output folder: graders read every file there."""
    for folder in filled:
        if report_path and folder and report_path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{report_path}: inside {folder}, which holds filled scans only\n  Move it.")


def start(report_path: Path, predictions: Sequence[Path] = (), **settings: bool) -> Report:
    """Return an empty report in a folder, which must not be among the filled scans."""
    from brats_inpainting import files
    from brats_inpainting.report import Report

    keep_apart(report_path, *predictions)
    files.make_writable(report_path)
    return Report(report_path, **settings)


def write(
    fills: dict[Case, dict[str, Path]], report_path: Path, page: Report, failed: dict[str, str] | None = None
) -> dict[str, str]:
    """Write the report, without cases that failed before; return the reasons of all failures."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import tables

    failed = failed or {}
    done = {case: paths for case, paths in fills.items() if case.id not in failed}
    rows, unread = scoring.evaluate(done, truth_needed=False, report_path=report_path, on_case=page.add, quiet=quiet())
    out.print(f"written: {page.write(tables.grids(rows), failed | unread, folders(fills))}")
    return failed | unread


def write_for_run(fills: dict[Case, dict[str, Path]], report_path: Path, failed: dict[str, str], images: bool) -> None:
    """Write the report of a run of infer; errors are logged as warnings."""
    if len(fills) > MAX_CASES:
        log.info("no report.html for more than %d cases; the command report writes one for any folder", MAX_CASES)
        return
    try:
        write(fills, report_path, start(report_path, images=images), failed)
    except (ConfigError, OSError) as error:
        log.warning("no report.html: %s", error)


def folders(fills: dict[Case, dict[str, Path]]) -> set[Path]:
    """Return the folders whose paths the report leaves out."""
    return {path.parent for case, paths in fills.items() for path in (*case.files, *paths.values())}
