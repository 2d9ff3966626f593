"""The straight line: a masked scan walks in, a filled one walks out.

Shapes: N windows of a batch, C channels, V the axes of a window (H W of a patch, X Y Z of a box); S H W a scan's frame,
X Y Z a volume.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from brats_inpainting import config, memory
from brats_inpainting.config import (
    DEFAULT_PRESET,
    FRAME,
    DiffusionConfig,
    SamplingConfig,
    UNetConfig,
)
from brats_inpainting.data import cases, nifti, volume, windows
from brats_inpainting.data.volume import Scan
from brats_inpainting.data.windows import Stack, Task, Windowing
from brats_inpainting.device import Precision, autocast, best_precision, choose_device
from brats_inpainting.diffusion import checkpoint, noise, samplers
from brats_inpainting.diffusion.checkpoint import Weights
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from brats_inpainting.diffusion.process import Denoiser, Prediction, Schedule
from brats_inpainting.errors import CaseError, ConfigError, InpaintingError
from brats_inpainting.host import ahead, return_memory

log = logging.getLogger(__name__)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the affine that a bare array is given: BraTS order, 1 mm
OnPass = Callable[[int], None]
ENOUGH_STEPS = 25  # for a network that predicts noise: early on x̂_0 is its small error, much amplified
NARROW = 64  # feature maps
MOST_SIDE_BY_SIDE = 16  # batches: what is ready for them takes memory too
BATCH = {  # by the network's dimensions: slices, the paper's number on a GPU; boxes
    2: {"cuda": 32, "mps": 8, "cpu": 4},
    3: {"cuda": 1, "mps": 1, "cpu": 1},  # one keeps a GPU busy; what several gain there has not been measured
}


class Inpainting(NamedTuple):
    """A filled scan; ``std`` is the voxel-wise standard deviation of several samples, ``timings`` are seconds."""

    image: Any
    std: Any
    timings: dict[str, float]


@dataclass
class Inpainter:
    """A network, the way it is sampled, and the device that it runs on.

    ``batch_size`` is halved whenever memory runs out. ``precision`` is that of the network's convolutions and matrix
    products; everything else is float32. ``side_by_side`` batches are sampled at a time, each by its share of torch's
    threads: a narrow network does not keep several threads busy with one (docs/benchmarks.md). Boxes of more than
    ``most_voxels`` are filled in overlapping parts.
    """

    weights: Weights = field(repr=False)
    sampling: SamplingConfig
    device: torch.device
    batch_size: int
    precision: Precision = "fp32"
    side_by_side: int = 1
    most_voxels: int | None = None

    @classmethod
    def load(
        cls,
        weights: Path | str | None = None,
        *,
        preset: str = DEFAULT_PRESET,
        device: str = "auto",
        batch_size: int | None = None,
        at_most: int | None = None,
        precision: Precision | Literal["auto"] = "auto",
        unet: UNetConfig | None = None,
        diffusion: DiffusionConfig | None = None,
        **overrides: Any,
    ) -> Inpainter:
        """Load a network and choose how to sample it.

        Args:
            weights: a ``.safetensors`` or ``.pt`` file, or the name of bundled weights (``config.BUNDLED``); the
                preset's bundled weights if not given.
            preset: a name in ``config.PRESETS``; weights that predict noise take 25 steps at least.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps``.
            batch_size: windows per network pass; chosen by the device if not given.
            at_most: the most that may be chosen.
            precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: fp32 on a CPU, on a GPU by network and GPU.
            unet: the architecture of a weights file that stores none, if the shapes in it do not tell enough.
            diffusion: what the numbers of such a file mean, if not what the paper's do.
            overrides: fields of ``SamplingConfig`` that replace the preset's.

        Raises:
            CheckpointError: when the weights cannot be used.
            ConfigError: when there is no such preset or device, or an override is out of range.
        """
        where = choose_device(device)
        config.sampling(preset, 2, **overrides)  # what is wrong with it is said before anything is loaded
        loaded = checkpoint.load(config.weights_path(weights, preset), unet=unet, diffusion=diffusion)
        unet = loaded.network.config
        how = config.sampling(preset, unet.dims, **overrides)
        checkpoint.refuse_other_work(loaded)
        if where.type == "cpu":
            memory.refuse_too_little(unet, FRAME if how.replace == "slices" else loaded.diffusion.window)
        enough = min(ENOUGH_STEPS, loaded.diffusion.steps)
        if loaded.diffusion.prediction == "eps" and how.steps < enough:
            if "steps" in overrides:
                few = "%s predicts noise, for which %d steps are few: ask for %d or more"
                log.warning(few, loaded.path.name, how.steps, enough)
            else:
                how = how.model_copy(update={"steps": enough})
        most, exact = usual(where, unet)
        most = min(most, at_most or most)
        size = batch_size or (memory.plan(unet, most) if where.type == "cpu" and unet.dims == 2 else most)
        inpainter = cls(loaded, how, where, size, exact if precision == "auto" else precision)
        inpainter.spread(torch.get_num_threads())
        return inpainter

    def __post_init__(self) -> None:
        """Put the network where it will work."""
        steps = self.weights.diffusion.steps
        if self.sampling.steps > steps:
            raise ConfigError(
                f"{self.sampling.steps} steps asked for\n  The weights were trained with {steps}: ask for no more."
            )
        self.weights.network.to(self.device, memory_format=MEMORY_FORMAT[self.weights.network.config.dims])  # type: ignore[call-overload]
        self._schedule = Schedule.of(self.weights.diffusion)

    def spread(self, threads: int, limit: int | None = None) -> None:
        """Sample as many batches side by side as a narrow network on a CPU has threads for, and memory, in bytes.

        A box of the volume keeps all threads busy; there the memory decides how large one may be.
        """
        unet = self.weights.network.config
        if unet.dims == 3:
            most = memory.most_voxels(unet, self.device, limit)
            self.most_voxels = most and most // self.batch_size
        elif self.device.type == "cpu" and unet.width <= NARROW:
            self.side_by_side = memory.batches(unet, self.batch_size, threads // _share(threads), limit)

    def inpaint(self, image: Any, mask: Any, *, seed: int = 0) -> Inpainting:
        """Fill one scan.

        Args:
            image: T1 volume, X × Y × Z, as an array in LPS order with 1 mm voxels, or as a NIfTI image (or its path) in
                any orientation; skull-stripped, background 0; whatever stands inside the mask is ignored.
            mask: likewise; more than 0.5 counts as mask.
            seed: 0 or more; the result depends on it, and on nothing random besides.

        Returns:
            The filled scan and the standard deviation over the samples (``None`` for one sample), arrays for an
            array, NIfTI images otherwise; float32.

        Raises:
            CaseError: naming every reason why the scan cannot be processed.
        """
        started = time.perf_counter()
        images = [_as_image(image), _as_image(mask)]
        loaded = cases.examine("the scan", images[0], images[1], names=("image", "mask"))
        scan = volume.prepare(loaded, dilate=self.sampling.dilate)
        prepared = time.perf_counter()
        stack = self.stack(scan)
        next(self.fill([stack], seed=seed), stack)
        filled = time.perf_counter()
        result_XYZ, std_XYZ = self.finish(stack)
        timings = {"prepare": prepared - started, "fill": filled - prepared, "finish": time.perf_counter() - filled}
        if not isinstance(image, str | Path | Nifti1Image):
            shape = np.shape(image)
            return Inpainting(result_XYZ.reshape(shape), None if std_XYZ is None else std_XYZ.reshape(shape), timings)
        std = None if std_XYZ is None else volume.image_like(loaded, std_XYZ)
        return Inpainting(volume.image_like(loaded, result_XYZ), std, timings)

    @property
    def windowing(self) -> Windowing:
        """How windows are placed for this network."""
        unet, whole = self.weights.network.config, self.sampling.replace == "slices"
        return Windowing.of(unet, self.weights.diffusion, most=self.most_voxels, whole=whole)

    def stack(self, scan: Scan, *, keep: bool = False) -> Stack:
        """Return the work that a scan needs; with ``keep`` it keeps every single sample."""
        found = windows.around(scan.mask_SHW, self.windowing)
        if any(window.blends for window in found):
            log.warning("%s: a region is too large for the memory, and is filled in overlapping parts", scan.id)
        return Stack(scan, found, self.sampling.samples, keep)

    def fill(self, stacks: Iterable[Stack], *, seed: int = 0, on_pass: OnPass | None = None) -> Iterator[Stack]:
        """Sample every window of every scan, in batches across scans, and yield each scan when it is complete.

        Scans with an empty mask need no work and are not yielded. ``on_pass(n)`` is called before each network pass
        with the number of windows that take it; from other threads, but one at a time.
        """
        tasks = (task for stack in stacks for task in stack.tasks())
        batches = windows.batches(tasks, lambda: self.batch_size)
        for batch, samples_N1V, seconds in self._sampled(batches, seed, on_pass or (lambda _: None)):
            log.debug("%d windows of %s in %.2f s", len(batch), nifti.times(samples_N1V.shape[2:]), seconds)
            for task, sample_1V in zip(batch, samples_N1V, strict=True):
                task.stack.add(task, sample_1V[0])
                task.stack.seconds += seconds / len(batch)
                if not task.stack.missing:
                    yield task.stack

    def finish(self, stack: Stack) -> tuple[np.ndarray, np.ndarray | None]:
        """Stack, smooth and undo (paper §3.3): the filled volume and the spread, X × Y × Z in own intensities.

        Raises:
            CaseError: when the network returned NaN, or the paper's rescaling finds no range of intensities.
        """
        if not np.isfinite(stack.mean_SHW).all():
            raise CaseError(
                f"{stack.scan.id}: the network returned NaN or infinity\n  Use other weights, or another device."
            )
        std_SHW = stack.std_SHW
        return self._volume(stack.scan, stack.mean_SHW), None if std_SHW is None else stack.scan.spread(std_SHW)

    def single_samples(self, stack: Stack) -> Iterator[np.ndarray]:
        """Yield what ``finish`` would have returned for each of the samples alone, if the stack kept them."""
        return (self._volume(stack.scan, stack.sample_SHW(number)) for number in range(stack.samples))

    def _volume(self, scan: Scan, stacked_SHW: np.ndarray) -> np.ndarray:
        """Smooth stacked slices and put them into the scan."""
        if not scan.mask_SHW.any():
            return scan.voided_XYZ
        if self.sampling.replace == "slices":
            return scan.everywhere(volume.smooth(stacked_SHW, self.sampling.smoothing))
        inside_SHW = np.where(scan.mask_SHW, stacked_SHW, scan.image_SHW)
        return scan.inside(volume.smooth(inside_SHW, self.sampling.smoothing))

    def _sampled(
        self, batches: Iterable[list[Task]], seed: int, on_pass: OnPass
    ) -> Iterator[tuple[list[Task], np.ndarray, float]]:
        """Sample batches side by side, and yield them in their order with the seconds that each was waited for."""
        telling, stopped = threading.Lock(), threading.Event()

        def told(count: int) -> None:
            if stopped.is_set():
                raise CancelledError
            with telling:
                on_pass(count)

        def sample(batch: list[Task]) -> tuple[list[Task], np.ndarray]:
            return batch, self._sample(batch, seed, told)

        def start() -> None:
            torch.get_num_threads()  # takes everybody's number now, not later
            torch.set_num_threads(share)

        threads = torch.get_num_threads()
        share = _share(threads)
        at_a_time = min(self.side_by_side, threads // share)
        calls = (
            (partial(sample, batch) for batch in batches)
            if at_a_time == 1
            else (future.result for future in ahead(sample, batches, at_a_time, start=start, stop=stopped.set))
        )
        try:
            with closing(calls):
                for call in calls:
                    started = time.perf_counter()
                    yield *call(), time.perf_counter() - started
        finally:
            torch.set_num_threads(threads)  # in threads to come; in this one it never changed

    @torch.inference_mode()
    def _sample(self, batch: list[Task], seed: int, on_pass: OnPass) -> np.ndarray:
        """Sample the windows of a batch, N × 1 × V in [0, 1]; with half as many at a time if memory runs out."""
        size = self.batch_size
        try:
            parts = [batch[start : start + size] for start in range(0, len(batch), size)]
            return np.concatenate([self._sample_at_once(part, size, seed, on_pass) for part in parts])
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            if size == 1:
                raise InpaintingError(
                    f"not enough memory on {self.device} for a single window\n  Use --device cpu, or smaller weights."
                ) from error
        self.batch_size = min(self.batch_size, size // 2)
        log.warning("memory ran out with %d windows at a time; going on with %d", size, self.batch_size)
        return self._sample(batch, seed, on_pass)

    def _sample_at_once(self, batch: list[Task], size: int, seed: int, on_pass: OnPass) -> np.ndarray:
        """Sample up to ``size`` windows, padded to exactly so many: the shape of the work never varies."""
        low, high = self.weights.diffusion.image_range
        unet = self.weights.network.config
        if unet.dims == 3 and self.device.type == "cpu" and memory.short(unet, prod(batch[0].window.shape)):
            return_memory()
        scaled_NCV = _padded([torch.from_numpy(task.condition_CV(position=unet.position)) for task in batch], size)
        condition_NCV = torch.cat([low + (high - low) * scaled_NCV[:, :1], scaled_NCV[:, 1:]], dim=1)

        def draw(step: int) -> Tensor:
            return self._on_device(_padded([self._draw(task, seed, step) for task in batch], size))

        denoise = Denoiser(
            self.network_pass,
            self._on_device(condition_NCV.contiguous(memory_format=MEMORY_FORMAT[unet.dims])),
            self._schedule,
            self.weights.diffusion,
        )

        def watched(x_N1V: Tensor, t: int) -> Prediction:
            on_pass(len(batch))
            return denoise(x_N1V, t)

        x0_N1V = samplers.SAMPLERS[self.sampling.sampler](
            watched,
            draw(0),
            self._schedule.timesteps(self.sampling.steps, spacing=self.sampling.timesteps),
            self._schedule,
            noise=lambda k: draw(k + 1),
        )
        return ((x0_N1V[: len(batch)] - low) / (high - low)).float().cpu().numpy()

    def network_pass(self, x_NCV: Tensor, t_1: Tensor) -> Tensor:
        """Pass a batch through the network at one timestep; a window's bits do not depend on its place in the batch.

        Where a CPU's threads would share windows out in parts, which sums in other orders, one window goes at a time.
        """
        alone = self.device.type == "cpu" and len(x_NCV) % torch.get_num_threads() > 0
        with autocast(self.device.type, self.precision):
            return torch.cat([self.weights.network(x, t_1) for x in x_NCV.split(1 if alone else len(x_NCV))])

    def _on_device(self, tensor: Tensor) -> Tensor:
        """Send a tensor where the network is; an NVIDIA GPU fetches it from pinned memory when it gets there."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _draw(self, task: Task, seed: int, step: int) -> Tensor:
        """Draw the noise of every slice's whole frame, and cut its window: 1 × V."""
        z, rows, columns = task.window.place

        def draw(z: int) -> Tensor:
            frame_HW = noise.draw(
                task.stack.scan.frame.size,
                seed=seed,
                z=z,
                sample=task.sample,
                step=step,
                mode=self.sampling.noise,
            )
            return frame_HW[rows, columns]

        if isinstance(z, int):
            return draw(z)[None]
        return torch.stack([draw(index) for index in range(z.start, z.stop)], dim=-1)[None]


def usual(device: torch.device, unet: UNetConfig) -> tuple[int, Precision]:
    """Return how many windows a network takes at a time, and in which precision, if nothing is said of it."""
    precision, most = best_precision(device), BATCH[unet.dims][device.type]
    if precision == "bf16" and unet.dims == 2 and unet.width <= NARROW:  # measured with small-2 (docs/benchmarks.md)
        return 2 * most, "fp32"
    return most, precision


def _share(threads: int) -> int:
    """Return how many threads each of the batches side by side has; it decides the last bits, so memory must not."""
    return -(-threads // MOST_SIDE_BY_SIDE)


def _padded(rows: list[Tensor], size: int) -> Tensor:
    """Stack rows, and add zeros up to ``size`` of them."""
    empty = torch.zeros_like(rows[0])
    return torch.stack([*rows, *[empty] * (size - len(rows))])


def _as_image(given: Any) -> Nifti1Image:
    """Read paths, take images as they are, and arrays as LPS volumes of 1 mm."""
    if isinstance(given, str | Path):
        return nifti.read(Path(given))
    if isinstance(given, SpatialImage):
        return given
    values = np.asarray(given)
    if values.dtype.kind not in "biuf":
        raise CaseError(f"image or mask: {type(given).__name__}, neither numbers nor an image\n  Read it with nibabel.")
    return Nifti1Image(values.astype(np.float32), LPS)
