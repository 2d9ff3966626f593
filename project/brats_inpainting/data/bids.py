"""BIDS datasets: find T1w scans with lesion masks, name their fills, and write the JSON sidecars."""

from __future__ import annotations

import json
import logging
import os
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from brats_inpainting.data.bids_files import OURS, Dataset, Image, numbered
from brats_inpainting.data.cases import BIDS, Case, is_bids
from brats_inpainting.errors import ConfigError
from brats_inpainting.files import atomic_write

log = logging.getLogger(__name__)

BIDS_VERSION = "1.11.1"
SOFTWARE = "brats-inpainting"
TITLE = f"T1w scans with lesions filled by {SOFTWARE}"
MASK = "label-lesion_mask"  # the end of the name that messages suggest
SHOWN = 5  # near misses in a message, and scans with a warning


def find(folder: Path, participants: Sequence[str] = ()) -> list[Case]:
    """List the T1w scans of a dataset that have a lesion mask, in the same folder or in a derivative.

    Args:
        folder: the dataset.
        participants: labels with or without ``sub-``, also comma-separated; all if empty.

    Returns:
        Cases sorted by id, which is the scan's name without ``_T1w``.

    Raises:
        ConfigError: an unknown participant, no mask or several for a scan, or one name for two fills.
    """
    chosen = _chosen(folder, participants)
    dataset = Dataset(folder)
    scans = [scan for scan in dataset.scans if scan.entities["sub"] in chosen]
    found: dict[str, Case] = {}
    without = []
    for scan in scans:
        if not (masks := dataset.lesions(scan)):
            without.append(scan)
            continue
        case = _case(dataset, scan, masks)
        if (other := found.setdefault(_name(case), case)) is not case:
            raise ConfigError(f"{other.image}\n{scan.path}: both fills would be {_name(case)}\n  Keep one of them.")
    near = _near_misses(dataset, without, {path for case in found.values() for path in case.files})
    if not found:
        raise ConfigError(_nothing_found(folder, len(scans), [name for names in near.values() for name in names]))
    for case_id, names in [*near.items()][:SHOWN]:
        log.warning("%s: no lesion mask. Not recognized: %s", case_id, names[0])
    log.info("%d T1w scans with a lesion mask, %d without are skipped", len(found), len(without))
    return sorted(found.values(), key=lambda case: case.id)


def _case(dataset: Dataset, scan: Image, masks: list[Image]) -> Case:
    """Return the case of a scan with its lesion masks, and its brain mask if there is one.

    Raises:
        ConfigError: the masks are neither one nor the numbered parts of one.
    """
    if masks[1:] and not numbered(masks):
        both = "\n  ".join(str(mask.path) for mask in masks)
        raise ConfigError(f"{scan.path}: more than one lesion mask matches it\n  {both}\n  Keep one of them.")
    case_id = scan.path.name.rpartition("_")[0]
    mask, *more = (mask.path for mask in masks)
    brain, *others = [*(image.path for image in dataset.brains(scan)), None]
    if brain and brain.parent != scan.path.parent and others[0]:
        log.warning("%s: %d brain masks; %s is used", case_id, len(others), brain)
    reading, problem = dataset.reading(masks)
    return Case(case_id, scan.path, mask, tuple(more), brain, reading, problem)


def _near_misses(dataset: Dataset, scans: list[Image], taken: set[Path]) -> dict[str, list[str]]:
    """Return scan id → files that may be meant as its lesion mask, each with the name that it needs."""
    near: dict[str, list[str]] = {}
    for scan in scans:
        parts = [f"{name}-{value}" for name, value in scan.entities.items() if name != "desc"]
        for path, place in dataset.near_misses(scan):
            if path not in taken:
                act, end = ("rename", path.name.partition(".nii")[2]) if ".nii" in path.name else ("convert", ".gz")
                wanted = (place / "_".join([*parts, f"{MASK}.nii{end}"])).relative_to(dataset.folder)
                line = f"{path.relative_to(dataset.folder)}; if it is the lesion, {act} it to {wanted}"
                near.setdefault(scan.path.name.rpartition("_")[0], []).append(line)
    return near


def _nothing_found(folder: Path, scans: int, near: list[str]) -> str:
    """Return the message for a dataset without any lesion mask."""
    lines = [
        f"{folder}: none of {scans} T1w scans has a lesion mask",
        "Looked for sub-X/[ses-Y/]anat/*_T1w.nii[.gz] and, there or in derivatives/*/sub-X/[ses-Y/]anat, for",
        '*_mask.nii[.gz], *_roi or *_dseg whose label or desc is lesion, or *_mask with "Type": "Lesion" in its JSON',
        "file, with the scan's acq, run ….",
        f"Name a mask like its scan, with {MASK} for T1w.",
        *(["Not recognized:", *(f"  {line}" for line in near[:SHOWN])] if near else []),
    ]
    return "\n  ".join(lines)


def _chosen(folder: Path, participants: Sequence[str]) -> set[str]:
    """Return the labels of the selected participants."""
    there = {path.name.removeprefix("sub-") for path in folder.glob("sub-*/")}
    wanted = {label.strip().removeprefix("sub-") for given in participants for label in given.split(",")}
    if unknown := sorted(wanted - there):
        known = textwrap.shorten(", ".join(sorted(there)) or "none", 500, placeholder=" …")
        raise ConfigError(f"--participant-label {unknown[0]}: not in {folder}\n  There: {known}.")
    return wanted or there


def _name(case: Case) -> str:
    """Return the name of a fill: the scan's with desc replaced and placed last."""
    kept = [part for part in case.id.split("_") if not part.startswith("desc-")]
    return "_".join([*kept, f"desc-{OURS}", "T1w.nii.gz"])


def jobs(found: list[Case], dataset: Path, output_path: Path) -> dict[Path, Case]:
    """Return output path → case for a derivative dataset.

    Raises:
        ConfigError: the folder is in the scans' dataset, or holds another BIDS dataset.
    """
    place, scans = output_path.resolve(), dataset.resolve()
    if scans in place.parents and place.parent.name != "derivatives":
        raise ConfigError(
            f"{output_path}: in the scans' dataset\n  Give a separate folder, such as derivatives/{OURS}."
        )
    if is_bids(output_path) and TITLE not in (output_path / BIDS).read_text(errors="replace"):
        raise ConfigError(f"{output_path}: another BIDS dataset\n  Give a separate folder, such as derivatives/{OURS}.")
    return {output_path / case.image.parent.relative_to(dataset) / _name(case): case for case in found}


def describe(filled: dict[Path, Case], dataset: Path, output_path: Path) -> dict[str, str]:
    """Write dataset_description.json, and a JSON sidecar for every existing fill.

    Returns:
        Name → reason for files that could not be written.
    """
    failed = {}
    link = quote(os.path.relpath(dataset.resolve(), output_path.resolve()))
    content: dict[Path, dict[str, Any]] = {
        output_path / BIDS: {
            "Name": TITLE,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": SOFTWARE, "Version": version(SOFTWARE)}],
            "SourceDatasets": [{"URL": link}],
            "DatasetLinks": {"source": link},
        }
    }
    for target, case in filled.items():
        if target.exists():
            content[target.with_name(target.name.replace(".nii.gz", ".json"))] = _sidecar(case, dataset)
    for path, fields in content.items():
        text = json.dumps(fields, indent=2) + "\n"
        try:
            if not path.is_file() or path.read_text() != text:  # several runs may share the dataset
                with atomic_write(path) as unfinished:
                    unfinished.write_text(text)
        except OSError as error:
            failed[path.name] = f"{path}: cannot be written ({error.strerror})\n  Run it again with --resume."
    return failed


def _sidecar(case: Case, dataset: Path) -> dict[str, Any]:
    """Return the sidecar of a fill: description and sources."""
    sources = [f"bids:source:{quote(path.relative_to(dataset).as_posix())}" for path in case.files]
    fields = {
        "Description": "The scan with synthetic healthy tissue in place of the lesion; for research only",
        "Sources": sources,
        "SpatialReference": sources[0],
        "SkullStripped": case.brain is None,
    }
    return fields | ({"Resolution": "That of the scan"} if "_res-" in case.id else {})
