"""BIDS datasets: find T1w scans with lesion masks, name their fills, and write the JSON sidecars."""

from __future__ import annotations

import json
import logging
import os
import re
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from brats_inpainting.data.cases import BIDS, Case, is_bids
from brats_inpainting.errors import ConfigError
from brats_inpainting.files import atomic_write

log = logging.getLogger(__name__)

BIDS_VERSION = "1.11.1"
SOFTWARE = "brats-inpainting"
TITLE = f"T1w scans with lesions filled by {SOFTWARE}"
OURS = "inpainted"  # the desc of filled scans
FREE = {"label", "desc", "space"}  # entities in which a mask may differ from its scan
LESION = re.compile(r"(t[12]w?|flair)?lesions?", re.IGNORECASE)  # not "perilesional"
NAME = re.compile(r"(sub-[a-zA-Z0-9+]+(?:_[a-zA-Z]+-[a-zA-Z0-9+]+)*)_(T1w|mask|roi)\.nii(?:\.gz)?")


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
    scans = {
        scan: its
        for place in sorted([*folder.glob("sub-*/anat"), *folder.glob("sub-*/ses-*/anat")])
        for scan, its in _files(place, "T1w").items()
        if its["sub"] in chosen and its.get("desc") != OURS
    }
    roots = [folder, *sorted(folder.glob("derivatives/*"))]
    found: dict[str, Case] = {}
    for scan, its in scans.items():
        masks = _masks([root / scan.parent.relative_to(folder) for root in roots], its)
        if masks[1:]:
            both = "\n  ".join(map(str, masks))
            raise ConfigError(f"{scan}: more than one lesion mask matches it\n  {both}\n  Keep one of them.")
        if masks:
            case = Case(scan.name.rpartition("_")[0], scan, masks[0])
            if (other := found.setdefault(_name(case), case)) is not case:
                raise ConfigError(f"{other.image}\n{scan}: both fills would be {_name(case)}\n  Keep one of them.")
    if not found:
        raise ConfigError(
            f"{folder}: none of {len(scans)} T1w scans has a lesion mask\n"
            "  Looked for sub-X/[ses-Y/]anat/*_T1w.nii[.gz] and, there or in derivatives/*/sub-X/[ses-Y/]anat, for\n"
            "  *_mask.nii[.gz] or *_roi.nii[.gz] whose label or desc is lesion, with the scan's acq, run ….\n"
            "  Name a mask like its scan, with label-lesion_mask for T1w."
        )
    log.info("%d T1w scans with a lesion mask, %d without are skipped", len(found), len(scans) - len(found))
    return sorted(found.values(), key=lambda case: case.id)


def _chosen(folder: Path, participants: Sequence[str]) -> set[str]:
    """Return the labels of the selected participants."""
    there = {path.name.removeprefix("sub-") for path in folder.glob("sub-*/")}
    wanted = {label.strip().removeprefix("sub-") for given in participants for label in given.split(",")}
    if unknown := sorted(wanted - there):
        known = textwrap.shorten(", ".join(sorted(there)) or "none", 500, placeholder=" …")
        raise ConfigError(f"--participant-label {unknown[0]}: not in {folder}\n  There: {known}.")
    return wanted or there


def _files(folder: Path, *suffixes: str) -> dict[Path, dict[str, str]]:
    """Return the images of a folder that end in one of the suffixes, with their entities (name → value)."""
    named = {path: NAME.fullmatch(path.name) for path in sorted(folder.glob("sub-*.nii*"))}
    return {
        path: dict(part.split("-") for part in match[1].split("_"))
        for path, match in named.items()
        if match and match[2] in suffixes
    }


def _masks(places: list[Path], scan: dict[str, str]) -> list[Path]:
    """Return the lesion masks whose entities match the scan's."""
    return [
        path
        for place in places
        for path, mask in _files(place, "mask", "roi").items()
        if mask.get("label") == "L" or any(LESION.fullmatch(mask.get(entity, "")) for entity in ("label", "desc"))
        if all(scan.get(entity) == value for entity, value in mask.items() if entity not in FREE)
    ]


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
    scan, mask = (f"bids:source:{quote(path.relative_to(dataset).as_posix())}" for path in (case.image, case.mask))
    fields = {
        "Description": "The scan with synthetic healthy tissue in place of the lesion; for research only",
        "Sources": [scan, mask],
        "SpatialReference": scan,
        "SkullStripped": True,
    }
    return fields | ({"Resolution": "That of the scan"} if "_res-" in case.id else {})
