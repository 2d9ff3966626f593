"""Windows of a scan's frame that need filling, batches of them across cases, and adding their samples up.

The unit of work is a place in the frame, ``(z, rows, columns)``: a patch of one axial slice where ``z`` is an ``int``,
a box of the volume where it is a ``slice``. NumPy indexing makes everything else the same code.

Shapes: S H W a scan's frame, axial slices first; V the axes of a window as the network sees them, H W of a patch and
X Y Z (= H W S) of a box; C channels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from scipy import ndimage

from brats_inpainting.config import FRAME, FRAME_MULTIPLE, DiffusionConfig, UNetConfig
from brats_inpainting.data.volume import Scan, span

MAX_OPEN = 4  # cases whose windows may wait for a full batch at a time; it bounds the memory
MARGIN = 16  # voxels of context that a box has around its components
LARGEST_SHARED = 128**3  # voxels of a box that distant components share; larger ones were not tried
OVERLAP = 32  # voxels by which the parts of a box overlap that is too large for the memory
POSITION_LIMIT = 1.5  # in half sizes of the brain's box

Place = tuple[int | slice, slice, slice]
Sides = tuple[slice, ...]


@dataclass(frozen=True)
class Windowing:
    """How windows are placed around the connected components of a mask.

    Attributes:
        dims: 2 for patches of slices, 3 for boxes of the volume.
        window: the least side; 2D networks of whole slices (``FRAME`` and more) get whole slices.
        step: sides grow in steps of so many voxels.
        margin: voxels of context on every side.
        common: components that fit into a box of this side share a window; ``None``: those share one whose common
            window has no more voxels than their own windows together, and is not too large.
        most: voxels of the largest window; a larger one is cut into overlapping parts.
    """

    dims: int
    window: int
    step: int
    margin: int
    common: int | None
    most: int | None = None

    @classmethod
    def of(
        cls, unet: UNetConfig, diffusion: DiffusionConfig, *, most: int | None = None, whole: bool = False
    ) -> Windowing:
        """Return the windows that a network works on, those it was trained on at least.

        Args:
            unet: the network.
            diffusion: has the windows of its training.
            most: voxels of the largest box.
            whole: one patch a slice, because all of it is replaced, and not the mask alone.
        """
        window = diffusion.window
        if unet.dims == 2:
            return cls(2, window, FRAME_MULTIPLE, margin=0, common=sys.maxsize if whole else window)
        return cls(3, window, unet.stride, MARGIN, common=None, most=most)


@dataclass(frozen=True, eq=False)
class Window:
    """A place in the frame, and the share of it that is taken: 0 to 1 for every voxel, or ``None`` for all of it."""

    place: Place
    share_V: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The window's size in voxels, in the network's order of axes."""
        z, rows, columns = self.place
        return tuple(side.stop - side.start for side in (rows, columns, z) if isinstance(side, slice))

    @property
    def blends(self) -> bool:
        """Whether it is a part of a larger window, and shares voxels with the other parts."""
        return self.share_V is not None and bool(((self.share_V > 0) & (self.share_V < 1)).any())

    def cut(self, array_SHW: np.ndarray) -> np.ndarray:
        """Return the window's part of an array, padded with zeros where it reaches beyond the last slice."""
        part_V = self._view(array_SHW)
        return np.pad(part_V, [(0, n - m) for n, m in zip(self.shape, part_V.shape, strict=True)])

    def put(self, values_V: np.ndarray, array_SHW: np.ndarray) -> None:
        """Take the window's share of some values into an array, which is 0 where shares are to be summed."""
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
    """The windows of one scan, and their samples as they come back: mean and sum of squared deviations.

    With ``keep`` the single samples stay too.
    """

    scan: Scan
    windows: Sequence[Window]
    samples: int
    keep: bool = False
    kept: list[tuple[Task, np.ndarray]] = field(default_factory=list)
    mean_SHW: np.ndarray = field(init=False)
    squares_SHW: np.ndarray = field(init=False)
    missing: int = field(init=False)
    seconds: float = 0.0
    _running: dict[Window, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start from the scan itself, which stays wherever no window covers it."""
        self.mean_SHW = self.scan.image_SHW.copy()
        self.squares_SHW = np.zeros_like(self.mean_SHW)
        self.missing = self.samples * len(self.windows)

    def tasks(self) -> Iterator[Task]:
        """List the work: every sample of every window."""
        return (Task(self, window, sample) for window in self.windows for sample in range(self.samples))

    def add(self, task: Task, sample_V: np.ndarray) -> None:
        """Take in a window's next sample, in [0, 1] but not clipped (Welford's update)."""
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
        """Standard deviation over the samples, or ``None`` where there is only one."""
        return np.sqrt(self.squares_SHW / (self.samples - 1)) if self.samples > 1 else None


@dataclass(frozen=True, eq=False)
class Task:
    """One sample of one window of a scan."""

    stack: Stack
    window: Window
    sample: int

    def condition_CV(self, *, position: bool) -> np.ndarray:
        """Return the voided image in [0, 1], the mask and, if asked, every voxel's ``position``: C × V, float32."""
        scan = self.stack.scan
        channels = [self.window.cut(scan.image_SHW), self.window.cut(scan.mask_SHW)]
        if position:
            channels.extend(positions(self.window.place, scan.box))
        return np.stack(channels).astype(np.float32)


def positions(place: Place, box: tuple[slice, slice, slice]) -> list[np.ndarray]:
    """Return the coordinates X, Y and Z of every voxel of a place, each V: 0 in the middle of a box, ±1 at its faces.

    Args:
        place: in the frame.
        box: the brain's in the frame, S H W.
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


def masked(mask_SHW: np.ndarray) -> np.ndarray:
    """Return the indices of the slices that the mask touches."""
    return np.flatnonzero(mask_SHW.any(axis=(1, 2)))


def around(mask_SHW: np.ndarray, how: Windowing) -> list[Window]:
    """Return windows that together cover a mask: every component is in one of them, with others that are near."""
    if how.dims == 3:
        return [
            Window((z, rows, columns), share_V)
            for (rows, columns, z), share_V in _covering(np.moveaxis(mask_SHW, 0, 2), how)
        ]
    return [
        Window((int(z), rows, columns), share_V)
        for z in masked(mask_SHW)
        for (rows, columns), share_V in _covering(mask_SHW[z], how)
    ]


def batches(tasks: Iterable[Task], size: Callable[[], int]) -> Iterator[list[Task]]:
    """Group tasks of equal shape across cases into lists of at most ``size()``.

    Every few cases everything that still waits goes out in smaller lists, so that finished cases are written soon and
    few are held in memory.
    """
    waiting: dict[tuple[int, ...], list[Task]] = {}
    opened: list[Stack] = []
    for task in tasks:
        if task.stack not in opened:
            if len(opened) == MAX_OPEN:
                yield from waiting.values()
                waiting, opened = {}, []
            opened.append(task.stack)
        shape = task.window.shape
        waiting.setdefault(shape, []).append(task)
        if len(waiting[shape]) >= size():
            yield waiting.pop(shape)
    yield from waiting.values()


def _covering(mask_V: np.ndarray, how: Windowing) -> Iterator[tuple[Sides, np.ndarray | None]]:
    """Yield the sides of the windows over a mask, and the share that each has in the result."""
    if how.dims == 2 and how.window >= FRAME:
        yield tuple(slice(0, length) for length in mask_V.shape), None
        return
    labels_V, count = ndimage.label(mask_V, np.ones((3,) * mask_V.ndim))
    groups = _groups(ndimage.find_objects(labels_V), mask_V.shape, how) if count else []
    for box, members in groups:
        parts = list(_parts(_sides(box, mask_V.shape, how), how))
        for sides, ramp_V in parts:
            own_V = np.isin(labels_V[sides], members)
            if len(groups) == len(parts) == 1:
                yield sides, None
            elif own_V.any():
                yield sides, own_V * ramp_V[tuple(slice(n) for n in own_V.shape)]


def _groups(boxes: list[Sides], shape: tuple[int, ...], how: Windowing) -> list[tuple[Sides, list[int]]]:
    """Group components, given by their boxes, that share a window; each joins the group whose box grows the least."""
    groups: list[tuple[Sides, list[int]]] = []
    for label in sorted(range(1, len(boxes) + 1), key=lambda label: -_volume(boxes[label - 1])):
        own = boxes[label - 1]
        found = []
        for index, (box, _) in enumerate(groups):
            common = tuple(_union(a, b) for a, b in zip(box, own, strict=True))
            if _share(common, box, own, shape, how):
                found.append((_volume(common) - _volume(box), index, common))
        if found:
            _, index, common = min(found, key=lambda choice: choice[:2])
            groups[index] = common, [*groups[index][1], label]
        else:
            groups.append((own, [label]))
    return groups


def _share(common: Sides, box: Sides, other: Sides, shape: tuple[int, ...], how: Windowing) -> bool:
    """Tell whether one window takes two boxes, whose common box is given: it need not grow, or it is worth it."""
    together, before, apart = (_volume(_sides(each, shape, how)) for each in (common, box, other))
    if together == before:
        return True
    if how.common is not None:
        return all(side.stop - side.start <= how.common for side in common)
    most = LARGEST_SHARED if how.most is None else min(LARGEST_SHARED, how.most)
    return together <= min(before + apart, most)


def _sides(box: Sides, shape: tuple[int, ...], how: Windowing) -> Sides:
    """Return the window around a box, on the frame but for axes that are shorter than the window."""
    return tuple(
        span(side.start, side.stop, window=how.window, step=how.step, margin=how.margin, length=length)
        for side, length in zip(box, shape, strict=True)
    )


def _parts(sides: Sides, how: Windowing) -> Iterator[tuple[Sides, np.ndarray]]:
    """Halve a window along its longest side until it is small enough; the weights of its parts sum to 1 everywhere."""
    lengths = [side.stop - side.start for side in sides]
    axis = int(np.argmax(lengths))
    size = max(how.window, how.step * -(-(lengths[axis] + OVERLAP) // (2 * how.step)))
    if how.most is None or prod(lengths) <= how.most or size >= lengths[axis]:
        yield sides, np.ones(lengths, np.float32)
        return
    start, stop = sides[axis].start, sides[axis].stop
    ramp = np.clip((start + size - np.arange(start, stop) - 0.5) / (2 * size - lengths[axis]), 0, 1)
    for half, weights in ((slice(start, start + size), ramp[:size]), (slice(stop - size, stop), 1 - ramp[-size:])):
        along = np.moveaxis(np.ones((*[1] * (len(sides) - 1), size)) * weights, -1, axis).astype(np.float32)
        for part, weights_V in _parts((*sides[:axis], half, *sides[axis + 1 :]), how):
            inner = slice(part[axis].start - half.start, part[axis].stop - half.start)
            yield part, weights_V * np.moveaxis(np.moveaxis(along, axis, 0)[inner], 0, axis)


def _union(a: slice, b: slice) -> slice:
    return slice(min(a.start, b.start), max(a.stop, b.stop))


def _volume(sides: Sides) -> int:
    return prod(side.stop - side.start for side in sides)
