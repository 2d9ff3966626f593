"""Lesion masks: which voxels of a mask file are to be filled. Ambiguous masks are rejected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from brats_inpainting.errors import CaseError

WHOLE = 1e-3  # values this close to an integer count as that integer: slopes of headers are float32
LOWEST, HIGHEST = -0.5, 1.5  # range of binary masks and shares, with the overshoot of resampling by splines
LISTED = 6  # labels that a message lists
MOST_LABELS = 50  # of a segmentation with lesions; an atlas or a scan has more
PERCENT = (50, 130)  # range of the largest value of a probability in percent
TOO_MUCH = 0.6  # share of the brain; a larger mask probably marks healthy tissue

Share = Callable[[np.ndarray], float]  # share of the brain that a mask replaces


@dataclass(frozen=True)
class MaskReading:
    """How the values of a mask file are interpreted; by default they must be unambiguous.

    Attributes:
        labels: values that mark the lesion, for a segmentation; any other value is not lesion.
        threshold: larger values are lesion, for a probability map.
        invert: the lesion is where the mask is 0.
    """

    labels: tuple[int, ...] = ()
    threshold: float | None = None
    invert: bool = False

    def settings(self) -> dict[str, Any]:
        """Return the fields that are not the default, as JSON."""
        fields = {"labels": list(self.labels) or None, "threshold": self.threshold, "invert": self.invert or None}
        return {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        """Return the options of the command line."""
        words = [f"--label {','.join(map(str, self.labels))}"] if self.labels else []
        words += [] if self.threshold is None else [f"--threshold {self.threshold:g}"]
        return " ".join([*words, *(["--invert-mask"] if self.invert else [])])


UNAMBIGUOUS = MaskReading()


def lesion_of(
    values_XYZ: np.ndarray, reading: MaskReading, *, name: str, share: Share | None = None
) -> tuple[np.ndarray, str]:
    """Interpret the values of a mask.

    Args:
        values_XYZ: the scaled values.
        reading: how they are interpreted.
        name: what messages call the mask.
        share: returns the share of the brain that a mask replaces, for messages.

    Returns:
        Which voxels are to be filled, bool, and a warning, empty if there is none.

    Raises:
        CaseError: the values have more than one meaning, or none.
    """
    _check_range(values_XYZ, reading, name)
    warning = ""
    if reading.labels:
        mask_XYZ = np.isin(np.rint(values_XYZ), reading.labels)
        if absent := sorted({*reading.labels} - {*np.unique(np.rint(values_XYZ)).tolist()}):
            warning = f"the mask has no label {', '.join(map(str, absent))}; its values: {_values(values_XYZ)}"
    elif reading.threshold is not None:
        mask_XYZ = values_XYZ > reading.threshold
    else:
        mask_XYZ, warning = _unambiguous(values_XYZ, name, share)
    if reading.invert:
        mask_XYZ = ~mask_XYZ
    if reading != UNAMBIGUOUS and not mask_XYZ.any() and values_XYZ.any():
        raise CaseError(f"{name}: no voxel is left to fill with {reading}\n  Its values: {_values(values_XYZ)}.")
    return mask_XYZ, warning


def extent(share: float, reading: MaskReading, name: str, *, brain: bool = False) -> str:
    """Return a warning if a mask that was chosen by options replaces most of the brain, else nothing.

    Args:
        share: of the brain that the mask replaces.
        reading: how its values were interpreted.
        name: what messages call the mask.
        brain: whether the share is that of a brain mask.

    Raises:
        CaseError: it replaces most of the brain, and no option was given.
    """
    if share <= TOO_MUCH:
        return ""
    if reading == UNAMBIGUOUS:
        swapped = "Is it the brain mask, or is the brain mask wrong? " if brain else ""
        raise CaseError(
            f"{name} would replace {_percent(share)} of the brain\n"
            f"  {swapped}If it marks healthy tissue, use --invert-mask; if it is right, --threshold 0.5."
        )
    return f"the mask replaces {_percent(share)} of the brain"


def _check_range(values_XYZ: np.ndarray, reading: MaskReading, name: str) -> None:
    """Reject NaN and infinity, and negative values unless options say what they mean."""
    chosen = bool(reading.labels) or reading.threshold is not None
    if np.isinf(values_XYZ).any():
        what = "infinite"
    elif np.isnan(values_XYZ).any() or (values_XYZ.min() < LOWEST * max(1.0, values_XYZ.max()) and not chosen):
        what = "negative or NaN"
    else:
        return
    raise CaseError(
        f"{name} has {what} values\n"
        "  A mask is 1 where tissue is to be filled, 0 elsewhere; --threshold chooses values."
    )


def _unambiguous(values_XYZ: np.ndarray, name: str, share: Share | None) -> tuple[np.ndarray, str]:
    """Return the lesion of a binary mask or of shares of 1, and a warning; reject anything else."""
    if values_XYZ.max() <= HIGHEST:
        binary = (abs(values_XYZ - np.rint(values_XYZ)) <= WHOLE).all()
        warning = "" if binary else "the mask contains values other than 0 and 1; voxels above 0.5 are filled"
        if not (values_XYZ > 0.5).any() and values_XYZ.max() > WHOLE:
            raise CaseError(
                f"{name} has values up to {values_XYZ.max():.3g}, none above 0.5\n"
                "  Choose what is filled with --threshold, such as half of that."
            )
        return values_XYZ > 0.5, warning
    found, _ = _count(values_XYZ)
    top = float(found[-1])
    if found.size == 1:
        return values_XYZ > top / 2, f"the mask marks the lesion with {top:g} instead of 1"
    half = 50 if PERCENT[0] < top <= PERCENT[1] else top / 2
    if (found == np.rint(found)).all():
        raise _labels(values_XYZ, found, name, share)
    much = f", {_percent(share(values_XYZ > top / 2))} of the brain above half of that" if share else ""
    raise CaseError(
        f"{name} has values from {values_XYZ.min():.3g} to {top:.4g}{much}\n"
        f"  A probability in percent? Use --threshold {half:g}: larger values are filled."
    )


def _labels(values_XYZ: np.ndarray, found: np.ndarray, name: str, share: Share | None) -> CaseError:
    """Return the error of a mask with several integers, with the options that may be meant."""
    part = share(values_XYZ > 0.5) if share else 1.0
    much = f", together {_percent(part)} of the brain" if share else ""
    listed = ",".join(f"{value:g}" for value in found)
    together = f"; all of them: --label {listed}" if part <= TOO_MUCH and found.size <= LISTED else ""
    percent = f"; a probability in percent: --threshold {PERCENT[0]}" if PERCENT[0] < found[-1] <= PERCENT[1] else ""
    if found.size > MOST_LABELS and found[-1] > PERCENT[1]:
        return CaseError(
            f"{name} has {found.size:,} different values{much}\n"
            "  A scan? Give its lesion mask; of a segmentation, choose the lesion's labels with --label."
        )
    return CaseError(
        f"{name} has labels {_values(values_XYZ)}{much}\n"
        f"  Choose the lesion's with --label {found[-1]:g} (repeat, or use commas){together}{percent}."
    )


def _count(values_XYZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values other than 0, sorted, and how many voxels have each."""
    marked = values_XYZ[abs(values_XYZ) > WHOLE]
    whole = np.rint(marked)
    return np.unique(np.where(abs(marked - whole) <= WHOLE, whole, marked), return_counts=True)


def _values(values_XYZ: np.ndarray) -> str:
    """List the integers other than 0 with their voxels, or return the range."""
    found, counts = _count(values_XYZ)
    if (found != np.rint(found)).any():
        return f"{values_XYZ.min():.3g} to {values_XYZ.max():.4g}"
    listed = [f"{value:g} ({count:,} voxels)" for value, count in zip(found[:LISTED], counts, strict=False)]
    return ", ".join([*listed, *(["…"] if found.size > LISTED else [])])


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:g} %"  # 99.97 % is not all of it
