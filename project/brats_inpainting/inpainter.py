"""The straight line: a masked scan in, a filled scan out.

Shapes: N windows of a batch, V the axes of a window; S H W a scan's frame, X Y Z a volume.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from brats_inpainting import batch, concurrent, config, memory
from brats_inpainting.concurrent import OnPass
from brats_inpainting.config import DEFAULT_PRESET, FRAME, DiffusionConfig, Precision, SamplingConfig, UNetConfig
from brats_inpainting.data import nifti, volume, windows
from brats_inpainting.data.volume import Scan
from brats_inpainting.data.windows import Stack, Task, Windowing
from brats_inpainting.device import choose_device
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.checkpoint import Weights
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from brats_inpainting.diffusion.process import Network
from brats_inpainting.errors import CaseError
from brats_inpainting.filler import Filled, InpaintMixin
from brats_inpainting.plan import Plan
from brats_inpainting.progress import ProgressBar

log = logging.getLogger(__name__)


@dataclass
class Inpainter(InpaintMixin):
    """A network, the way it is sampled, and the plan by which it works; ``plan`` changes when memory runs out."""

    weights: Weights = field(repr=False)
    sampling: SamplingConfig
    plan: Plan
    network: Network = field(init=False, repr=False)

    @classmethod
    def load(
        cls,
        weights: Path | str | None = None,
        *,
        preset: str = DEFAULT_PRESET,
        device: str = "auto",
        fallback: Literal["cpu"] | None = None,
        batch_size: int | None = None,
        at_most: int | None = None,
        precision: Precision | Literal["auto"] = "auto",
        replay: bool = True,
        unet: UNetConfig | None = None,
        diffusion: DiffusionConfig | None = None,
        **overrides: Any,
    ) -> Inpainter:
        """Load a network and choose how to sample it.

        Args:
            weights: a ``.safetensors`` or ``.pt`` file, or the name of bundled weights (``config.BUNDLED``); the
                preset's bundled weights if not given.
            preset: a name in ``config.PRESETS``; weights that predict noise take 25 steps at least, consistency models
                one pass of their own sampler.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps``.
            fallback: ``cpu`` replaces a GPU that cannot be used, with a warning; an error if not given.
            batch_size: windows per network pass; chosen by the device if not given.
            at_most: the largest batch size that may be chosen.
            precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: fp32 on a CPU; on a GPU bf16, or fp16 on older ones.
            replay: on an NVIDIA GPU, replay passes of one shape as a CUDA graph.
            unet: the architecture of a weights file that stores none, if its shapes do not determine it.
            diffusion: the process settings of such a file; the paper's if not given.
            overrides: fields of ``SamplingConfig`` that replace the preset's.

        Raises:
            CheckpointError: when the weights cannot be used.
            ConfigError: when there is no such preset or device, an override is out of range, or too little memory.
        """
        where = choose_device(device, fallback=fallback)
        config.sampling(preset, 2, **overrides)  # refuses wrong values before anything is loaded
        loaded = checkpoint.load(config.weights_path(weights, preset), unet=unet, diffusion=diffusion)
        checkpoint.check_compatible(loaded)
        unet = loaded.network.config
        sampling = config.sampling(preset, unet.dims, **overrides)
        sampling = checkpoint.with_enough_steps(sampling, loaded, asked="steps" in overrides)
        sampling = checkpoint.for_consistency(sampling, loaded, asked=overrides)
        if where.type == "cpu":
            memory.refuse_too_little(unet, FRAME if sampling.replace == "slices" else loaded.diffusion.window)
        plan = Plan.make(unet, where, batch_size=batch_size, at_most=at_most, precision=precision, replay=replay)
        return cls(loaded, sampling, plan)

    def __post_init__(self) -> None:
        """Move the network to its device, and prepare its passes."""
        checkpoint.check_steps(self.sampling, self.weights)
        if self.sequential:
            self.plan = replace(self.plan, batch_size=1, concurrent=1)
        network = self.weights.network
        network.to(self.plan.device, memory_format=MEMORY_FORMAT[network.config.dims])  # type: ignore[call-overload]
        self.network = batch.network_pass(network, self.plan)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is prepared for this process."""
        return {name: value for name, value in vars(self).items() if name != "network"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, and prepare the passes again."""
        vars(self).update(state)
        self.__post_init__()

    def fill(
        self, scans: Iterable[Scan], *, seed: int = 0, keep: bool = False, progress: ProgressBar | None = None
    ) -> Iterator[Stack]:
        """Sample all windows of all scans, in batches across scans, and yield each scan's when they are complete.

        Args:
            scans: prepared scans; read as they are needed.
            seed: of the noise.
            keep: keep every single sample of a scan, too.
            progress: counts the network passes of each scan, and each pass as it begins.
        """
        progress = progress or ProgressBar(0, quiet=True)
        complete: deque[Stack] = deque()

        def opened() -> Iterator[Stack]:
            for scan in scans:
                stack = self.stack(scan, keep=keep)
                self._open(stack, progress)
                complete.extend([] if stack.windows else [stack])
                yield stack

        if self.sequential:
            batches = windows.sequences(opened(), self.sampling.order)
        else:
            batches = windows.batches(opened(), lambda: self.plan.batch_size)
        sample = partial(self._sample, seed=seed)
        for done, samples_N1V, seconds in concurrent.run(sample, batches, progress.advance, self.plan.concurrent):
            log.debug("%d windows of %s in %.2f s", len(done), nifti.format_shape(samples_N1V.shape[2:]), seconds)
            for task, sample_1V in zip(done, samples_N1V, strict=True):
                task.stack.add(task, sample_1V[0])
                task.stack.seconds += seconds / len(done)
                if not task.stack.missing:
                    complete.append(task.stack)
            while complete:
                yield complete.popleft()

    def finish(self, stack: Stack) -> Filled:
        """Add up, smooth and undo the preparation (paper §3.3).

        Raises:
            CaseError: when the network returned NaN, or the paper's rescaling finds no range of intensities.
        """
        scan, std_SHW = stack.scan, stack.std_SHW
        if not np.isfinite(stack.mean_SHW).all():
            raise CaseError(f"{scan.id}: the network returned NaN or infinity\n  Use other weights, or another device.")
        std_XYZ = None if std_SHW is None else scan.undo_std(std_SHW)
        samples_XYZ = map(partial(self._undo, scan), stack.samples_SHW())
        return Filled(scan, self._undo(scan, stack.mean_SHW), std_XYZ, samples_XYZ)

    def stack(self, scan: Scan, *, keep: bool = False) -> Stack:
        """Return the windows of a scan that need filling."""
        unet, whole = self.weights.network.config, self.sampling.replace == "slices"
        how = Windowing.of(unet, self.weights.diffusion, max_voxels=self.plan.most_voxels, whole=whole)
        return Stack(scan, windows.of_scan(scan, how), self.sampling.samples, keep and self.sampling.samples > 1)

    @property
    def sequential(self) -> bool:
        """Whether the network sees the previous slice, so that slices are filled one after the other."""
        return self.weights.diffusion.context == "previous"

    @property
    def dilate(self) -> float:
        """Millimetres by which masks are grown before they are filled."""
        return self.sampling.dilate

    @property
    def resample(self) -> bool:
        """Whether scans of other voxel sizes are brought to 1 mm."""
        return self.sampling.resample

    def settings(self) -> dict[str, Any]:
        """Return everything that results depend on, besides the seed."""
        return {
            "sampling": self.sampling.model_dump(mode="json"),
            "weights": self.weights.sha256,
            "diffusion": self.weights.diffusion.model_dump(mode="json"),
            "precision": self.plan.precision,
        }

    def facts(self) -> dict[str, Any]:
        """Return the weights with their hash, and the plan."""
        return {"weights": f"{self.weights}, SHA-256 {self.weights.sha256}"} | self.plan.facts()

    def _undo(self, scan: Scan, stacked_SHW: np.ndarray) -> np.ndarray:
        """Smooth a filled frame and put it into the scan."""
        if self.sampling.replace == "slices" and scan.mask_SHW.any():
            return scan.everywhere(volume.smooth(stacked_SHW, self.sampling.smoothing))
        inside_SHW = np.where(scan.mask_SHW, stacked_SHW, scan.image_SHW)
        return scan.inside(volume.smooth(inside_SHW, self.sampling.smoothing))

    def _open(self, stack: Stack, progress: ProgressBar) -> None:
        """Count the work of a scan; of the first one, log how long it takes."""
        if progress.cases and not progress.known:
            batch.log_estimate(stack, self.weights, self.sampling, self.plan)
        progress.open(stack.missing * self.sampling.passes)

    def _sample(self, tasks: list[Task], on_pass: OnPass, *, seed: int) -> np.ndarray:
        """Sample a batch of windows; with a smaller batch size from now on if memory runs out."""
        sample = partial(
            batch.sample, weights=self.weights, sampling=self.sampling, network=self.network, seed=seed, on_pass=on_pass
        )
        samples_N1V, size = batch.within_memory(sample, tasks, self.plan)
        self.plan = self.plan.at_most(size)
        return samples_N1V
