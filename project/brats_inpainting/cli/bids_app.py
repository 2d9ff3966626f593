"""The command line of BIDS Apps: ``BIDS_DIR OUTPUT_DIR participant`` is translated to options of ``infer``."""

from __future__ import annotations

from pathlib import Path

from brats_inpainting.errors import ConfigError

USAGE = "brats-inpainting BIDS_DIR OUTPUT_DIR participant [--participant-label 01 02] [options of infer]"
LEVELS = ("participant", "group")
LABELS = "--participant-label"
IGNORED = {"--skip-bids-validation", "--skip-bids-validator"}  # names of other apps; nothing is validated here


def translated(args: list[str]) -> list[str] | None:
    """Return the arguments of ``infer`` for those of a BIDS App, or None for another command line.

    Raises:
        ConfigError: the level is ``group`` or missing, or BIDS_DIR is not a BIDS dataset.
    """
    at = next((number for number, arg in enumerate(args) if arg in LEVELS), 0)
    folders = args[at - 2 : at] if at > 1 else []
    if not folders or any(folder.startswith("-") for folder in folders):
        _require_level(args)
        return None
    if args[at] == "group":
        raise ConfigError(
            "group: there is nothing to do at the group level\n  Run participant; every scan is filled alone."
        )
    _require_dataset(Path(folders[0]))
    options = _labels_joined([*args[: at - 2], *args[at + 1 :]])
    return ["infer", "--data-path", folders[0], "--output-path", folders[1], *options]


def _require_level(args: list[str]) -> None:
    """Reject the command line of a BIDS App without its level."""
    folders = [arg for arg in args[:2] if not arg.startswith("-")]
    if len(folders) == 2 and Path(folders[0]).is_dir():
        found = (
            f"{args[2]}: not an analysis level" if args[2:] and args[2][0] != "-" else "the analysis level is missing"
        )
        raise ConfigError(f"{found}\n  Usage: {USAGE}")


def _require_dataset(folder: Path) -> None:
    """Reject a folder without dataset_description.json."""
    from brats_inpainting.data.cases import BIDS, is_bids

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder\n  Usage: {USAGE}")
    if (folder / BIDS).is_symlink() and not is_bids(folder):
        raise ConfigError(f"{folder / BIDS}: a broken link\n  Fetch its content: datalad get, or git annex get.")
    if not is_bids(folder):
        raise ConfigError(
            f"{folder}: not a BIDS dataset, {BIDS} is missing\n"
            '  Add it, at least {"Name": "…", "BIDSVersion": "1.10.0"}. A folder of cases needs infer --data-path.'
        )


def _labels_joined(options: list[str]) -> list[str]:
    """Join the values of --participant-label by commas, and leave out options that have no meaning here."""
    joined: list[str] = []
    in_labels = False
    for arg in options:
        name = arg.partition("=")[0].replace("_", "-")
        if in_labels and not arg.startswith("-"):
            joined[-1] = f"{joined[-1]},{arg}" if joined[-1] != LABELS else f"{LABELS}={arg}"
            continue
        in_labels = name == LABELS
        if name not in IGNORED:
            joined.append(LABELS + arg[len(LABELS) :] if in_labels else arg)
    return joined
