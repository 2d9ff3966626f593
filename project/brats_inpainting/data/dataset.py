"""Training slices. Everything random about a slice follows from (seed, epoch, its place in the epoch) alone.

So a run goes on exactly where it stopped from three numbers, and any number of processes shares one stream.
Shapes: S H W a scan's framed slices, h w a window of one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brats_inpainting.config import Augmentation, TrainConfig
from brats_inpainting.data import masks
from brats_inpainting.data.cache import LEVELS, Scan
from brats_inpainting.data.masks import Placed
from brats_inpainting.data.volume import occupied, span
from brats_inpainting.errors import ConfigError
from brats_inpainting.host import ahead

log = logging.getLogger(__name__)

SHAPES = 300  # compartments in the pool of synthetic masks


class Item(NamedTuple):
    """A slice, or a batch: truth in [0, 1], mask in {0, 1}, noise, timestep, and where it is from (scan, slice)."""

    truth_1hw: Tensor
    mask_1hw: Tensor
    noise_1hw: Tensor
    t: Tensor
    place: Tensor


class Epoch(Dataset[Item]):
    """One pass over all slices that a healthy mask touches, in an order that the seed and the epoch decide."""

    def __init__(self, scans: Sequence[Scan], shapes: Sequence[np.ndarray], config: TrainConfig, number: int) -> None:
        """Draw the epoch's masks and its order.

        Args:
            scans: prepared cases.
            shapes: compartments for synthetic masks.
            config: the recipe: which masks, which augmentation, the seed.
            number: the epoch, from 0 on; with ``config.limit`` every epoch has the first few slices of epoch 0.

        Raises:
            ConfigError: when no scan has a mask.
        """
        self.scans, self.config, self.number = scans, config, number
        rng = np.random.default_rng([config.seed, 0 if config.limit else number])
        self.masks = [self._mask(scan, shapes, np.random.default_rng(rng.integers(2**63))) for scan in scans]
        places = [(i, z) for i, mask in enumerate(self.masks) for z in mask.planes]
        self.places = [places[i] for i in rng.permutation(len(places))][: config.limit or None]
        if not self.places:
            raise ConfigError("no scan has a mask-healthy\n  Set masks: synthetic in the recipe.")
        self.repeats = -(-config.batch_size // len(self.places))  # an epoch holds one batch at least

    def __len__(self) -> int:
        """Slices in the epoch."""
        return len(self.places) * self.repeats

    def __getitem__(self, index: int) -> Item:
        """Return a slice, augmented, in a window that covers its mask, with its timestep and its noise."""
        rng = np.random.default_rng([self.config.seed, self.number, index])
        scan, z = self.places[index % len(self.places)]
        truth_HW = self.scans[scan].image_SHW[z] / np.float32(LEVELS)
        mask_HW = self.masks[scan].plane(z, truth_HW.shape)
        truth_HW, mask_HW = augmented(truth_HW, mask_HW, self.config.augmentation, rng)
        window = self.config.diffusion.window
        place = tuple(
            span(*occupied(mask_HW.max(axis=1 - axis)), window=window, length=mask_HW.shape[axis], rng=rng)
            for axis in (0, 1)
        )
        truth_hw, mask_hw = (np.ascontiguousarray(a[place], np.float32) for a in (truth_HW, mask_HW))
        noise_hw = rng.standard_normal(truth_hw.shape, np.float32)
        t = torch.tensor(int(rng.integers(self.config.diffusion.steps)))
        truth_1hw, mask_1hw, noise_1hw = (
            torch.from_numpy(image_hw)[None] for image_hw in (truth_hw, mask_hw, noise_hw)
        )
        return Item(truth_1hw, mask_1hw, noise_1hw, t, torch.tensor([scan, z]))

    def _mask(self, scan: Scan, shapes: Sequence[np.ndarray], rng: np.random.Generator) -> Placed:
        """Return the case's own healthy mask, or a synthetic one of one or two compartments."""
        synthetic = self.config.masks == "synthetic" or (self.config.masks == "both" and rng.random() < 0.5)
        if not synthetic:
            return scan.healthy
        brain_SHW, mask_SHW = scan.image_SHW > 0, np.zeros(scan.image_SHW.shape, bool)
        for _ in range(1 + (rng.random() < 0.5)):
            try:
                mask_SHW |= masks.healthy_mask(brain_SHW, scan.distance_SHW, shapes, rng)
            except ValueError:  # a tumour may leave too little room for the shapes that were drawn
                log.debug("%s: no room for a synthetic mask in epoch %d", scan.id, self.number)
        return Placed.of(mask_SHW)


def batches(
    scans: Sequence[Scan], config: TrainConfig, *, epoch: int, batch: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, int, list[Item]]]:
    """Yield batches forever, from the given place in the stream on.

    Args:
        scans: prepared cases.
        config: the recipe.
        epoch: where to begin.
        batch: likewise, within the epoch.
        rank: which of ``world`` processes this is; each gets its share of every batch.
        world: number of processes.

    Yields:
        Epoch and batch to go on with after this one, and this process's share in ``config.accumulate`` parts.
    """
    rng = np.random.default_rng(config.seed)
    shapes = [] if config.masks == "files" else masks.compartments(rng, SHAPES)
    part = config.batch_size // (world * config.accumulate)
    for drawn in ahead(partial(Epoch, scans, shapes, config), count(epoch)):  # the next epoch's masks meanwhile
        current = drawn.result()
        last = len(current) // config.batch_size  # a remainder is left out
        starts = range(batch * config.batch_size, last * config.batch_size, config.batch_size)
        mine = [range(start + rank, start + config.batch_size, world) for start in starts]
        parts = [list(share[i : i + part]) for share in mine for i in range(0, len(share), part)]
        loader = iter(DataLoader(current, batch_sampler=parts, num_workers=config.workers))
        for following in range(batch + 1, last + 1):
            after = (epoch, following) if following < last else (epoch + 1, 0)
            yield *after, [Item(*next(loader)) for _ in range(config.accumulate)]
        epoch, batch = epoch + 1, 0


def augmented(
    image_HW: np.ndarray, mask_HW: np.ndarray, how: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image in [0, 1] and its mask, changed as the recipe says; the background stays 0."""
    if how.flip and rng.random() < 0.5:
        image_HW, mask_HW = image_HW[::-1], mask_HW[::-1]
    if how.affine:
        matrix, centre = _affine(how.affine, rng), np.array(image_HW.shape) / 2 - 0.5
        offset = centre - matrix @ centre
        moved_HW = ndimage.affine_transform(mask_HW, matrix, offset, order=0)
        if moved_HW.any():  # a speck at the edge may get lost
            image_HW, mask_HW = ndimage.affine_transform(image_HW, matrix, offset, order=1), moved_HW
    brain_HW = image_HW > 0
    if how.gamma:
        image_HW = image_HW ** np.float32(np.exp(rng.uniform(-how.gamma, how.gamma)))
    if how.bias:
        field_HW = ndimage.zoom(rng.standard_normal((4, 4)), np.array(image_HW.shape) / 4, order=3)
        image_HW = image_HW * np.exp(how.bias * field_HW).astype(np.float32)
    if how.noise:
        level = np.float32(rng.uniform(0, how.noise))
        image_HW = image_HW + level * rng.standard_normal(image_HW.shape, np.float32)
    return np.where(brain_HW, image_HW, 0).clip(0, 1), mask_HW


def _affine(size: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a rotation by up to ``size`` degrees with scaling by up to ``size`` per cent along either axis: 2 × 2."""
    angle = np.deg2rad(rng.uniform(-size, size))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag(1 + rng.uniform(-size, size, 2) / 100)
