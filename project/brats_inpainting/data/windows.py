"""Windows that cover a mask, batches of windows across cases, and aggregation of their samples.

A window is a place in the frame, ``(z, rows, columns)``: a patch of one axial slice if ``z`` is an ``int``, a box of
the volume if it is a ``slice``.

Shapes: S H W a scan's frame, axial slices first; V the axes of a window in the network's order, H W of a patch and
X Y Z (= H W S) of a box; C channels.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from scipy import ndimage

from brats_inpainting.config import FRAME, FRAME_MULTIPLE, DiffusionConfig, UNetConfig
from brats_inpainting.data.transforms import span
from brats_inpainting.data.volume import Scan

log = logging.getLogger(__name__)

MAX_OPEN = 4  # cases whose windows wait for a full batch at a time; bounds the memory
MARGIN = 16  # voxels of context around the components in a box
LARGEST_SHARED = 128**3  # maximum voxels of a box shared by distant components; larger ones were not tried
OVERLAP = 32  # voxels shared by the parts of a box that exceeds the memory
POSITION_LIMIT = 1.5  # in half sizes of the brain's bounding box

Place = tuple[int | slice, slice, slice]
Sides = tuple[slice, ...]


@dataclass(frozen=True)
class Windowing:
    """How windows are placed around the connected components of a mask.

    Attributes:
        dims: 2 for patches of slices, 3 for boxes of the volume.
        window: minimum side; 2D networks of whole slices (``FRAME`` or more) get whole slices.
        step: sides grow in multiples of this.
        margin: voxels of context on every side.
        shared_side: components that fit into a box of this side share a window; ``None``: those share one for which it
            has no more voxels than their separate windows, and is not too large.
        max_voxels: a larger window is split into overlapping parts.
    """

    dims: int
    window: int
    step: int
    margin: int
    shared_side: int | None
    max_voxels: int | None = None

    @classmethod
    def of(
        cls, unet: UNetConfig, diffusion: DiffusionConfig, *, max_voxels: int | None = None, whole: bool = False
    ) -> Windowing:
        """Return the windowing for a network, with windows no smaller than in its training.

        Args:
            unet: the network.
            diffusion: has the training window.
            max_voxels: maximum voxels of a box.
            whole: one patch per slice, for samplings that replace all of it and not only the mask.
        """
        window = diffusion.window
        if unet.dims == 2:
            return cls(2, window, FRAME_MULTIPLE, margin=0, shared_side=sys.maxsize if whole else window)
        return cls(3, window, unet.stride, MARGIN, shared_side=None, max_voxels=max_voxels)


@dataclass(frozen=True, eq=False)
class Window:
    """A place in the frame, and the weight of each of its voxels, 0 to 1; ``None`` is 1 everywhere."""

    place: Place
    share_V: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The window's size in voxels, in the network's order of axes."""
        z, rows, columns = self.place
        return tuple(side.stop - side.start for side in (rows, columns, z) if isinstance(side, slice))

    @property
    def blends(self) -> bool:
        """Whether it overlaps other parts of a larger window."""
        return self.share_V is not None and bool(((self.share_V > 0) & (self.share_V < 1)).any())

    def cut(self, array_SHW: np.ndarray) -> np.ndarray:
        """Return the window's part of an array, zero-padded beyond the last slice."""
        part_V = self._view(array_SHW)
        return np.pad(part_V, [(0, n - m) for n, m in zip(self.shape, part_V.shape, strict=True)])

    def put(self, values_V: np.ndarray, array_SHW: np.ndarray) -> None:
        """Write values into an array in place; weighted values are added, so the array must start at 0 there."""
        part_V = self._view(array_SHW)
        there = tuple(slice(n) for n in part_V.shape)
        if self.share_V is None:
            part_V[...] = values_V[there]
        else:
            part_V += self.share_V[there] * values_V[there]

    def _view(self, array_SHW: np.ndarray) -> np.ndarray:
        z, rows, columns = self.place
        return np.moveaxis(array_SHW, 0, 2)[rows, columns, z]


@dataclass(eq=False)
class Stack:
    """The windows of one scan, with running mean and squared deviations of their samples (all kept with ``keep``)."""

    scan: Scan
    windows: Sequence[Window]
    samples: int
    keep: bool = False
    kept: list[tuple[Task, np.ndarray]] = field(default_factory=list)
    mean_SHW: np.ndarray = field(init=False)
    squares_SHW: np.ndarray = field(init=False)
    missing: int = field(init=False)
    seconds: float = 0.0
    _partial: dict[int, np.ndarray] = field(default_factory=dict)
    _running: dict[Window, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Initialise the mean with the scan, which remains outside the windows."""
        self.mean_SHW = self.scan.image_SHW.copy()
        self.squares_SHW = np.zeros_like(self.mean_SHW)
        self.missing = self.samples * len(self.windows)

    def tasks(self) -> Iterator[Task]:
        """Yield every sample of every window."""
        return (Task(self, window, sample) for window in self.windows for sample in range(self.samples))

    def sequence(self, order: str) -> Iterator[list[Task]]:
        """Yield the tasks of one slice after the other, in one of ``config.ORDERS``; those of a list have one shape."""
        for z, previous in _sequence([int(z) for z in masked_slices(self.scan.mask_SHW)], order):
            here = [window for window in self.windows if window.place[0] == z]
            for shape in dict.fromkeys(window.shape for window in here):
                alike = [window for window in here if window.shape == shape]
                yield [Task(self, window, sample, previous) for window in alike for sample in range(self.samples)]

    def partial_HW(self, sample: int, z: int) -> np.ndarray:
        """Return a slice of an unfinished sample, clipped to [0, 1]: voided if not filled yet, 0 beyond the frame."""
        scan = self.scan
        if not 0 <= z < len(scan.image_SHW):
            return np.zeros_like(scan.image_SHW[0])
        filled_HW = self._partial[sample][z] if sample in self._partial else scan.image_SHW[z]
        return np.where(scan.mask_SHW[z], filled_HW, scan.image_SHW[z]).clip(0, 1)

    def add(self, task: Task, sample_V: np.ndarray) -> None:
        """Add a window's next sample, scaled to [0, 1] but not clipped (Welford's update)."""
        nothing = np.zeros_like(sample_V)
        mean_V, squares_V = self._running.pop(task.window, (nothing, nothing))
        before_V = sample_V - mean_V
        mean_V = mean_V + before_V / (task.sample + 1)
        squares_V = squares_V + before_V * (sample_V - mean_V)
        if task.sample + 1 < self.samples:
            self._running[task.window] = mean_V, squares_V
        else:
            task.window.put(mean_V, self.mean_SHW)
            task.window.put(squares_V, self.squares_SHW)
        if task.previous is not None:
            task.window.put(sample_V, self._partial.setdefault(task.sample, self.scan.image_SHW.copy()))
        self.missing -= 1
        if self.keep:
            self.kept.append((task, sample_V))

    def samples_SHW(self) -> Iterator[np.ndarray]:
        """Yield the single samples, if they were kept."""
        for number in range(self.samples if self.keep else 0):
            stacked_SHW = self.scan.image_SHW.copy()
            for task, sample_V in self.kept:
                if task.sample == number:
                    task.window.put(sample_V, stacked_SHW)
            yield stacked_SHW

    @property
    def std_SHW(self) -> np.ndarray | None:
        """Standard deviation over the samples, or ``None`` for a single one."""
        return np.sqrt(self.squares_SHW / (self.samples - 1)) if self.samples > 1 else None


@dataclass(frozen=True, eq=False)
class Task:
    """One sample of one window of a scan; for networks that see it, ``previous`` is the index of the previous slice."""

    stack: Stack
    window: Window
    sample: int
    previous: int | None = None

    def condition_CV(self, *, position: bool) -> np.ndarray:
        """Return the voided image in [0, 1], the mask, positions and the previous slice in [0, 1]: C × V, float32.

        The positions of all voxels are optional, and so is the previous slice.
        """
        scan = self.stack.scan
        channels = [self.window.cut(scan.image_SHW), self.window.cut(scan.mask_SHW)]
        if position:
            channels.extend(positions(self.window.place, scan.box))
        if self.previous is not None:
            _, rows, columns = self.window.place
            channels.append(self.stack.partial_HW(self.sample, self.previous)[rows, columns])
        return np.stack(channels).astype(np.float32)


def positions(place: Place, box: tuple[slice, slice, slice]) -> list[np.ndarray]:
    """Return the coordinates X, Y and Z of every voxel of a place, each V, relative to the brain's box (S H W).

    0 is the centre of the box, ±1 its faces.
    """
    coordinates = []
    for side, brain in zip(place, box, strict=True):
        centre, half = (brain.start + brain.stop - 1) / 2, (brain.stop - brain.start) / 2
        index = np.arange(side.start, side.stop) if isinstance(side, slice) else np.array(side)
        coordinates.append(np.clip((index - centre) / half, -POSITION_LIMIT, POSITION_LIMIT))
    z, rows, columns = coordinates
    return [
        grid.reshape(*rows.shape, *columns.shape, *z.shape) for grid in np.meshgrid(rows, columns, z, indexing="ij")
    ]


def masked_slices(mask_SHW: np.ndarray) -> np.ndarray:
    """Return the indices of the slices that the mask touches."""
    return np.flatnonzero(mask_SHW.any(axis=(1, 2)))


def around(mask_SHW: np.ndarray, windowing: Windowing) -> list[Window]:
    """Return windows that together cover a mask; nearby connected components share one."""
    if windowing.dims == 3:
        return [
            Window((z, rows, columns), share_V)
            for (rows, columns, z), share_V in _covering(np.moveaxis(mask_SHW, 0, 2), windowing)
        ]
    return [
        Window((int(z), rows, columns), share_V)
        for z in masked_slices(mask_SHW)
        for (rows, columns), share_V in _covering(mask_SHW[z], windowing)
    ]


def of_scan(scan: Scan, windowing: Windowing) -> list[Window]:
    """Return the windows of a scan; log if a box had to be divided."""
    found = around(scan.mask_SHW, windowing)
    if any(window.blends for window in found):
        log.warning("%s: a region is too large for the memory, and is filled in overlapping parts", scan.id)
    return found


def _sequence(slices: list[int], order: str) -> Iterator[tuple[int, int]]:
    """Yield the slices in one of ``config.ORDERS``, each with the slice before it in that direction."""
    middle = {"up": 0, "down": len(slices), "outward": len(slices) // 2}[order]
    yield from ((z, z - 1) for z in slices[middle:])
    yield from ((z, z + 1) for z in reversed(slices[:middle]))


def sequences(stacks: Iterable[Stack], order: str) -> Iterator[list[Task]]:
    """Yield batches as ``batches`` does, slice after slice and scan after scan; add each before asking for the next."""
    for stack in stacks:
        yield from stack.sequence(order) if stack.windows else [[]]


def batches(stacks: Iterable[Stack], size: Callable[[], int]) -> Iterator[list[Task]]:
    """Yield batches of at most ``size()`` tasks of equal shape, across cases; an empty one for a case without tasks.

    After ``MAX_OPEN`` cases the incomplete batches are yielded too, so that finished cases are written soon and few
    are in memory.
    """
    waiting: dict[tuple[int, ...], list[Task]] = {}
    for number, stack in enumerate(stacks):
        if number % MAX_OPEN == 0:
            yield from waiting.values()
            waiting = {}
        if not stack.windows:
            yield []
        for task in stack.tasks():
            shape = task.window.shape
            waiting.setdefault(shape, []).append(task)
            if len(waiting[shape]) >= size():
                yield waiting.pop(shape)
    yield from waiting.values()


def _covering(mask_V: np.ndarray, windowing: Windowing) -> Iterator[tuple[Sides, np.ndarray | None]]:
    """Yield the sides and the weights of the windows that cover a mask."""
    if windowing.dims == 2 and windowing.window >= FRAME:
        yield tuple(slice(0, length) for length in mask_V.shape), None
        return
    labels_V, count = ndimage.label(mask_V, np.ones((3,) * mask_V.ndim))
    groups = _groups(ndimage.find_objects(labels_V), mask_V.shape, windowing) if count else []
    for box, members in groups:
        parts = list(_parts(_sides(box, mask_V.shape, windowing), windowing))
        for sides, ramp_V in parts:
            own_V = np.isin(labels_V[sides], members)
            if len(groups) == len(parts) == 1:
                yield sides, None
            elif own_V.any():
                yield sides, own_V * ramp_V[tuple(slice(n) for n in own_V.shape)]


def _groups(boxes: list[Sides], shape: tuple[int, ...], windowing: Windowing) -> list[tuple[Sides, list[int]]]:
    """Group components by their bounding boxes; each joins the group whose box grows least, if they may share."""
    groups: list[tuple[Sides, list[int]]] = []
    for label in sorted(range(1, len(boxes) + 1), key=lambda label: -_volume(boxes[label - 1])):
        own = boxes[label - 1]
        found = []
        for index, (box, _) in enumerate(groups):
            common = tuple(_union(a, b) for a, b in zip(box, own, strict=True))
            if _may_share(common, box, own, shape, windowing):
                found.append((_volume(common) - _volume(box), index, common))
        if found:
            _, index, common = min(found, key=lambda choice: choice[:2])
            groups[index] = common, [*groups[index][1], label]
        else:
            groups.append((own, [label]))
    return groups


def _may_share(common: Sides, box: Sides, other: Sides, shape: tuple[int, ...], windowing: Windowing) -> bool:
    """Return whether two boxes share a window: it need not grow, or is no more work than separate ones."""
    together, before, apart = (_volume(_sides(each, shape, windowing)) for each in (common, box, other))
    if together == before:
        return True
    if windowing.shared_side is not None:
        return all(side.stop - side.start <= windowing.shared_side for side in common)
    most = LARGEST_SHARED if windowing.max_voxels is None else min(LARGEST_SHARED, windowing.max_voxels)
    return together <= min(before + apart, most)


def _sides(box: Sides, shape: tuple[int, ...], windowing: Windowing) -> Sides:
    """Return the window around a box, inside the frame unless an axis is shorter than the window."""
    return tuple(
        span(
            side.start, side.stop, window=windowing.window, step=windowing.step, margin=windowing.margin, length=length
        )
        for side, length in zip(box, shape, strict=True)
    )


def _parts(sides: Sides, windowing: Windowing) -> Iterator[tuple[Sides, np.ndarray]]:
    """Split a window along its longest side until the parts are small enough; their weights sum to 1 everywhere."""
    lengths = [side.stop - side.start for side in sides]
    axis = int(np.argmax(lengths))
    size = max(windowing.window, windowing.step * -(-(lengths[axis] + OVERLAP) // (2 * windowing.step)))
    if windowing.max_voxels is None or prod(lengths) <= windowing.max_voxels or size >= lengths[axis]:
        yield sides, np.ones(lengths, np.float32)
        return
    start, stop = sides[axis].start, sides[axis].stop
    ramp = np.clip((start + size - np.arange(start, stop) - 0.5) / (2 * size - lengths[axis]), 0, 1)
    for half, weights in ((slice(start, start + size), ramp[:size]), (slice(stop - size, stop), 1 - ramp[-size:])):
        along = np.moveaxis(np.ones((*[1] * (len(sides) - 1), size)) * weights, -1, axis).astype(np.float32)
        for part, weights_V in _parts((*sides[:axis], half, *sides[axis + 1 :]), windowing):
            inner = slice(part[axis].start - half.start, part[axis].stop - half.start)
            yield part, weights_V * np.moveaxis(np.moveaxis(along, axis, 0)[inner], 0, axis)


def _union(a: slice, b: slice) -> slice:
    return slice(min(a.start, b.start), max(a.stop, b.stop))


def _volume(sides: Sides) -> int:
    return prod(side.stop - side.start for side in sides)
