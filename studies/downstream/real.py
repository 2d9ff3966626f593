"""Real lesions: there is no truth, so fills are compared with the patient's own tissue.

Multiple sclerosis: the lesion's intensities against white matter around it, and its tissue classes. Glioma: symmetry of
tissue volumes, and how much the registration to a template deforms the surroundings of the tumour.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brats_inpainting.data.cases import Case
from studies.downstream import regions, registration, segmentation
from studies.downstream.fills import LESION, VOIDED, Subject

FILLS = (LESION, "biharmonic", "2D fast", "3D fast")
NAMES = (LESION, VOIDED, registration.MASKED, *FILLS[1:])
SCLEROSIS = ("90501-000", "90503-000")
WHITE = 3
BINS = 32


def subjects(data_path: Path, work: Path) -> list[Subject]:
    """Return the scans of a folder that have real lesions, ``{id}-t1n.nii.gz`` and ``{id}-mask.nii.gz``."""
    found = [(path.name.removesuffix("-mask.nii.gz"), path) for path in sorted(data_path.glob("*-mask.nii.gz"))]
    return [Subject(Case(name, path.with_name(f"{name}-t1n.nii.gz"), path), work) for name, path in found]


def measured(subject: Subject, fill: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each measure."""
    sclerosis = subject.id in SCLEROSIS
    found: dict[str, float] = {}
    if fill in FILLS:
        found |= (white_matter if sclerosis else symmetry)(subject, fill)
        found |= composition(subject, fill)
    if not sclerosis:
        found |= deformation(subject, fill)
    for measure, value in found.items() or {"not applicable": float("nan")}.items():
        yield {"case": subject.id, "fill": fill, "measure": measure, "value": value}


def white_matter(subject: Subject, fill: str) -> dict[str, float]:
    """Compare the intensities in the mask with white matter at most 10 mm from it, in units of that one's mean."""
    image_XYZ, mask_XYZ = subject.image(fill), subject.mask()
    white_XYZ = segmentation.classes(subject, LESION, "Atropos") == WHITE
    around = image_XYZ[white_XYZ & (regions.regions(mask_XYZ, white_XYZ) == 2)]
    inside = image_XYZ[mask_XYZ] / around.mean()
    around = around / around.mean()
    return {
        "mean": float(inside.mean()),
        "std": float(inside.std()),
        "std_white_matter": float(around.std()),
        "overlap": shared(inside, around),
    }


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Return the common area of two histograms: 1 if they are equal, 0 if they are apart."""
    edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), BINS + 1)
    counts = [np.histogram(values, edges)[0] / values.size for values in (a, b)]
    return float(np.minimum(*counts).sum())


def composition(subject: Subject, fill: str) -> dict[str, float]:
    """Return the share of each tissue in the mask."""
    inside = segmentation.classes(subject, fill, "Atropos")[subject.mask()]
    return {f"{name} in mask": float((inside == tissue).mean()) for tissue, name in enumerate(regions.TISSUES, 1)}


def symmetry(subject: Subject, fill: str) -> dict[str, float]:
    """Return the asymmetry of each tissue's volume, |left − right| / (left + right), at the middle of the brain."""
    classes_XYZ = segmentation.classes(subject, fill, "Atropos")
    known = np.flatnonzero((classes_XYZ > 0).any(axis=(1, 2)))
    middle = (known[0] + known[-1] + 1) // 2
    found = {}
    for tissue, name in enumerate(regions.TISSUES, 1):
        one, other = (np.count_nonzero(half == tissue) for half in (classes_XYZ[:middle], classes_XYZ[middle:]))
        found[f"asymmetry of {name}"] = abs(one - other) / (one + other)
    return found


def deformation(subject: Subject, fill: str) -> dict[str, float]:
    """Return mean and 95th percentile of SyN's displacement beyond the affine stage, in mm, by region."""
    found = registration.registered(subject, fill)
    tissue_XYZ = subject.image(LESION) > 0
    region = found.carry(regions.regions(subject.mask(), tissue_XYZ))
    return regions.lengths(found.displacement_XYZ3 - found.affine_XYZ3, region)
