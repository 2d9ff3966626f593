"""Brain extraction: BET's mask of a whole head with a synthetic lesion, compared with that of the untouched head.

The data are whole heads, ``{name}-t1.nii.gz``, each with ``{name}-brainmask.nii.gz``, which says where lesions are
drawn, and ``{name}-mask.nii.gz``, which they avoid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output
from scipy import ndimage

from brats_inpainting.data import masks
from brats_inpainting.data.cases import Case
from studies.downstream import regions
from studies.downstream.fills import TRUTH, VOIDED, Subject

MIRRORED = "untouched, mirrored"  # shows the tool's scatter
NAMES = (MIRRORED, VOIDED, "biharmonic", "2D fast", "3D fast")
SIZES = (20_000, 40_000, 80_000)  # voxels of 1 mm, approximately; one lesion each
ML = 1e-3  # of a voxel of 1 mm
THRESHOLD = 0.6  # of BET; at its default, 0.5, the mask of the untouched head has the eyes


def subjects(data_path: Path, work: Path) -> list[Subject]:
    """Return a case for each head and lesion, made once in the work folder, at 1 mm."""
    found = []
    for path in sorted(data_path.glob("*-t1.nii.gz")):
        head = path.name.removesuffix("-t1.nii.gz")
        for number, size in enumerate(SIZES, 1):
            name = f"{head}-{number}"
            files = {part: work / "heads" / f"{name}-{part}.nii.gz" for part in ("t1n", "t1n-voided", "mask", "brain")}
            if not files["brain"].exists():
                _write(path, files, np.random.default_rng(number), size)
            case = Case(name, files["t1n-voided"], files["mask"], brain=files["brain"])
            found.append(Subject(case, work))
    return found


def _write(path: Path, files: dict[str, Path], rng: np.random.Generator, size: int) -> None:
    """Draw a lesion in a head; the brain mask for the fill is that of the voided head and the lesion."""
    given = [path.with_name(path.name.replace("-t1.", f"-{part}.")) for part in ("brainmask", "mask")]
    image, brain, tumour = (at_1_mm(nib.load(name)) for name in (path, *given))
    brain_XYZ, tumour_XYZ = (mask.get_fdata() > 0.5 for mask in (brain, tumour))
    distance_XYZ = ndimage.distance_transform_edt(~tumour_XYZ)
    drawn_XYZ = masks.healthy_mask(brain_XYZ, distance_XYZ, [masks.compartment(rng, size)], rng) & brain_XYZ
    head_XYZ = image.get_fdata(dtype=np.float32)
    voided_XYZ = np.where(drawn_XYZ, 0, head_XYZ)
    known_XYZ = extracted(voided_XYZ) | drawn_XYZ
    volumes = (head_XYZ, voided_XYZ, drawn_XYZ.astype(np.uint8), known_XYZ.astype(np.uint8))
    for target, volume_XYZ in zip(files.values(), volumes, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume_XYZ, image.affine), target)


def at_1_mm(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image in LPS with voxels of 1 mm, linearly interpolated."""
    values = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)
    return resample_to_output(values, 1.0, order=1).slicer[::-1, ::-1]


def measured(subject: Subject, fill: str) -> Iterator[dict[str, Any]]:
    """Yield a row: the Dice coefficient of the brain masks, and the brain that is missing or added, in ml."""
    found_XYZ, truth_XYZ = (brain(subject, name) for name in (fill, TRUTH))
    missing, added = (np.count_nonzero(there) * ML for there in (truth_XYZ & ~found_XYZ, found_XYZ & ~truth_XYZ))
    yield {
        "case": subject.id,
        "fill": fill,
        "lesion": np.count_nonzero(subject.mask()) * ML,
        "dice": regions.dice(found_XYZ, truth_XYZ),
        "missing": missing,
        "added": added,
    }


def brain(subject: Subject, fill: str) -> np.ndarray:
    """Return BET's mask of a head, bool, X Y Z; computed once, then read from the work folder."""
    path = subject.work / "BET" / fill.replace(" ", "-") / f"{subject.id}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        step = -1 if fill == MIRRORED else 1
        image_XYZ = subject.image(TRUTH if fill == MIRRORED else fill)
        np.savez_compressed(path, extracted(np.ascontiguousarray(image_XYZ[::step]))[::step])
    with np.load(path) as file:
        return file["arr_0"]


def extracted(head_XYZ: np.ndarray) -> np.ndarray:
    """Return the brain mask that BET finds, bool."""
    from brainextractor import BrainExtractor

    with redirect_stdout(StringIO()):  # it prints every iteration
        found = BrainExtractor(nib.Nifti1Image(head_XYZ, np.diag([-1, -1, 1, 1])), bt=THRESHOLD)
        found.run()
    return found.compute_mask() > 0
