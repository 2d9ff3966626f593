"""Windows of a scan's frame that need filling, batches of them across cases, and adding their samples up.

The unit of work is a place in the frame, ``(z, rows, columns)``: a patch of one axial slice where ``z`` is an ``int``,
a box of the volume where it is a ``slice``. NumPy indexing makes everything else the same code.

Shapes: S H W a scan's frame, axial slices first; N windows of a batch, C channels, h w a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from brats_inpainting.config import FRAME, FRAME_MULTIPLE
from brats_inpainting.data.volume import Scan, span

MAX_OPEN = 4  # cases whose windows may wait for a full batch at a time; it bounds the memory

Place = tuple[int, slice, slice]


@dataclass(eq=False)
class Stack:
    """The windows of one scan as they come back: running mean and sum of squared deviations over the samples.

    With ``keep`` the single samples stay too.
    """

    scan: Scan
    samples: int
    keep: bool = False
    kept: list[tuple[Window, np.ndarray]] = field(default_factory=list)
    mean_SHW: np.ndarray = field(init=False)
    squares_SHW: np.ndarray = field(init=False)
    missing: int = field(init=False)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Start from the scan itself, which stays wherever no window covers it."""
        self.mean_SHW = self.scan.image_SHW.copy()
        self.squares_SHW = np.zeros_like(self.mean_SHW)
        self.missing = self.samples * len(masked(self.scan.mask_SHW))

    def add(self, window: Window, sample_hw: np.ndarray) -> None:
        """Take in one sample of one window, in [0, 1] but not clipped (Welford's update)."""
        place = window.place
        if window.sample == 0:
            self.mean_SHW[place] = 0
        before = sample_hw - self.mean_SHW[place]
        self.mean_SHW[place] += before / (window.sample + 1)
        self.squares_SHW[place] += before * (sample_hw - self.mean_SHW[place])
        self.missing -= 1
        if self.keep:
            self.kept.append((window, sample_hw))

    def sample_SHW(self, number: int) -> np.ndarray:
        """Return one of the samples that were kept."""
        stacked_SHW = self.scan.image_SHW.copy()
        for window, sample_hw in self.kept:
            if window.sample == number:
                stacked_SHW[window.place] = sample_hw
        return stacked_SHW

    @property
    def std_SHW(self) -> np.ndarray | None:
        """Standard deviation over the samples, or ``None`` where there is only one."""
        return np.sqrt(self.squares_SHW / (self.samples - 1)) if self.samples > 1 else None


@dataclass(frozen=True, eq=False)
class Window:
    """One sample of one window of the frame."""

    stack: Stack
    place: Place
    sample: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The window's size in voxels."""
        return self.stack.scan.image_SHW[self.place].shape

    @property
    def condition_Chw(self) -> np.ndarray:
        """The voided image in [0, 1] and the mask: 2 × h × w, float32."""
        scan = self.stack.scan
        return np.stack([scan.image_SHW[self.place], scan.mask_SHW[self.place].astype(np.float32)])


def masked(mask_SHW: np.ndarray) -> np.ndarray:
    """Return the indices of the slices that the mask touches, the only ones that need work."""
    return np.flatnonzero(mask_SHW.any(axis=(1, 2)))


def todo(stack: Stack, *, window: int) -> Iterator[Window]:
    """List the work of one scan: every sample of every masked slice, in windows of at least ``window`` pixels."""
    mask_SHW = stack.scan.mask_SHW
    for z in masked(mask_SHW):
        rows, columns = (_side(mask_SHW[z].any(axis=1 - axis), window) for axis in (0, 1))
        for sample in range(stack.samples):
            yield Window(stack, (int(z), rows, columns), sample)


def batches(windows: Iterable[Window], size: Callable[[], int]) -> Iterator[list[Window]]:
    """Group windows of equal size across cases into lists of at most ``size()``.

    Every few cases everything that still waits goes out in smaller lists, so that finished cases are written soon and
    few are held in memory.
    """
    waiting: dict[tuple[int, ...], list[Window]] = {}
    opened: list[Stack] = []
    for window in windows:
        if window.stack not in opened:
            if len(opened) == MAX_OPEN:
                yield from waiting.values()
                waiting, opened = {}, []
            opened.append(window.stack)
        shape = window.shape
        waiting.setdefault(shape, []).append(window)
        if len(waiting[shape]) >= size():
            yield waiting.pop(shape)
    yield from waiting.values()


def _side(occupied: np.ndarray, window: int) -> slice:
    """Centre a window on what is occupied along one axis of the frame; a network of whole slices gets all of it."""
    if window >= FRAME:
        return slice(0, len(occupied))
    return span(occupied, window=window, step=FRAME_MULTIPLE, length=len(occupied))
