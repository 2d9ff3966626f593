"""Split subjects into training and validation: two seeded folds, saved as JSON (paper §3.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brats_inpainting.data.cache import TrainingCase
from brats_inpainting.errors import ConfigError
from brats_inpainting.files import atomic_write

FOLDS = 2


def split(files: Sequence[TrainingCase], *, held_out: int, seed: int) -> list[list[str]]:
    """Return the validation subjects of each fold; the folds are disjoint.

    Args:
        files: all cases; those of one subject stay together.
        held_out: subjects per fold; the paper keeps 10 of 1251.
        seed: seed of the permutation.

    Raises:
        ConfigError: too few subjects to leave any for training.
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
    """Write the split and its seed as JSON."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps({"seed": seed, "validation": list(folds)}, indent=2) + "\n")
