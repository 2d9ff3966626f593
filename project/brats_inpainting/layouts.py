"""Input layouts: which cases there are, and where each result goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from brats_inpainting.data import bids, cases
from brats_inpainting.data.cases import Case
from brats_inpainting.data.lesion import UNAMBIGUOUS, MaskReading
from brats_inpainting.errors import ConfigError

SUFFIXES = (".nii", ".nii.gz", ".mgz")  # of the file that a pair is filled into


class Layout(Protocol):
    """Cases on disk, and the names of their results."""

    @property
    def cases(self) -> list[Case]:
        """The cases; listed once, so that one that vanishes later fails by its name.

        Raises:
            ConfigError: when there is none, or a file cannot belong to this layout.
        """

    def jobs(self, output_path: Path) -> dict[Path, Case]:
        """Return the file that each case is filled into.

        Raises:
            ConfigError: when ``output_path`` cannot hold results.
        """

    def describe(self, output_path: Path, jobs: dict[Path, Case]) -> dict[str, str]:
        """Write what belongs to the results besides images; return name → reason of what could not be written."""


@dataclass(frozen=True)
class CaseFolder:
    """One sub-folder per case, ``{id}/{id}-t1n-voided.nii.gz`` and ``{id}/{id}-mask.nii.gz``, as the challenge has."""

    data_path: Path
    reading: MaskReading = UNAMBIGUOUS

    @cached_property
    def cases(self) -> list[Case]:
        """The cases of the folder."""
        return [replace(case, reading=self.reading) for case in cases.find(self.data_path)]

    def jobs(self, output_path: Path) -> dict[Path, Case]:
        """Return ``{id}-t1n-inference.nii.gz`` for each case."""
        return {output_path / cases.output_name(case.id): case for case in self.cases}

    def describe(self, _output_path: Path, _jobs: dict[Path, Case]) -> dict[str, str]:
        """Write nothing: graders read every file."""
        return {}


@dataclass(frozen=True)
class BidsDataset:
    """T1w scans with lesion masks; results are a BIDS derivative. ``participants``: these only, if any."""

    data_path: Path
    participants: Sequence[str] = ()
    reading: MaskReading = UNAMBIGUOUS

    @cached_property
    def cases(self) -> list[Case]:
        """The scans that have a lesion mask; a chosen reading replaces that of a segmentation's table."""
        found = bids.find(self.data_path, self.participants)
        return found if self.reading == UNAMBIGUOUS else [replace(case, reading=self.reading) for case in found]

    def jobs(self, output_path: Path) -> dict[Path, Case]:
        """Return ``…_desc-inpainted_T1w.nii.gz`` for each scan."""
        return bids.jobs(self.cases, self.data_path, output_path)

    def describe(self, output_path: Path, jobs: dict[Path, Case]) -> dict[str, str]:
        """Write ``dataset_description.json`` and a JSON file for each result."""
        return bids.describe(jobs, self.data_path, output_path)


@dataclass(frozen=True)
class Pair:
    """A single scan, its mask and optionally its brain mask; the result is one file, and the case is named after it."""

    image: Path
    mask: Path
    brain: Path | None = None
    reading: MaskReading = UNAMBIGUOUS

    @cached_property
    def cases(self) -> list[Case]:
        """The pair, named after the scan."""
        return [self._case(self.image)]

    def jobs(self, output_path: Path) -> dict[Path, Case]:
        """Return the output file and the pair."""
        if not output_path.name.endswith(SUFFIXES):
            raise ConfigError(f"{output_path}: not a NIfTI name\n  Let it end in .nii.gz, .nii or .mgz.")
        for given in self._inputs:
            if output_path.exists() and given.exists() and output_path.samefile(given):
                raise ConfigError(f"{output_path}: is an input too\n  Give another name for the result.")
        return {output_path: self._case(output_path)}

    def describe(self, _output_path: Path, _jobs: dict[Path, Case]) -> dict[str, str]:
        """Write nothing."""
        return {}

    def _case(self, named: Path) -> Case:
        for given in self._inputs:
            if not given.is_file() and not given.is_symlink():  # reading describes a broken link
                raise ConfigError(f"{given}: no such file")
        case_id = named.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".mgz")
        return Case(case_id, self.image, self.mask, brain=self.brain, reading=self.reading)

    @property
    def _inputs(self) -> list[Path]:
        return [given for given in (self.image, self.mask, self.brain) if given]


def of_folder(data_path: Path, participants: Sequence[str] = (), reading: MaskReading = UNAMBIGUOUS) -> Layout:
    """Return the layout of a folder: a BIDS dataset where there is a ``dataset_description.json``.

    Raises:
        ConfigError: when participants are chosen of anything else.
    """
    if cases.is_bids(data_path):
        return BidsDataset(data_path, participants, reading)
    if participants:
        raise ConfigError(f"{data_path}: no BIDS dataset, which --participant-label goes with\n  Leave it out.")
    return CaseFolder(data_path, reading)
