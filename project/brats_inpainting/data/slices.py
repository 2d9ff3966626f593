"""Which slices need work, the windows that are cut around it, batches across cases, and stacking back.

Shapes: H W S a scan's frames; S slices of a batch, C channels, h w a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from brats_inpainting.config import FRAME, FRAME_MULTIPLE
from brats_inpainting.data.volume import Scan

MAX_OPEN = 4  # cases whose slices may wait for a full batch at a time; it bounds the memory


@dataclass(eq=False)
class Stack:
    """The slices of one scan as they come back: running mean and sum of squared deviations over the samples.

    With ``keep`` the single samples stay too.
    """

    scan: Scan
    samples: int
    keep: bool = False
    kept: list[tuple[Slice, np.ndarray]] = field(default_factory=list)
    mean_HWS: np.ndarray = field(init=False)
    squares_HWS: np.ndarray = field(init=False)
    missing: int = field(init=False)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Start from the scan itself, which stays wherever no window covers it."""
        self.mean_HWS = self.scan.image_HWS.copy()
        self.squares_HWS = np.zeros_like(self.mean_HWS)
        self.missing = self.samples * len(masked(self.scan.mask_HWS))

    def add(self, piece: Slice, sample_hw: np.ndarray) -> None:
        """Take in one sample of one slice, in [0, 1] but not clipped (Welford's update)."""
        place = (*piece.window, piece.z)
        if piece.sample == 0:
            self.mean_HWS[place] = 0
        before = sample_hw - self.mean_HWS[place]
        self.mean_HWS[place] += before / (piece.sample + 1)
        self.squares_HWS[place] += before * (sample_hw - self.mean_HWS[place])
        self.missing -= 1
        if self.keep:
            self.kept.append((piece, sample_hw))

    def sample_HWS(self, number: int) -> np.ndarray:
        """Return one of the samples that were kept."""
        stacked_HWS = self.scan.image_HWS.copy()
        for piece, sample_hw in self.kept:
            if piece.sample == number:
                stacked_HWS[(*piece.window, piece.z)] = sample_hw
        return stacked_HWS

    @property
    def std_HWS(self) -> np.ndarray | None:
        """Standard deviation over the samples, or ``None`` where there is only one."""
        return np.sqrt(self.squares_HWS / (self.samples - 1)) if self.samples > 1 else None


@dataclass(frozen=True, eq=False)
class Slice:
    """One sample of one axial slice that needs work."""

    stack: Stack
    z: int
    sample: int
    window: tuple[slice, slice]

    @property
    def condition_Chw(self) -> np.ndarray:
        """The voided image in [0, 1] and the mask: 2 × h × w, float32."""
        place = (*self.window, self.z)
        scan = self.stack.scan
        return np.stack([scan.image_HWS[place], scan.mask_HWS[place].astype(np.float32)])


def masked(mask_HWS: np.ndarray) -> list[int]:
    """Return the indices of the slices that the mask touches (paper §2.2)."""
    return [int(z) for z in np.flatnonzero(mask_HWS.any(axis=(0, 1)))]


def todo(stack: Stack, *, window: int) -> Iterator[Slice]:
    """List the work of one scan: every sample of every masked slice, in windows of at least ``window`` pixels."""
    mask_HWS = stack.scan.mask_HWS
    for z in masked(mask_HWS):
        rows, columns = (_span(mask_HWS[:, :, z].max(axis=axis), window) for axis in (1, 0))
        for sample in range(stack.samples):
            yield Slice(stack, z, sample, (rows, columns))


def batches(pieces: Iterable[Slice], size: Callable[[], int]) -> Iterator[list[Slice]]:
    """Group slices of equal window across cases into lists of at most ``size()``.

    Every few cases everything that still waits goes out in smaller lists, so that finished cases are written soon and
    few are held in memory.
    """
    waiting: dict[tuple[int, int], list[Slice]] = {}
    opened: list[Stack] = []
    for piece in pieces:
        if piece.stack not in opened:
            if len(opened) == MAX_OPEN:
                yield from waiting.values()
                waiting, opened = {}, []
            opened.append(piece.stack)
        shape = _shape(piece)
        waiting.setdefault(shape, []).append(piece)
        if len(waiting[shape]) >= size():
            yield waiting.pop(shape)
    yield from waiting.values()


def _shape(piece: Slice) -> tuple[int, int]:
    rows, columns = piece.window
    return rows.stop - rows.start, columns.stop - columns.start


def _span(occupied: np.ndarray, window: int) -> slice:
    """Centre a window on what is occupied; grow it in steps of 32 until that fits, at most to the whole frame.

    A network of whole slices (224, the paper's) gets the whole frame, however large.
    """
    if window >= FRAME:
        return slice(0, len(occupied))
    first, last = np.flatnonzero(occupied)[[0, -1]]
    growth = FRAME_MULTIPLE * int(np.ceil(max(0, last + 1 - first - window) / FRAME_MULTIPLE))
    size = min(window + growth, len(occupied))
    start = int(np.clip((first + last + 1 - size) // 2, 0, len(occupied) - size))
    return slice(start, start + size)
