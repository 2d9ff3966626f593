"""Validation of a scan and its masks in memory: everything that speaks before any heavy work."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from nibabel.processing import resample_from_to

from brats_inpainting.data import lesion, nifti
from brats_inpainting.data.background import Background, faces
from brats_inpainting.data.lesion import UNAMBIGUOUS, MaskReading
from brats_inpainting.data.transforms import bounding_box
from brats_inpainting.errors import CaseError

log = logging.getLogger(__name__)

AFFINE_TOLERANCE = 1e-3
AVERAGE_BRAIN_ML = 1500
MAX_BRAIN_ML = 2300  # a larger foreground is taken for a head that is not skull-stripped
MAX_FOREGROUND = 0.9  # of the voxels; more means that there is no background
BRIGHT = 0.05  # of the brightest tissue; darker voxels can be air
MOSTLY = 0.5  # of the faces; a mask there marks air
MAX_ON_FACE = 0.05  # of a face; more tissue there means a cropped brain


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
        x, y, z = voxel_sizes(nifti.affine_mm(self.template))
        return float(x), float(y), float(z)


def examine(
    case_id: str,
    image: Nifti1Image,
    mask: Nifti1Image,
    *,
    names: tuple[str, ...],
    more_masks: Sequence[Nifti1Image] = (),
    brain: Nifti1Image | None = None,
    reading: MaskReading = UNAMBIGUOUS,
) -> LoadedCase:
    """Validate an image and its masks, and return them as a case.

    Args:
        case_id: name of the case in messages.
        image: the scan.
        mask: its lesion mask.
        names: what messages call the image, the mask and each of ``more_masks``.
        more_masks: further lesion masks; all are joined.
        brain: its brain mask, if it is a whole head.
        reading: how the values of the masks are interpreted.

    Raises:
        CaseError: listing every problem.
    """
    masks = dict(zip(names[1:], (mask, *more_masks), strict=True))
    for name, given in {names[0]: image, **masks, **({"brain mask": brain} if brain else {})}.items():
        nifti.check(given, name)
    image_XYZ = nifti.values(image)
    problems = [line for name, each in masks.items() for line in _grid_problems((names[0], name), image, each)]
    problems += _image_problems(names[0], image_XYZ)
    if not problems and _has_two_values(image_XYZ) and not _has_two_values(nifti.values(mask)):
        raise CaseError(
            f"{case_id}: {names[0]} has two values, as a mask has, and {names[1]} has more\n"
            "  Give the scan as the image, and the mask as the mask."
        )
    brain_XYZ = None if brain is None else brain_on_grid(brain, image)
    if brain_XYZ is not None and not brain_XYZ.any():
        problems.append("the brain mask is empty, or elsewhere than the scan\n  Give a mask of this scan.")
    mask_XYZ, warnings = _lesion(masks, reading, _Known(image_XYZ, brain_XYZ, _voxel_ml(image)), problems)
    if problems:
        raise CaseError(f"{case_id}: " + "\n  ".join(problems))
    warnings += _image_warnings(image, image_XYZ, mask_XYZ, brain_XYZ)
    if brain is not None and not _same_grid(brain, image):
        warnings.append("the brain mask is on another grid than the scan: its nearest voxels are used")
    for warning in warnings:
        log.warning("%s: %s", case_id, warning)
    return LoadedCase(case_id, image, image_XYZ, mask_XYZ, warnings, brain_XYZ)


def brain_on_grid(brain: Nifti1Image, image: Nifti1Image) -> np.ndarray:
    """Return a brain mask on the grid of the scan, bool; from another grid, such as fMRIPrep's, the nearest voxels."""
    brain_XYZ = nifti.values(brain) > 0.5
    if not _same_grid(brain, image):
        own = Nifti1Image(brain_XYZ.astype(np.uint8), nifti.affine_mm(brain))
        resampled = resample_from_to(own, (image.shape[:3], nifti.affine_mm(image)), order=0)
        brain_XYZ = np.asanyarray(resampled.dataobj) > 0
    return brain_XYZ


def _grid_problems(names: tuple[str, str], image: Nifti1Image, mask: Nifti1Image) -> Iterator[str]:
    if _same_grid(image, mask):
        return
    lines = [
        f"{name}   {nifti.format_shape(i.shape)}, origin {_numbers(a[:3, 3])}, axes {_numbers(a[:3, :3].ravel())}"
        for name, i, a in zip(names, (image, mask), map(nifti.affine_mm, (image, mask)), strict=True)
    ]
    advice = (
        "Shapes must be equal, and affines within 0.001. Resample the mask onto the image, such as\n"
        "  antsApplyTransforms -d 3 -n NearestNeighbor -i MASK -r SCAN -o NEW_MASK."
    )
    yield "\n  ".join(["mask and image lie on different grids", *lines, advice])


def _same_grid(one: Nifti1Image, other: Nifti1Image) -> bool:
    return bool(one.shape[:3] == other.shape[:3] and same_affine(one, other))


def same_affine(one: Nifti1Image, other: Nifti1Image) -> bool:
    """Return whether two affines are equal, or their entries in millimetres differ by at most AFFINE_TOLERANCE."""
    first, second = nifti.affine_mm(one), nifti.affine_mm(other)
    return np.array_equal(one.affine, other.affine) or np.allclose(first, second, rtol=0, atol=AFFINE_TOLERANCE)


def _image_problems(name: str, image_XYZ: np.ndarray) -> Iterator[str]:
    bad = np.count_nonzero(~np.isfinite(image_XYZ))
    if bad:
        yield f"{bad:,} NaN or infinite voxels in {name}\n  Repair the scan (0 is background)."
    elif image_XYZ.min() == image_XYZ.max():
        yield f"{name} is {image_XYZ.flat[0]:g} everywhere\n  Export the scan again: it is empty."


def _has_two_values(values_XYZ: np.ndarray) -> bool:
    return bool(((values_XYZ == values_XYZ.min()) | (values_XYZ == values_XYZ.max())).all())


@dataclass(frozen=True)
class _Known:
    """The scan with which a mask is compared."""

    image_XYZ: np.ndarray
    brain_XYZ: np.ndarray | None
    voxel_ml: float

    def replaced(self, mask_XYZ: np.ndarray) -> float:
        """Return the share of the brain that a mask replaces; voxels of the mask count as brain.

        Of a whole head without a brain mask, the brain is an average one.
        """
        all_ml = float((mask_XYZ | tissue(self.image_XYZ, self.brain_XYZ, mask_XYZ)).sum()) * self.voxel_ml
        brain_ml = all_ml if all_ml <= MAX_BRAIN_ML else AVERAGE_BRAIN_ML
        return min(1.0, float(mask_XYZ.sum()) * self.voxel_ml / max(brain_ml, self.voxel_ml))


def _lesion(
    masks: dict[str, Nifti1Image], reading: MaskReading, known: _Known, problems: list[str]
) -> tuple[np.ndarray, list[str]]:
    """Join the lesions of all masks; return them and warnings, and append to the problems.

    Masks are compared with the image only if it has no problems so far.
    """
    share = None if problems else known.replaced
    lesions, warnings = [], []
    for name, mask in masks.items():
        try:
            lesion_XYZ, warning = lesion.lesion_of(nifti.values(mask), reading, name=name, share=share)
        except CaseError as error:
            problems.append(str(error))
        else:
            lesions.append(lesion_XYZ)
            warnings.append(warning)
    if problems or not share:
        return np.zeros(0, bool), []
    mask_XYZ = joined(lesions, reading, known.image_XYZ, known.brain_XYZ)
    try:
        warnings.append(_extent(mask_XYZ, known, reading, " and ".join(masks)))
    except CaseError as error:
        problems.append(str(error))
    return mask_XYZ, [warning for warning in warnings if warning]


def joined(
    lesions: Sequence[np.ndarray], reading: MaskReading, image_XYZ: np.ndarray, brain_XYZ: np.ndarray | None
) -> np.ndarray:
    """Join the lesions of all masks of a scan, bool; the inverse of a mask of tissue alone loses its air."""
    mask_XYZ: np.ndarray = reduce(np.logical_or, lesions)  # keeps the order of axes in memory
    if reading.invert and np.mean([face.mean() for face in faces(mask_XYZ)]) > MOSTLY:
        return mask_XYZ & tissue(image_XYZ, brain_XYZ, np.zeros_like(mask_XYZ))
    return mask_XYZ


def tissue(image_XYZ: np.ndarray, brain_XYZ: np.ndarray | None, mask_XYZ: np.ndarray) -> np.ndarray:
    """Return the brain mask, or what differs from the background, which is found outside the lesion mask; bool."""
    return Background.of(image_XYZ, mask_XYZ).foreground(image_XYZ) if brain_XYZ is None else brain_XYZ


def _extent(mask_XYZ: np.ndarray, known: _Known, reading: MaskReading, name: str) -> str:
    """Return a warning if the mask is empty or large.

    Raises:
        CaseError: it is too large, or its inverse has the air only.
    """
    if not mask_XYZ.any() and reading.invert:  # the inverse was not empty with the air
        raise CaseError(
            f"where {name} is 0, the scan is background: --invert-mask leaves nothing to fill\n"
            "  Give a mask of the lesion, or the scan with its lesion."
        )
    if not mask_XYZ.any():
        return "the mask is empty: the output is the input"
    left = known.image_XYZ[~mask_XYZ]
    if left.size == 0 or left.min() == left.max():
        raise CaseError(
            f"{name} covers the whole brain\n  No tissue is left: give a smaller mask, or invert it with --invert-mask."
        )
    return lesion.extent(known.replaced(mask_XYZ), reading, name, brain=known.brain_XYZ is not None)


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
    bright_XYZ = tissue_XYZ & (abs(image_XYZ - background.level) > BRIGHT * _brightness(image_XYZ, background))
    if _millilitres(bright_XYZ, image) > MAX_BRAIN_ML:
        yield (
            "probably not skull-stripped, and the network knows only brains: the fill will be wrong; make a brain mask"
            " (SynthStrip: mri_synthstrip -i T1 -m MASK; HD-BET: hd-bet -i T1 -o BRAIN --save_bet_mask) and give it"
            " with --brain-mask, in folders as ID-brain-mask.nii.gz"
        )
    elif tissue_XYZ.mean() > MAX_FOREGROUND:
        yield "no background around the brain; the intensities are scaled for scans with background 0"
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
    return float(np.count_nonzero(where_XYZ)) * _voxel_ml(image)


def _voxel_ml(image: Nifti1Image) -> float:
    return float(voxel_sizes(nifti.affine_mm(image)).prod() / 1000)


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
        yield f"the mask leaves no brain in {buried} of its axial slices: 2D weights fill these without context"


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"
