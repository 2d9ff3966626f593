"""Find the cases of a folder, and load and validate them."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from brats_inpainting.data import nifti
from brats_inpainting.data.lesion import UNAMBIGUOUS, MaskReading, lesion_of
from brats_inpainting.errors import CaseError, ConfigError

log = logging.getLogger(__name__)

AFFINE_TOLERANCE = 1e-3
MAX_BRAIN_ML = 2300  # a larger foreground is taken for a head that is not skull-stripped
MAX_NAME = 255 - len("-sample-1")  # bytes, on all common file systems; names of samples are longest
BIDS = "dataset_description.json"  # marks a BIDS dataset, raw or derivative
FILE = re.compile(r"(?P<id>.+)[-_](?P<kind>t1n[-_]voided|mask)\.nii(\.gz)?", re.IGNORECASE | re.DOTALL)


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


@dataclass(frozen=True)
class LoadedCase:
    """A validated case in memory.

    ``image_XYZ`` is float32 with the file's scaling applied, the masks are bool; trailing axes of length one are
    dropped. ``template`` has the header, the affine and the original shape. ``brain_XYZ`` is given for whole heads.
    """

    id: str
    template: Nifti1Image
    image_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    warnings: list[str]
    brain_XYZ: np.ndarray | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres."""
        x, y, z = voxel_sizes(self.template.affine)
        return float(x), float(y), float(z)


def output_name(case_id: str) -> str:
    """Return the file name of a filled scan, as the challenge expects it."""
    return f"{case_id}-t1n-inference.nii.gz"


def is_bids(folder: Path) -> bool:
    """Return whether a folder is a BIDS dataset, which ``bids.find`` reads."""
    return os.access(folder / BIDS, os.F_OK)


def find(folder: Path) -> list[Case]:
    """List the cases of a folder: one sub-folder each, ``{id}/{id}-t1n-voided.nii.gz`` and ``{id}-mask.nii.gz``.

    ``_`` for ``-``, ``.nii`` for ``.nii.gz``, and files in the folder itself are accepted too. Other files in the
    folder of a complete case are ignored.

    Returns:
        Cases sorted by id. An incomplete case has the expected name of the missing file, which ``load`` reports.

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
        files = _files(folder)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})\n  Run chmod a+rX on it.") from error
    if not files:
        raise ConfigError(
            f"{folder}: no case found\n"
            "  Looked for ID/ID-t1n-voided.nii.gz and ID/ID-mask.nii.gz (.nii, and _ for -, are accepted).\n"
            f"  Found: {nifti.listing(folder)}.\n"
            "  For a single pair of files use --image T1 --mask MASK --output FILE."
        )
    complete = {parent for (parent, _), found in files.items() if len(found) == 2} - {folder}
    files = {key: found for key, found in files.items() if len(found) == 2 or key[0] not in complete}
    counted = Counter(case_id for _, case_id in files)
    if twice := sorted(case_id for case_id, times in counted.items() if times > 1):
        raise ConfigError(f"{folder}: {twice[0]} exists twice, and both would be written to one file\n  Rename one.")
    return [
        Case(
            case_id if case_id.isprintable() else ascii(case_id)[1:-1],
            found.get("image") or found["mask"].with_name(f"{case_id}-t1n-voided.nii.gz"),
            found.get("mask") or found["image"].with_name(f"{case_id}-mask.nii.gz"),
        )
        for (_, case_id), found in sorted(files.items(), key=lambda item: item[0][1])
    ]


def _files(folder: Path) -> dict[tuple[Path, str], dict[str, Path]]:
    """Group the files of a folder and its sub-folders by folder and id."""
    files: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in sorted(p for p in [*folder.glob("*"), *folder.glob("*/*")] if not p.name.startswith(".")):
        if match := FILE.fullmatch(path.name):
            kind = "mask" if match["kind"].lower() == "mask" else "image"
            files.setdefault((path.parent, match["id"]), {}).setdefault(kind, path)
        elif path.is_dir() and _has_misnamed_scans(path):
            files[path, path.name] = {"image": path / f"{path.name}-t1n-voided.nii.gz"}
    return files


def _has_misnamed_scans(folder: Path) -> bool:
    """Return whether a folder has only scans with other names, or cannot be read."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return folder.name != "lost+found"
    return any(folder.glob("*.nii*")) and not any(FILE.fullmatch(path.name) for path in folder.iterdir())


def load(case: Case) -> LoadedCase:
    """Read and validate a case.

    Raises:
        CaseError: listing every problem.
    """
    if problem := case.problem or _name_problem(case):
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
    return examine(
        case.id,
        images[0],
        images[1],
        names=(case.image.name, case.mask.name),
        brain=images[-1] if case.brain else None,
        reading=case.reading,
    )


def _name_problem(case: Case) -> str | None:
    """Return why a case's file names cannot be used (not printable, too long), or None."""
    if not f"{case.image.name}{case.mask.name}".isprintable():
        return "its file names contain characters that cannot be printed\n  Use letters, digits, - and _."
    spare = MAX_NAME - len(os.fsencode(output_name(case.id)))
    return f"its name is too long for its result\n  Shorten it by {-spare} bytes." if spare < 0 else None


def examine(
    case_id: str,
    image: Nifti1Image,
    mask: Nifti1Image,
    *,
    names: tuple[str, str],
    brain: Nifti1Image | None = None,
    reading: MaskReading = UNAMBIGUOUS,
) -> LoadedCase:
    """Validate an image and its masks, and return them as a case.

    Args:
        case_id: name of the case in messages.
        image: the scan.
        mask: its lesion mask.
        names: what messages call the two.
        brain: its brain mask, if it is a whole head.
        reading: how the values of the mask are interpreted.

    Raises:
        CaseError: listing every problem.
    """
    for given, name in zip((image, mask), names, strict=True):
        nifti.check(given, name)
    image_XYZ, values_XYZ = nifti.values(image), nifti.values(mask)
    problems = [*_grid_problems(names, image, mask), *_value_problems(names, image_XYZ, values_XYZ)]
    if problems:
        raise CaseError(f"{case_id}: " + "\n  ".join(problems))
    mask_XYZ = lesion_of(values_XYZ, reading)
    brain_XYZ = None if brain is None else nifti.values(brain) > 0.5
    warnings = [*_mask_warnings(mask_XYZ, values_XYZ), *_image_warnings(image, image_XYZ, mask_XYZ)]
    for warning in warnings:
        log.warning("%s: %s", case_id, warning)
    return LoadedCase(case_id, image, image_XYZ, mask_XYZ, warnings, brain_XYZ)


def _grid_problems(names: tuple[str, str], image: Nifti1Image, mask: Nifti1Image) -> Iterator[str]:
    if image.shape[:3] == mask.shape[:3] and np.allclose(image.affine, mask.affine, rtol=0, atol=AFFINE_TOLERANCE):
        return
    lines = [
        f"{name}   {nifti.format_shape(i.shape)}, origin {_numbers(a[:3, 3])}, axes {_numbers(a[:3, :3].ravel())}"
        for name, i, a in zip(names, (image, mask), (image.affine, mask.affine), strict=True)
    ]
    advice = "Shapes must be equal, and affines within 0.001. Resample the mask onto the image (nearest neighbour)."
    yield "\n  ".join(["mask and image lie on different grids", *lines, advice])


def _value_problems(names: tuple[str, str], image_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> Iterator[str]:
    bad = np.count_nonzero(~np.isfinite(image_XYZ))
    if bad:
        yield f"{bad:,} NaN or infinite voxels in {names[0]}\n  Repair the scan (0 is background)."
    elif image_XYZ.min() == image_XYZ.max():
        yield f"{names[0]} is {image_XYZ.flat[0]:g} everywhere\n  Export the scan again: it is empty."
    if np.isnan(mask_XYZ).any() or mask_XYZ.min() < 0:
        yield f"{names[1]} has negative or NaN values\n  A mask is 1 where tissue is to be filled, 0 elsewhere."
    elif not bad and image_XYZ.shape == mask_XYZ.shape and (mask_XYZ > 0.5).any():
        left = image_XYZ[mask_XYZ <= 0.5]
        if left.size == 0 or left.min() == left.max():
            yield f"{names[1]} covers the whole brain\n  No tissue is left: give a smaller mask, or invert it."


def _mask_warnings(mask_XYZ: np.ndarray, values_XYZ: np.ndarray) -> Iterator[str]:
    if not np.isin(values_XYZ, (0, 1)).all():
        yield "the mask contains values other than 0 and 1; voxels above 0.5 are filled"
    if not mask_XYZ.any():
        yield "the mask is empty: the output is the input"


def _image_warnings(image: Nifti1Image, image_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> Iterator[str]:
    zooms = voxel_sizes(image.affine)
    if (abs(zooms - 1) > 0.05).any():
        yield f"voxels of {_numbers(zooms)} mm; the network was trained at 1 mm, so expect a worse fill"
    if image.ndim > 3:
        yield "a trailing axis of length one is dropped, and restored in the output"
    level = background_level(image_XYZ, mask_XYZ)
    foreground_XYZ = image_XYZ != level
    yield from _place_warnings(image, foreground_XYZ & ~mask_XYZ, mask_XYZ)
    if foreground_XYZ.mean() > 0.9:
        yield "no background around the brain; the intensities are scaled for scans with background 0"
        return
    bright_XYZ = abs(image_XYZ - level) > 0.05 * np.percentile(abs(image_XYZ - level), 99.9)
    if bright_XYZ.sum() * zooms.prod() / 1000 > MAX_BRAIN_ML:
        yield "probably not skull-stripped: the network was trained on brains, so the fill will be wrong near the skull"
    whole = bright_XYZ | mask_XYZ
    if any(face.mean() > 0.05 for face in _faces(whole)):
        yield "the brain is cropped by the edge of the image; the fill near that edge will be worse"


def _place_warnings(image: Nifti1Image, tissue_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> Iterator[str]:
    """Warn if the mask has no tissue around it, or covers whole slices."""
    if not mask_XYZ.any():
        return
    box = ndimage.find_objects(mask_XYZ.astype(np.uint8))[0]
    around = tuple(slice(max(0, side.start - 2), side.stop + 2) for side in box)
    if not tissue_XYZ[around].any():
        yield "there is no brain around the mask: is it the right mask?"
    axial = int(np.flatnonzero(nib.io_orientation(image.affine)[:, 0] == 2)[0])
    in_plane = tuple(axis for axis in range(3) if axis != axial)
    buried = np.count_nonzero(mask_XYZ.any(in_plane) & ~tissue_XYZ.any(in_plane))
    if buried:
        yield f"the mask leaves no brain in {buried} of its slices; these are filled without context"


def background_level(image_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> float:
    """Return the background's intensity: the median of the volume's faces outside the mask; 0 in BraTS."""
    rim = np.concatenate([face[~masked] for face, masked in zip(_faces(image_XYZ), _faces(mask_XYZ), strict=True)])
    return float(np.median(rim)) if rim.size else 0.0


def _faces(array_XYZ: np.ndarray) -> list[np.ndarray]:
    """Return views of the six faces of a volume."""
    return [np.moveaxis(array_XYZ, axis, 0)[end] for axis in range(3) for end in (0, -1)]


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"
