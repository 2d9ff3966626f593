"""The files of a folder of cases: which case each belongs to, and which to rename."""

from __future__ import annotations

import os
import re
from pathlib import Path

ENDING = r"\.(nii(\.gz)?|mgz)"
FILE = re.compile(rf"(?P<id>.+?)[-_](?P<kind>t1n[-_]voided|brain[-_]mask|mask){ENDING}", re.IGNORECASE | re.DOTALL)
BRAIN = re.compile(rf"(.*[-_])?(brain|bet)[-_]?mask{ENDING}", re.IGNORECASE | re.DOTALL)  # of brain extraction tools
KINDS = {"t1n": "image", "bra": "brain", "mas": "mask"}  # by their first letters
NEEDED = {"image", "mask"}
EXPECTED = {"image": "t1n-voided", "mask": "mask"}
NOUN = {"image": "scan", "mask": "mask", "brain": "brain mask"}
SEQUENCE = re.compile(rf"[-_](t1n|t1c|t2w|t2f){ENDING}$", re.IGNORECASE)
SIMILAR = {"image": ("t1n",), "mask": ("mask-healthy", "seg", "mask-unhealthy")}  # names of BraTS


def parse(name: str) -> tuple[str, str] | None:
    """Return the id of the case and the kind of a file, ``image``, ``mask`` or ``brain``; None for other files."""
    match = FILE.fullmatch(name)
    kind = KINDS[match["kind"][:3].lower()] if match else ""
    return (match["id"], kind) if match and not (kind == "mask" and BRAIN.fullmatch(name)) else None


def expected(case_id: str, kind: str) -> str:
    """Return the name that a file of a case should have."""
    return f"{case_id}-{EXPECTED[kind]}.nii.gz"


def is_volume(name: str) -> bool:
    """Return whether a name ends as those of volumes do."""
    return re.search(f"{ENDING}$", name, re.IGNORECASE) is not None


def files(folder: Path) -> dict[tuple[Path, str], dict[str, list[Path]]]:
    """Group the files of a folder and its sub-folders by folder and id, then by kind."""
    found: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    brains: list[tuple[Path, str]] = []
    for path in sorted(p for p in [*folder.glob("*"), *folder.glob("*/*")] if not p.name.startswith(".")):
        if not (parsed := parse(path.name)):
            if path.is_dir() and _has_misnamed_scans(path):
                found[path, path.name] = {}
        elif parsed[1] == "brain":
            brains.append((path, parsed[0]))
        else:
            found.setdefault((path.parent, parsed[0]), {}).setdefault(parsed[1], []).append(path)
    for path, case_id in brains:
        own = path.name[: len(case_id) + len("-brain")]
        if (path.parent, own) in found:  # the mask of a case whose id ends in brain
            found[path.parent, own].setdefault("mask", []).append(path)
        elif (path.parent, case_id) in found:
            found[path.parent, case_id].setdefault("brain", []).append(path)
    return found


def _has_misnamed_scans(folder: Path) -> bool:
    """Return whether a folder has only scans with other names, or cannot be read."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return folder.name != "lost+found"
    there = [path.name for path in folder.iterdir()]
    kinds = {parsed[1] for name in there if (parsed := parse(name))}
    return any(map(is_volume, there)) and not kinds & NEEDED


def problem(folder: Path, case_id: str, found: dict[str, list[Path]]) -> str:
    """Return why the files of a case cannot be used, and what to do, else nothing.

    A missing file is reported only where another could be meant; reading it reports it otherwise.
    """
    lines = [
        f"{' and '.join(path.name for path in paths)}: more than one {NOUN[kind]}. Keep one of them."
        for kind, paths in found.items()
        if paths[1:]
    ]
    missing = sorted(NEEDED - found.keys())
    if missing and (advice := _advice(folder, case_id, missing)):
        lines += [f"{expected(case_id, kind)}: no such file in {folder}" for kind in missing] + advice
    return "\n  ".join(["cannot be used", *lines]) if lines else ""


def _advice(folder: Path, case_id: str, missing: list[str]) -> list[str]:
    """Return what to do about the missing kinds of files where others in the folder could be meant."""
    try:
        there = sorted(path.name for path in folder.iterdir() if is_volume(path.name) and path.name.isprintable())
    except OSError:
        return []
    found = [line for kind in missing if (line := _similar(there, case_id, kind))]
    others = [name for name in there if not parse(name) and not SEQUENCE.search(name)]
    if found or not others:
        return found
    listed = ", ".join([*others[:5], *(["…"] if others[5:] else [])])
    wanted = " and ".join(expected(case_id, kind) for kind in missing)
    return [f"Found {listed}: rename or copy to {wanted}, or use --image and --mask."]


def _similar(there: list[str], case_id: str, kind: str) -> str:
    """Return which of BraTS's own files can be renamed."""
    for similar in SIMILAR[kind]:
        pattern = rf"{re.escape(case_id)}[-_]{similar.replace('-', '[-_]')}{ENDING}"
        for name in there:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                labels = ", and choose its labels with --label" if similar == "seg" else ""
                return f"Found {name}: rename or copy it to {expected(case_id, kind)}{labels}."
    return ""
