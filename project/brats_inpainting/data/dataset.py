"""Training slices: windows around masks that are drawn anew for every brain, every time.

Shapes: X Y Z a volume, H W a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from brats_inpainting.data import masks
from brats_inpainting.data.volume import Intensity
from brats_inpainting.errors import ConfigError

SHAPES = 300  # compartments in the pool
PER_BRAIN = 8  # slices taken of one brain before the next
SHUFFLE = 64  # slices held back, so that a batch mixes brains


class FreshMasks(IterableDataset[tuple[Tensor, Tensor]]):
    """An endless stream of (truth in [0, 1], mask in {0, 1}), both 1 × ``window`` × ``window``, float32.

    One or two compartments are drawn per brain; flips left–right and a gamma of 0.8 to 1.25 are the augmentation.
    """

    def __init__(self, folder: Path, *, window: int, seed: int) -> None:
        """Read every complete scan under ``folder`` (one ``*-t1n.nii.gz`` per subject is kept) into memory."""
        scans = {path.name.rsplit("-", 2)[0]: path for path in sorted(folder.rglob("*-t1n.nii.gz"))}
        if not scans:
            raise ConfigError(f"{folder}: no *-t1n.nii.gz found\n  Give the BraTS Local Synthesis training folder.")
        self.brains = [_quantised(path) for path in scans.values()]
        self.window, self.seed = window, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield slices forever, in an order and with masks that the seed decides."""
        rng = np.random.default_rng(self.seed)
        shapes = masks.compartments(rng, SHAPES)
        held: list[tuple[Tensor, Tensor]] = []
        while True:
            brain = self.brains[rng.integers(len(self.brains))]
            held.extend(_slices(brain, shapes, rng, self.window))
            while len(held) > SHUFFLE:
                yield held.pop(rng.integers(len(held)))


def _quantised(path: Path) -> np.ndarray:
    """Return the scan scaled as in §3.1, in 255 steps: X × Y × Z, uint8."""
    volume = np.asanyarray(nib.load(path).dataobj)
    return np.round(Intensity.of(volume).scale(volume) * 255).astype(np.uint8)


def _slices(
    brain: np.ndarray, shapes: list[np.ndarray], rng: np.random.Generator, window: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw one mask over a brain and cut windows from some of its slices."""
    anywhere = np.full(brain.shape, np.inf)  # healthy subjects: there is no tumour to keep away from
    mask = masks.healthy_mask(brain > 0, anywhere, shapes, rng)
    if rng.random() < 0.5:
        mask |= masks.healthy_mask(brain > 0, anywhere, shapes, rng)
    todo = np.flatnonzero(mask.any(axis=(0, 1)))
    for z in rng.choice(todo, min(PER_BRAIN, len(todo)), replace=False):
        box = tuple(_span(mask[:, :, z].max(axis=1 - axis), window, rng) for axis in (0, 1))
        truth = (brain[:, :, z][box] / np.float32(255)) ** np.float32(np.exp(rng.uniform(-0.22, 0.22)))
        pair = [torch.from_numpy(np.ascontiguousarray(a, np.float32))[None] for a in (truth, mask[:, :, z][box])]
        flip = [1] if rng.random() < 0.5 else []
        yield pair[0].flip(flip), pair[1].flip(flip)


def _span(occupied: np.ndarray, window: int, rng: np.random.Generator) -> slice:
    """Place a window at random along one axis so that it covers what is occupied, as far as it can."""
    first, last = np.flatnonzero(occupied)[[0, -1]]
    low, high = sorted((last + 1 - window, first))
    start = int(np.clip(rng.integers(low, high + 1), 0, len(occupied) - window))
    return slice(start, start + window)
