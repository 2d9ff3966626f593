"""Which subjects validate and which train: two folds, seeded, written down (paper §3.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brats_inpainting.data.cache import Files
from brats_inpainting.errors import ConfigError
from brats_inpainting.files import atomic_write

FOLDS = 2


def split(files: Sequence[Files], *, held_out: int, seed: int) -> list[list[str]]:
    """Return, for each fold, the subjects that are kept for validation; no subject validates twice.

    Args:
        files: all cases; those of one subject stay together.
        held_out: subjects per fold; the paper keeps 10 of 1251.
        seed: of the draw.

    Raises:
        ConfigError: when nothing would be left to train on.
    """
    subjects = sorted({case.subject for case in files})
    if FOLDS * held_out >= len(subjects) and held_out:
        raise ConfigError(
            f"{len(subjects)} subject(s): too few to hold {held_out} out of either fold and train on others\n"
            "  Set held_out in the recipe to fewer, or to 0 for no validation."
        )
    drawn = np.random.default_rng(seed).permutation(subjects)
    return [sorted(map(str, drawn[fold * held_out : (fold + 1) * held_out])) for fold in range(FOLDS)]


def write(folds: Sequence[Sequence[str]], path: Path, *, seed: int) -> None:
    """Write the split as JSON, so that others can repeat it."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps({"seed": seed, "validation": list(folds)}, indent=2) + "\n")
