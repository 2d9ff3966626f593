"""Dataset of training windows. All randomness of a window is a function of (seed, epoch, index in the epoch).

Training therefore resumes exactly from these numbers, and any number of processes shares one stream. A window is a
patch of a slice (a box one slice thick) or a box of the volume, depending on the network's dimensions.

Shapes: S H W a scan's framed slices; V the axes of a window, H W or X Y Z (= H W S); U a larger region of the scan;
D the number of these axes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brats_inpainting.concurrent import prefetch
from brats_inpainting.config import TrainConfig
from brats_inpainting.data import augment, masks
from brats_inpainting.data.augment import Item
from brats_inpainting.data.cache import CachedScan
from brats_inpainting.data.masks import Placed
from brats_inpainting.data.transforms import cut, span
from brats_inpainting.errors import ConfigError
from brats_inpainting.host import cpus

log = logging.getLogger(__name__)

POOL_SIZE = 300  # size of the pool of compartments for synthetic masks
NOT_FILLED = 0.1  # share of windows whose previous slice is still voided, as at the start of order ``outward``
Box = tuple[slice, slice, slice]


class Epoch(Dataset[Item]):
    """One pass over all windows, in an order that depends on the seed and the epoch.

    In 2D: the slices that the epoch's masks touch, one mask per scan. In 3D: ``windows_per_scan`` boxes of every scan,
    each with a separate mask.
    """

    def __init__(
        self, scans: Sequence[CachedScan], shapes: Sequence[np.ndarray], config: TrainConfig, number: int
    ) -> None:
        """Draw the epoch's order, and in 2D its masks.

        Args:
            scans: prepared cases.
            shapes: compartments for synthetic masks.
            config: the recipe.
            number: the epoch, from 0; with ``config.limit`` every epoch has the first windows of epoch 0.

        Raises:
            ConfigError: no scan has a mask.
        """
        self.scans, self.shapes, self.config, self.number = scans, shapes, config, number
        self.masks: list[Placed] = []
        rng = np.random.default_rng([config.seed, self._mask_epoch])
        if config.unet.dims == 2:
            self.masks = [self._mask(scan, np.random.default_rng(rng.integers(2**63))) for scan in scans]
            places = [(i, z) for i, mask in enumerate(self.masks) for z in mask.planes]
        else:
            usable = [i for i, scan in enumerate(scans) if config.masks != "files" or scan.healthy.voxels.size]
            places = [(i, 0) for i in usable for _ in range(config.windows_per_scan)]
        self.places = [places[i] for i in rng.permutation(len(places))][: config.limit or None]
        if not self.places:
            raise ConfigError("no scan has a mask-healthy\n  Set masks: synthetic in the recipe.")
        self.repeats = -(-config.batch_size // len(self.places))  # an epoch has at least one batch

    def __len__(self) -> int:
        """Return the number of windows in the epoch."""
        return len(self.places) * self.repeats

    def __getitem__(self, index: int) -> Item:
        """Return a window that covers a mask, with its timestep, noise and augmentation."""
        config, turn = self.config, index % len(self.places)
        rng = np.random.default_rng([config.seed, self.number, index])
        case, z = self.places[turn]
        scan, dims, window = self.scans[case], config.unet.dims, config.diffusion.window
        if dims == 2:
            mask, covered = self.masks[case], _slice(self.masks[case], z)
        else:
            mask = self._mask(scan, np.random.default_rng([config.seed, self._mask_epoch, turn, 1]))
            covered = _component(mask, rng)
        size_SHW = (1 if dims == 2 else window, window, window)
        start_SHW = [
            span(side.start, side.stop, window=size, length=length, rng=rng).start
            for side, size, length in zip(covered, size_SHW, scan.image_SHW.shape, strict=True)
        ]
        drawn = augment.draw(config.augmentation, (window,) * dims, rng)
        sees_previous = config.diffusion.context == "previous"
        slices = (0, int(rng.choice((-1, 1)))) if sees_previous else (0,)
        mask_V = _network_axes(mask.within(start_SHW, size_SHW), dims)
        if drawn.flip:
            mask_V = mask_V[::-1]
        return Item(
            **self._source(scan, start_SHW, size_SHW, drawn, slices),
            mask_1V=torch.from_numpy(mask_V.copy())[None],
            noise_1V=torch.from_numpy(rng.standard_normal((1, *mask_V.shape), np.float32)),
            t=self._timestep(index, rng),
            place_2=torch.tensor([case, start_SHW[0] + size_SHW[0] // 2]),
            elastic_DK=_float(drawn.elastic_DK),
            bias_1K=_float(drawn.bias_1K),
            tone_2=_float(drawn.tone_2),
            grain_1V=torch.from_numpy(drawn.grain_1V),
            haze_1V=torch.from_numpy(drawn.haze_1V),
            voided=torch.tensor(sees_previous and rng.random() < NOT_FILLED),
        )

    @property
    def _mask_epoch(self) -> int:
        """The epoch whose masks are used."""
        return 0 if self.config.limit else self.number

    def _timestep(self, index: int, rng: np.random.Generator) -> Tensor:
        """Return T − 1 for the first windows of a batch (``last_timestep``), and a random timestep for the others."""
        t = int(rng.integers(self.config.diffusion.steps))
        last = index % self.config.batch_size < round(self.config.last_timestep * self.config.batch_size)
        return torch.tensor(self.config.diffusion.steps - 1 if last else t)

    def _source(
        self,
        scan: CachedScan,
        start_SHW: Sequence[int],
        size_SHW: Sequence[int],
        drawn: augment.Draw,
        slices: Sequence[int],
    ) -> dict[str, Tensor]:
        """Cut the regions that a window is resampled from, and return them with their transform; flipped if drawn.

        ``slices`` are the regions' distances in slices.
        """
        dims, size = self.config.unet.dims, np.array(size_SHW)
        larger = size + 2 * augment.margin(self.config.augmentation, size_SHW[1], dims) * (size > 1)
        brain_XYZ, half_XYZ = np.roll([((b.start + b.stop - 1) / 2, (b.stop - b.start) / 2) for b in scan.box], -1, 0).T
        middle_XYZ = np.roll(start_SHW + (size - 1) / 2, -1) - brain_XYZ
        from_SHW = np.roll(brain_XYZ + drawn.matrix_33 @ middle_XYZ, 1)  # rotated about the centre of the brain
        first_SHW = np.rint(from_SHW - (larger - 1) / 2).astype(int)
        shift_XYZ = np.roll(from_SHW - first_SHW - (larger - 1) / 2, -1)
        firsts = [first_SHW + np.array([z, 0, 0]) for z in slices]
        sources = [_network_axes(cut(scan.image_SHW, f.tolist(), larger.tolist()), dims) for f in firsts]
        slope_XYZ = drawn.scale_3 / half_XYZ * (1 + drawn.jitter_23[0])
        offset_XYZ = middle_XYZ * slope_XYZ + drawn.jitter_23[1]
        mirror_XYZ = np.array([-1 if drawn.flip else 1, 1, 1])
        return {
            "source_CU": torch.from_numpy(np.stack(sources)[:, :: mirror_XYZ[0]].copy()),
            "position_32": _float(np.stack([mirror_XYZ * offset_XYZ, slope_XYZ], axis=1)),
            "matrix_DD": _float((mirror_XYZ[:, None] * drawn.matrix_33 * mirror_XYZ)[:dims, :dims]),
            "shift_D": _float((mirror_XYZ * shift_XYZ)[:dims]),
        }

    def _mask(self, scan: CachedScan, rng: np.random.Generator) -> Placed:
        """Return the case's healthy mask, or a synthetic one of one or two compartments."""
        synthetic = self.config.masks == "synthetic" or (self.config.masks == "both" and rng.random() < 0.5)
        if not synthetic and (self.config.unet.dims == 2 or scan.healthy.voxels.size):
            return scan.healthy
        vary = masks.rotated if self.config.unet.dims == 2 else masks.flipped  # faster: 3D draws a mask per window
        found: list[Placed] = []
        for _ in range(1 + (rng.random() < 0.5)):
            try:
                found.append(masks.place(scan.image_SHW, scan.distance_SHW, self.shapes, rng, vary=vary))
            except ValueError:  # the tumour may leave too little space for the drawn shapes
                log.debug("%s: no room for a synthetic mask in epoch %d", scan.id, self.number)
        if found or scan.healthy.voxels.size or self.config.unet.dims == 2:
            return found[0].union(found[-1]) if found else scan.healthy
        middle = tuple((side.start + side.stop) // 2 for side in scan.box)
        return Placed(middle, np.ones((1, 1, 1), bool))  # a single voxel, with a negligible effect on training


def batches(
    scans: Sequence[CachedScan], config: TrainConfig, *, epoch: int, batch: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, int, list[Item]]]:
    """Yield batches indefinitely, starting at the given epoch and batch.

    Args:
        scans: prepared cases.
        config: the recipe.
        epoch: first epoch.
        batch: first batch in it.
        rank: index of this process; each gets its share of every batch.
        world: number of processes.

    Yields:
        The epoch and batch that follow, and this process's share in ``config.accumulate`` parts.
    """
    shapes = pool(config)
    part = config.batch_size // (world * config.accumulate)
    for drawn in prefetch(partial(Epoch, scans, shapes, config), count(epoch)):  # draws the next masks concurrently
        current = drawn.result()
        last = len(current) // config.batch_size  # an incomplete last batch is dropped
        starts = range(batch * config.batch_size, last * config.batch_size, config.batch_size)
        mine = [range(start + rank, start + config.batch_size, world) for start in starts]
        parts = [list(share[i : i + part]) for share in mine for i in range(0, len(share), part)]
        pinned = torch.cuda.is_available()  # allows asynchronous copies to the GPU
        loader = iter(DataLoader(current, batch_sampler=parts, num_workers=config.workers, pin_memory=pinned))
        for following in range(batch + 1, last + 1):
            after = (epoch, following) if following < last else (epoch + 1, 0)
            yield *after, [next(loader) for _ in range(config.accumulate)]
        epoch, batch = epoch + 1, 0


def pool(config: TrainConfig) -> list[np.ndarray]:
    """Draw the compartments of synthetic masks; in 3D they are rotated here, and only flipped for each mask."""
    if config.masks == "files":
        return []
    rng = np.random.default_rng(config.seed)
    shapes = masks.compartments(rng, POOL_SIZE)
    if config.unet.dims == 2:
        return shapes
    with ThreadPoolExecutor(cpus()) as threads:
        return list(threads.map(masks.rotated, shapes, rng.spawn(len(shapes))))


def _slice(mask: Placed, z: int) -> Box:
    """Return the bounding box of a mask in one slice."""
    return _covered(mask, mask.voxels[z - mask.start[0]][None].astype(np.uint8), 0, first=z)


def _component(mask: Placed, rng: np.random.Generator) -> Box:
    """Return the bounding box of a random connected component of a mask."""
    labels, number = ndimage.label(mask.voxels, np.ones((3, 3, 3)))
    return _covered(mask, labels, int(rng.integers(number)), first=mask.start[0])


def _covered(mask: Placed, labels_SHW: np.ndarray, number: int, *, first: int) -> Box:
    z, rows, columns = (
        slice(start + side.start, start + side.stop)
        for start, side in zip((first, *mask.start[1:]), ndimage.find_objects(labels_SHW)[number], strict=True)
    )
    return z, rows, columns


def _network_axes(box_SHW: np.ndarray, dims: int) -> np.ndarray:
    """Return a box in the network's order of axes."""
    box_HWS = np.moveaxis(box_SHW, 0, 2)
    return box_HWS if dims == 3 else box_HWS[..., 0]


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
