"""Find the cases of a folder, and load them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from brats_inpainting.data import listing, nifti, source
from brats_inpainting.data.lesion import UNAMBIGUOUS, MaskReading
from brats_inpainting.data.validation import LoadedCase, examine
from brats_inpainting.errors import CaseError, ConfigError

log = logging.getLogger(__name__)

MAX_NAME = 255 - len("-sample-1")  # bytes, on all common file systems; names of samples are longest
BIDS = "dataset_description.json"  # marks a BIDS dataset, raw or derivative


@dataclass(frozen=True)
class Case:
    """One scan to fill.

    Attributes:
        id: name in messages and results.
        image: the scan.
        mask: its lesion mask.
        more_masks: further masks of the same scan; all are joined.
        brain: its brain mask, if the scan is a whole head.
        reading: how the values of the masks are interpreted.
        problem: why the files cannot be used, found when they were listed; ``load`` reports it.
    """

    id: str
    image: Path
    mask: Path
    more_masks: tuple[Path, ...] = ()
    brain: Path | None = None
    reading: MaskReading = UNAMBIGUOUS
    problem: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the case."""
        return (self.image, self.mask, *self.more_masks, *([self.brain] if self.brain else []))

    def absolute(self) -> Case:
        """Return the case with absolute paths."""
        return replace(
            self,
            image=self.image.absolute(),
            mask=self.mask.absolute(),
            more_masks=tuple(path.absolute() for path in self.more_masks),
            brain=self.brain and self.brain.absolute(),
        )


def output_name(case_id: str) -> str:
    """Return the file name of a filled scan, as the challenge expects it."""
    return f"{case_id}-t1n-inference.nii.gz"


def is_bids(folder: Path) -> bool:
    """Return whether a folder is a BIDS dataset, which ``bids.find`` reads."""
    return os.access(folder / BIDS, os.F_OK)


def find(folder: Path) -> list[Case]:
    """List the cases of a folder: one sub-folder each, ``{id}/{id}-t1n-voided.nii.gz`` and ``{id}-mask.nii.gz``.

    ``_`` for ``-``, ``.nii`` and ``.mgz`` for ``.nii.gz``, and files in the folder itself are accepted too;
    ``{id}-brain-mask.nii.gz`` is the brain mask. Other files in the folder of a complete case are ignored.

    Returns:
        Cases sorted by id. ``load`` reports the missing files of incomplete cases, and two files of one kind.

    Raises:
        ConfigError: the folder does not exist, cannot be read, has no case, or has two of one id.
    """
    if is_bids(folder):
        raise ConfigError(
            f"{folder}: a BIDS dataset, which only infer, baseline and check read\n  Give a folder of cases."
        )
    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder\n  Give the folder that holds one sub-folder per case.")
        next(folder.iterdir(), None)  # raises where glob would find nothing
        files = listing.files(folder)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})\n  Run chmod a+rX on it.") from error
    if not files:
        raise ConfigError(
            f"{folder}: no case found\n"
            "  Looked for ID/ID-t1n-voided.nii.gz and ID/ID-mask.nii.gz (.nii, .mgz, and _ for -, are accepted).\n"
            f"  Found: {source.listing(folder)}.\n"
            "  For a single pair of files use --image T1 --mask MASK --output FILE."
        )
    complete = {parent for (parent, _), found in files.items() if found.keys() >= listing.NEEDED} - {folder}
    files = {key: found for key, found in files.items() if found.keys() >= listing.NEEDED or key[0] not in complete}
    counted = Counter(case_id for _, case_id in files)
    if twice := sorted(case_id for case_id, times in counted.items() if times > 1):
        raise ConfigError(f"{folder}: {twice[0]} exists twice, and both would be written to one file\n  Rename one.")
    return [_case(*key, found) for key, found in sorted(files.items(), key=lambda item: item[0][1])]


def _case(folder: Path, case_id: str, found: dict[str, list[Path]]) -> Case:
    """Return a case of a folder; missing files have the expected names."""
    image, mask = (found.get(kind, [folder / listing.expected(case_id, kind)])[0] for kind in ("image", "mask"))
    brain = found["brain"][0] if "brain" in found else None
    shown = case_id if case_id.isprintable() else ascii(case_id)[1:-1]
    return Case(shown, image, mask, brain=brain, problem=listing.problem(folder, case_id, found))


def load(case: Case) -> LoadedCase:
    """Read and validate a case.

    Raises:
        CaseError: listing every problem.
    """
    if problem := _name_problem(case) or case.problem:
        raise CaseError(f"{case.id}: {problem}")
    try:
        return _load(case)
    except MemoryError as error:
        raise CaseError(f"{case.id}: not enough memory to read it ({error})\n  Crop its two files.") from error


def _load(case: Case) -> LoadedCase:
    images, problems = [], []
    for path in case.files:
        try:
            images.append(nifti.read(path))
        except CaseError as error:
            problems.append(str(error))
    if problems:
        raise CaseError(f"{case.id}: cannot be read\n  " + "\n  ".join(problems))
    brain = images.pop() if case.brain else None
    return examine(
        case.id,
        *images[:2],
        names=tuple(path.name for path in (case.image, case.mask, *case.more_masks)),
        more_masks=images[2:],
        brain=brain,
        reading=case.reading,
    )


def _name_problem(case: Case) -> str | None:
    """Return why a case's file names cannot be used (not printable, too long), or None."""
    if not f"{case.image.name}{case.mask.name}".isprintable():
        return "its file names contain characters that cannot be printed\n  Use letters, digits, - and _."
    spare = MAX_NAME - len(os.fsencode(output_name(case.id)))
    return f"its name is too long for its result\n  Shorten it by {-spare} bytes." if spare < 0 else None
