"""The interface of everything that fills scans, and filling one scan in memory by it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from nibabel.spatialimages import SpatialImage

from brats_inpainting.data import nifti, output, validation, volume
from brats_inpainting.data.lesion import UNAMBIGUOUS, MaskReading
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


class Inpainting(NamedTuple):
    """A filled scan; ``std`` is the voxel-wise standard deviation of several samples, ``timings`` are seconds."""

    image: Any
    std: Any
    timings: dict[str, float]


class InpaintMixin:
    """Adds ``inpaint``, which fills one scan in memory, to a ``Filler``."""

    def inpaint(
        self: Filler, image: Any, mask: Any, *, brain: Any = None, reading: MaskReading = UNAMBIGUOUS, seed: int = 0
    ) -> Inpainting:
        """Fill one scan.

        Args:
            image: T1 volume, X × Y × Z, as an array in LPS order with 1 mm voxels, or as a NIfTI image (or its path) in
                any orientation; skull-stripped unless ``brain`` is given; what is inside the mask is ignored.
            mask: likewise, or an array on the grid of the image; 0 and 1, or shares, cut at 0.5.
            brain: likewise; the brain mask of a scan that is a whole head.
            reading: what the values of a mask with others mean.
            seed: 0 or more; results depend on it, and on nothing else that is random.

        Returns:
            The filled scan and the standard deviation of several samples, as arrays or NIfTI images; float32.

        Raises:
            CaseError: naming every reason why the scan cannot be processed.
        """
        started = time.perf_counter()
        given = nifti.as_image(image)
        loaded = validation.examine(
            "the scan",
            given,
            nifti.as_image(mask, given.affine),
            names=("image", "mask"),
            brain=None if brain is None else nifti.as_image(brain, given.affine),
            reading=reading,
        )
        scan = volume.prepare(loaded, dilate=self.dilate, resample=self.resample)
        prepared = time.perf_counter()
        (stack,) = self.fill([scan], seed=seed)
        sampled = time.perf_counter()
        filled = self.finish(stack)
        timings = {"prepare": prepared - started, "fill": sampled - prepared, "finish": time.perf_counter() - sampled}
        like = output.image_like if isinstance(image, str | Path | SpatialImage) else output.array_like
        std = None if filled.std_XYZ is None else like(loaded, filled.std_XYZ)
        return Inpainting(like(loaded, filled.volume_XYZ), std, timings)
