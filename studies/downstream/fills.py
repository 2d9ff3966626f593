"""The scans that are compared: made once by the package, then read from a work folder.

Arrays are X Y Z in LPS, 1 mm; the scans are those of BraTS geometry, 0 in the background.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

from brats_inpainting import Baseline, Filler, Inpainter, Options, baselines
from brats_inpainting.data import cases
from brats_inpainting.data.cases import Case
from brats_inpainting.evaluate import sibling_path
from brats_inpainting.fill import fill_case

VOIDED, TRUTH, LESION = "voided", "truth", "lesion"
BASELINES = ("mean", "biharmonic", "mirror")
NETWORKS = {"2D fast": ("small-2", "fast"), "3D fast": ("volume-2", "fast"), "3D realistic": ("volume-2", "realistic")}
UNCERTAINTY = "uncertainty"
FILLS = (*BASELINES, *NETWORKS)


@dataclass(frozen=True)
class Subject:
    """A case, and the folder of its fills."""

    case: Case
    work: Path

    @property
    def id(self) -> str:
        """The case's number, as in 90020-000."""
        return self.case.id.removeprefix("BraTS-GLI-")

    @property
    def person(self) -> str:
        """The number of the subject, who has several cases."""
        return self.id.split("-")[0]

    def mask(self) -> np.ndarray:
        """Return the whole mask, bool."""
        return _array(self.case.mask) > 0.5

    def image(self, fill: str) -> np.ndarray:
        """Return a scan, float32: its truth, with its lesion, voided, or filled (made if it is missing)."""
        if fill in {TRUTH, LESION}:
            return _array(self.case.image if fill == LESION else sibling_path(self.case, "t1n"))
        if fill == VOIDED:
            return np.where(self.mask(), 0, _array(self.case.image))
        target = self.work / fill.replace(" ", "-") / cases.output_name(self.case.id)
        if not target.exists():
            report_path = self._report_path if fill == UNCERTAINTY else None
            for folder in (target.parent, *([report_path] if report_path else [])):
                folder.mkdir(parents=True, exist_ok=True)
            fill_case(filler(fill), self.case, target, Options(report_path=report_path))
        return _array(target)

    def spread(self) -> np.ndarray:
        """Return the standard deviation of the samples of preset ``uncertainty``, made if it is missing."""
        self.image(UNCERTAINTY)
        (path,) = self._report_path.glob(f"{self.case.id}*std*")
        return _array(path)

    @property
    def _report_path(self) -> Path:
        return self.work / UNCERTAINTY / "report"


@cache
def filler(fill: str) -> Filler:
    """Return what makes a fill, with the bundled weights."""
    if fill in BASELINES:
        return Baseline(baselines.METHODS[fill])
    weights, preset = NETWORKS.get(fill, ("volume-2", UNCERTAINTY))
    return Inpainter.load(weights, preset=preset)


def subjects(data_path: Path, work: Path) -> list[Subject]:
    """Return the cases of a folder, the first mask of every subject before the second."""
    found = [Subject(case, work) for case in cases.find(data_path)]
    return sorted(found, key=lambda subject: (subject.id.split("-")[-1], subject.id))


def _array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)
