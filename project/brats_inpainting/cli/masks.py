"""Options of filling that say what the values of a mask mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from brats_inpainting.cli.app import option
from brats_inpainting.errors import ConfigError

if TYPE_CHECKING:
    from brats_inpainting.data.lesion import MaskReading

Labels = Annotated[
    list[str] | None,
    option("label", "Label of the lesion, if the mask is a segmentation; repeat, or use commas.", metavar="INTEGER"),
]
Threshold = Annotated[float | None, option("threshold", "Fill where the mask is above this value.")]
InvertMask = Annotated[bool, option("invert-mask", "Fill where the mask is 0.")]
BrainMask = Annotated[Path | None, option("brain-mask", "Brain mask for --image, if the scan is a whole head.")]


def reading(labels: list[str] | None, threshold: float | None, *, invert: bool) -> MaskReading:
    """Return how masks are interpreted.

    Raises:
        ConfigError: a label is not an integer, the threshold is not finite, or both are given.
    """
    from brats_inpainting.data.lesion import MaskReading

    words = [word.strip() for given in labels or [] for word in given.split(",")]
    try:
        numbers = tuple(dict.fromkeys(map(int, words)))
    except ValueError as error:
        raise ConfigError(f"--label {','.join(words)}: not whole numbers\n  Use --label 1,4 or repeat it.") from error
    if numbers and threshold is not None:
        raise ConfigError("--label and --threshold are mutually exclusive\n  A mask has labels or probabilities.")
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"--threshold {threshold}: not a finite number")
    return MaskReading(numbers, threshold, invert)


def refuse_brain(brain: Path | None) -> None:
    """Reject a single brain mask for many cases.

    Raises:
        ConfigError: with the names of brain masks in folders.
    """
    if brain:
        raise ConfigError(
            "--brain-mask is for --image\n"
            "  In a folder of cases name brain masks ID/ID-brain-mask.nii.gz, in BIDS …_desc-brain_mask.nii.gz."
        )
