"""The files of a BIDS dataset: names, sidecars, and the lesion and brain masks that belong to a scan."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from brats_inpainting.data.lesion import UNAMBIGUOUS, MaskReading

log = logging.getLogger(__name__)

OURS = "inpainted"  # the desc of filled scans
FREE = {"label", "desc", "space"}  # entities in which a mask may differ from its scan
ENTITY = r"[a-zA-Z]+-[a-zA-Z0-9+]+"
NAME = re.compile(  # fMRIPrep documents sub-X_T1w_label-lesion_roi; seg-lst is LST-AI's
    rf"(sub-[a-zA-Z0-9+]+(?:_{ENTITY})*?)(?:_T1w(?=.*_(?:mask|roi|dseg)\.)((?:_{ENTITY})*))?"
    r"_(T1w|mask|roi|dseg|seg-lst)\.nii(?:\.gz)?"
)
LESION = re.compile(r"(t[12]w?|flair)?lesions?\d*", re.IGNORECASE)  # not "perilesional"
NUMBERED = re.compile(r"(?<=lesion)(s?)\d+(?=_)", re.IGNORECASE)
TABLE_NAME = re.compile(
    r"(?<![a-z])(?<!peri[-_ ])(?<!non[-_ ])(?<!no[-_ ])(t[12]w?|flair|wm)?lesions?(?![a-z])", re.IGNORECASE
)
LOCATIONS = "annotated"  # the desc of LST-AI's second mask, the same lesions labelled by place
NEAR_MISS = re.compile(r"(les|roi|mask|seg|tumou?r).*\.(nii|nii\.gz|mg[hz]|nrrd|mh[ad]|img)$", re.IGNORECASE)
LIKELY = re.compile(r"les|tumou?r", re.IGNORECASE)
SCANS = re.compile(r"_(T1w|T2w|FLAIR|defacemask)\.")
ORDINARY = re.compile(r"desc-(brain|aseg|aparcaseg|ribbon)_|label-(GM|WM|CSF|brain)_|_(dseg|probseg)\.")


@dataclass(frozen=True)
class Image:
    """An image of a dataset: ``entities`` are name → value, ``root`` is the folder of its dataset or derivative."""

    path: Path
    root: Path
    entities: dict[str, str]
    suffix: str

    def matches(self, scan: Image, free: Iterable[str]) -> bool:
        """Return whether all its entities but the free ones have the scan's values."""
        return all(scan.entities.get(entity) == value for entity, value in self.entities.items() if entity not in free)

    @property
    def named_lesion(self) -> bool:
        """Return whether its name says that it is a lesion mask."""
        values = [self.entities.get(entity, "") for entity in ("label", "desc")]
        lesion = values[0] == "L" or any(map(LESION.fullmatch, values)) or self.suffix == "seg-lst"
        return lesion and self.suffix != "T1w" and values[1] != LOCATIONS

    @property
    def named_brain(self) -> bool:
        """Return whether its name says that it is a brain mask."""
        return self.suffix == "mask" and self.entities.get("desc") == "brain" and not self.named_lesion


class Dataset:
    """A BIDS dataset and its derivatives; every folder is listed once."""

    def __init__(self, folder: Path) -> None:
        """List the derivatives of a dataset."""
        self.folder = folder
        self.roots = [folder, *sorted(folder.glob("derivatives/*"))]
        self._names: dict[Path, list[str]] = {}
        self._sidecars: dict[Path, list[str]] = {}

    @cached_property
    def scans(self) -> list[Image]:
        """All T1w scans of the dataset itself, except fills; sorted."""
        places = sorted([*self.folder.glob("sub-*/anat"), *self.folder.glob("sub-*/ses-*/anat")])
        scans = [image for place in places for image in self._images(self.folder, place) if image.suffix == "T1w"]
        return [scan for scan in scans if scan.entities.get("desc") != OURS]

    def lesions(self, scan: Image) -> list[Image]:
        """Return the lesion masks of a scan: masks by their names, else segmentations, else masks by their sidecars."""
        ours = [image for image in self._beside(scan) if image.matches(scan, FREE)]
        ways: tuple[Callable[[Image], bool], ...] = (
            lambda image: image.suffix in {"mask", "roi"} and image.named_lesion,
            lambda image: image.named_lesion,
            lambda image: image.suffix in {"mask", "roi"} and not image.named_brain and self._is_lesion_type(image),
        )
        return next((found for is_lesion in ways if (found := [*filter(is_lesion, ours)])), [])

    def brains(self, scan: Image) -> list[Image]:
        """Return the brain masks of a whole head, that in the scan's folder first."""
        if scan.entities.get("desc") == "brain" or self._metadata(scan, "SkullStripped") is True:
            return []
        return [image for image in self._beside(scan) if image.named_brain and image.matches(scan, {"desc"})]

    def near_misses(self, scan: Image) -> list[tuple[Path, Path]]:
        """Return files that may be meant as lesion masks of a scan, likely ones first, and the folder for each."""
        found = [
            (not LIKELY.search(rest), folder / name, place)
            for place in self._places(scan)
            for folder in (place, place.parent)
            for name in self.names(folder)
            if NEAR_MISS.search(rest := re.sub(r"(sub|ses)-[a-zA-Z0-9+]*", "", name)) and not SCANS.search(name)
            if LIKELY.search(rest) or not ORDINARY.search(name)
        ]
        return [(path, place) for _, path, place in sorted(found, key=lambda one: one[0])]

    def reading(self, masks: list[Image]) -> tuple[MaskReading, str]:
        """Return how segmentations are read, by their tables; and what is wrong with a table, or an empty text."""
        labels: set[int] = set()
        for mask in masks:
            if mask.suffix == "dseg" and (table := next(self._inherited(mask, ".tsv"), None)):
                try:
                    labels |= _lesion_labels(table)
                except (OSError, ValueError, TypeError, csv.Error) as error:
                    return UNAMBIGUOUS, f"{table}: not a table of labels ({error})\n  Give it columns index and name."
        return MaskReading(labels=tuple(sorted(labels))), ""

    def names(self, folder: Path) -> list[str]:
        """Return the sorted names in a folder; none if it cannot be read."""
        if folder not in self._names:
            try:
                self._names[folder] = sorted(path.name for path in folder.iterdir())
            except OSError:
                self._names[folder] = []
        return self._names[folder]

    def _places(self, scan: Image) -> list[Path]:
        """Return the scan's folder and the corresponding ones of the derivatives."""
        return [root / scan.path.parent.relative_to(self.folder) for root in self.roots]

    def _beside(self, scan: Image) -> list[Image]:
        """Return the images in the places of a scan."""
        places = zip(self.roots, self._places(scan), strict=True)
        return [image for root, place in places for image in self._images(root, place)]

    def _images(self, root: Path, place: Path) -> list[Image]:
        named = {name: NAME.fullmatch(name) for name in self.names(place)}
        return [
            Image(
                place / name, root, dict(part.split("-") for part in f"{match[1]}{match[2] or ''}".split("_")), match[3]
            )
            for name, match in named.items()
            if match
        ]

    def _is_lesion_type(self, image: Image) -> bool:
        return str(self._metadata(image, "Type")).lower() == "lesion"

    def _metadata(self, image: Image, field: str) -> Any:
        """Return a field of the nearest JSON file that has it, or None."""
        for path in self._inherited(image, ".json"):
            try:
                fields = json.loads(path.read_text())
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(fields, dict) and field in fields:
                return fields[field]
        return None

    def _inherited(self, image: Image, extension: str) -> Iterator[Path]:
        """Find the files that describe an image by BIDS's inheritance principle, the nearest first."""
        *own, _ = image.path.name.split(".")[0].split("_")
        folders = list(image.path.parents)
        for folder in folders[: folders.index(image.root) + 1]:
            for name in self._sidecars_in(folder):
                *entities, suffix = name.removesuffix(extension).split("_")
                describes = name.endswith(extension) and suffix == image.suffix and set(entities) <= set(own)
                path = folder / name
                if describes and (path.is_file() or not path.exists()):  # a broken link is reported, a pipe would block
                    yield path

    def _sidecars_in(self, folder: Path) -> list[str]:
        """Return the JSON and TSV files in a folder, those with most entities first."""
        if folder not in self._sidecars:
            found = [name for name in self.names(folder) if name.endswith((".json", ".tsv"))]
            self._sidecars[folder] = sorted(found, key=lambda name: -name.count("_"))
        return self._sidecars[folder]


def numbered(masks: list[Image]) -> bool:
    """Return whether masks are the parts of one, as label-lesion1_mask and label-lesion2_mask in one folder."""
    one = {mask.path.parent / NUMBERED.sub(r"\1", mask.path.name) for mask in masks}
    return len(one) == 1 and all(NUMBERED.search(mask.path.name) for mask in masks)


def _lesion_labels(table: Path) -> set[int]:
    """Return the labels that a table with the columns index and name calls lesions.

    Raises:
        OSError, ValueError, TypeError, csv.Error: the file is no such table.
    """
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t")
        if missing := {"index", "name"} - {*(reader.fieldnames or [])}:
            raise ValueError(f"no column {min(missing)}")
        rows = [(int(row["index"]), row["name"]) for row in reader]
    return {index for index, name in rows if index and TABLE_NAME.search(name)}
