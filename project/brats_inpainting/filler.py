"""What every way to fill scans offers: the network (``Inpainter``), the baselines, yours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from brats_inpainting.data.volume import Scan
from brats_inpainting.data.windows import Stack
from brats_inpainting.progress import ProgressBar


@dataclass(frozen=True)
class Filled:
    """A filled scan, X × Y × Z in the scan's own intensities, float32.

    Attributes:
        scan: what was filled.
        volume_XYZ: the result.
        std_XYZ: voxel-wise standard deviation of several samples.
        samples_XYZ: every single sample, if they were kept; computed as they are iterated.
    """

    scan: Scan
    volume_XYZ: np.ndarray
    std_XYZ: np.ndarray | None = None
    samples_XYZ: Iterable[np.ndarray] = ()


class Filler(Protocol):
    """Anything that fills scans."""

    @property
    def dilate(self) -> float:
        """Millimetres by which masks are grown before they are filled."""

    @property
    def resample(self) -> bool:
        """Whether scans of other voxel sizes are brought to 1 mm."""

    def settings(self) -> dict[str, Any]:
        """Return everything that results depend on, as JSON; a resumed run must have the same."""

    def facts(self) -> dict[str, Any]:
        """Return other facts for the record of a run: device, threads."""

    def fill(
        self, scans: Iterable[Scan], *, seed: int = 0, keep: bool = False, progress: ProgressBar | None = None
    ) -> Iterator[Stack]:
        """Yield the work of each scan when it can be finished.

        Args:
            scans: what is to be filled.
            seed: 0 or more.
            keep: keep every single sample.
            progress: counts the scans opened and the passes done.
        """

    def finish(self, stack: Stack) -> Filled:
        """Return the filled scan; called in another thread than ``fill``.

        Raises:
            CaseError: when this scan cannot be filled.
        """
