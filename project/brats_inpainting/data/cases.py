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
from nibabel.processing import resample_from_to

from brats_inpainting.data import nifti
from brats_inpainting.data.background import Background, faces
from brats_inpainting.data.lesion import UNAMBIGUOUS, MaskReading, lesion_of
from brats_inpainting.data.transforms import bounding_box
from brats_inpainting.errors import CaseError, ConfigError

log = logging.getLogger(__name__)

AFFINE_TOLERANCE = 1e-3
MAX_BRAIN_ML = 2300  # a larger foreground is taken for a head that is not skull-stripped
MAX_FOREGROUND = 0.9  # of the voxels; more means that there is no background
BRIGHT = 0.05  # of the brightest tissue; darker voxels can be air
MAX_ON_FACE = 0.05  # of a face; more tissue there means a cropped brain
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
    brain_XYZ = None if brain is None else _brain(case_id, brain, image)
    warnings = [*_mask_warnings(mask_XYZ, values_XYZ), *_image_warnings(image, image_XYZ, mask_XYZ, brain_XYZ)]
    for warning in warnings:
        log.warning("%s: %s", case_id, warning)
    return LoadedCase(case_id, image, image_XYZ, mask_XYZ, warnings, brain_XYZ)


def _brain(case_id: str, brain: Nifti1Image, image: Nifti1Image) -> np.ndarray:
    """Return a brain mask on the grid of the scan, bool; on another grid the nearest voxels are taken.

    Raises:
        CaseError: it is empty, or damaged.
    """
    if brain.shape[:3] != image.shape[:3] or not np.allclose(brain.affine, image.affine, atol=AFFINE_TOLERANCE):
        brain = resample_from_to(brain, (image.shape[:3], image.affine), order=0)
    brain_XYZ = nifti.values(brain) > 0.5
    if not brain_XYZ.any():
        raise CaseError(f"{case_id}: the brain mask is empty, or elsewhere than the scan\n  Give a mask of this scan.")
    return brain_XYZ


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


def _image_warnings(
    image: Nifti1Image, image_XYZ: np.ndarray, mask_XYZ: np.ndarray, brain_XYZ: np.ndarray | None
) -> Iterator[str]:
    if image.ndim > 3:
        yield "a trailing axis of length one is dropped, and restored in the output"
    if not (image.header["qform_code"] or image.header["sform_code"]):
        axes = "".join(nib.aff2axcodes(image.affine))
        yield f"no orientation in its header (qform and sform codes are 0): {axes} is assumed; check left and right"
    background = Background.of(image_XYZ, mask_XYZ)
    tissue_XYZ = background.foreground(image_XYZ)
    if brain_XYZ is not None:
        yield from _brain_warnings(image, brain_XYZ)
        yield from _place_warnings(image, tissue_XYZ & brain_XYZ & ~mask_XYZ, mask_XYZ)
        return
    yield from _place_warnings(image, tissue_XYZ & ~mask_XYZ, mask_XYZ)
    if tissue_XYZ.mean() > MAX_FOREGROUND:
        yield "no background around the brain; the intensities are scaled for scans with background 0"
        return
    bright_XYZ = tissue_XYZ & (abs(image_XYZ - background.level) > BRIGHT * _brightness(image_XYZ, background))
    if _millilitres(bright_XYZ, image) > MAX_BRAIN_ML:
        yield (
            "probably not skull-stripped, and the network knows only brains: the fill will be wrong; make a brain mask"
            " (SynthStrip: mri_synthstrip -i T1 -m MASK; HD-BET: hd-bet -i T1 -o BRAIN --save_bet_mask) and give it"
            " with --brain-mask"
        )
    elif any(face.mean() > MAX_ON_FACE for face in faces(bright_XYZ | mask_XYZ)):
        yield "the brain is cropped by the edge of the image; the fill near that edge will be worse"


def _brain_warnings(image: Nifti1Image, brain_XYZ: np.ndarray) -> Iterator[str]:
    millilitres = _millilitres(brain_XYZ, image)
    if millilitres > MAX_BRAIN_ML:
        yield f"the brain mask has {millilitres:,.0f} ml, more than any brain: is it inverted, or the head's?"


def _brightness(image_XYZ: np.ndarray, background: Background) -> float:
    """Return the 99.9th percentile of the distance to the background's intensity, without padding."""
    return float(np.percentile(abs(image_XYZ - background.floor).ravel(order="K"), 99.9))


def _millilitres(where_XYZ: np.ndarray, image: Nifti1Image) -> float:
    return float(np.count_nonzero(where_XYZ) * voxel_sizes(image.affine).prod() / 1000)


def _place_warnings(image: Nifti1Image, tissue_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> Iterator[str]:
    """Warn if the mask has no tissue around it, or covers whole slices."""
    if not mask_XYZ.any():
        return
    if not tissue_XYZ[bounding_box(mask_XYZ, margin=2)].any():
        yield "there is no brain around the mask: is it the right mask?"
    axial = int(np.flatnonzero(nib.io_orientation(image.affine)[:, 0] == 2)[0])
    in_plane = tuple(axis for axis in range(3) if axis != axial)
    buried = np.count_nonzero(mask_XYZ.any(in_plane) & ~tissue_XYZ.any(in_plane))
    if buried:
        yield f"the mask leaves no brain in {buried} of its slices; these are filled without context"


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"
