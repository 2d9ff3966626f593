"""The page about filled scans, as several commands write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brats_inpainting.cli.app import log, out, quiet
from brats_inpainting.errors import ConfigError

if TYPE_CHECKING:
    from brats_inpainting.data.cases import Case
    from brats_inpainting.report import Page

MOST = 200  # cases that infer draws by itself; nobody leafs through more, and they take longer than the fills


def keep_apart(report_path: Path | None, *filled: Path | None) -> None:
    """Refuse a report among the filled scans: graders read every file there."""
    for folder in filled:
        if report_path and folder and report_path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{report_path}: lies in {folder}, which holds filled scans only\n  Move it.")


def begin(report_path: Path, predictions: Sequence[Path] = (), **settings: bool) -> Page:
    """Begin a page in a folder, which must not lie among the filled scans."""
    from brats_inpainting import files
    from brats_inpainting.report import Page

    keep_apart(report_path, *predictions)
    files.make_writable(report_path)
    return Page(report_path, **settings)


def write(
    fills: dict[Case, dict[str, Path]], report_path: Path, page: Page, failed: dict[str, str] | None = None
) -> dict[str, str]:
    """Write the page about filled scans, but for those that failed before; return what failed then and now."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import tables

    failed = failed or {}
    done = {case: paths for case, paths in fills.items() if case.id not in failed}
    rows, unread = scoring.evaluate(done, truth_needed=False, report_path=report_path, look=page.look, quiet=quiet())
    out.print(f"written: {page.write(tables.grids(rows), failed | unread, folders(fills))}")
    return failed | unread


def of_run(fills: dict[Case, dict[str, Path]], report_path: Path, failed: dict[str, str], images: bool) -> None:
    """Write the page about what infer filled; infer does not fail for it."""
    if len(fills) > MOST:
        log.info("no report.html for more than %d cases; the command report makes one of any folder", MOST)
        return
    try:
        write(fills, report_path, begin(report_path, images=images), failed)
    except (ConfigError, OSError) as error:
        log.warning("no report.html: %s", error)


def folders(fills: dict[Case, dict[str, Path]]) -> set[Path]:
    """Return the folders whose names must not stand on the page."""
    return {path.parent for case, paths in fills.items() for path in (case.image, case.mask, *paths.values())}
