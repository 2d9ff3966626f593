"""The straight line: a masked scan walks in, a filled one walks out.

Shapes: S slices of a batch, C channels, H W a window; X Y Z a volume.
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
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from brats_inpainting import config, memory
from brats_inpainting.config import (
    BUNDLED_WEIGHTS,
    DEFAULT_PRESET,
    FRAME_MULTIPLE,
    DiffusionConfig,
    SamplingConfig,
    UNetConfig,
)
from brats_inpainting.data import cases, nifti, volume, windows
from brats_inpainting.data.volume import Scan
from brats_inpainting.data.windows import Stack, Window
from brats_inpainting.device import Precision, autocast, best_precision, choose_device
from brats_inpainting.diffusion import checkpoint, noise, samplers
from brats_inpainting.diffusion.checkpoint import Weights
from brats_inpainting.diffusion.process import Denoiser, Prediction, Schedule
from brats_inpainting.errors import CaseError, CheckpointError, ConfigError, InpaintingError
from brats_inpainting.host import ahead

log = logging.getLogger(__name__)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the affine that a bare array is given: BraTS order, 1 mm
OnPass = Callable[[int], None]
ENOUGH_STEPS = 10  # for a network that predicts noise: early on x̂_0 is its small error, much amplified
NARROW = 64  # feature maps
MOST_SIDE_BY_SIDE = 16  # batches: what is ready for them takes memory too
BATCH = {"cuda": 32, "mps": 8, "cpu": 4}  # the paper's on a GPU; more gains nothing on a CPU


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
    threads: a narrow network does not keep several threads busy with one (docs/benchmarks.md).
    """

    weights: Weights = field(repr=False)
    sampling: SamplingConfig
    device: torch.device
    batch_size: int
    precision: Precision = "fp32"
    side_by_side: int = 1

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
            weights: a ``.safetensors`` or ``.pt`` file; the bundled weights if not given.
            preset: a name in ``config.PRESETS``.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps``.
            batch_size: slices per network pass; chosen by the device if not given.
            at_most: the most that may be chosen.
            precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: fp32 on a CPU, on a GPU by network and GPU.
            unet: the architecture of a weights file that stores none, if the shapes in it do not tell enough.
            diffusion: what the numbers of such a file mean, if not what the paper's do.
            overrides: fields of ``SamplingConfig`` that replace the preset's.

        Raises:
            CheckpointError: when the weights cannot be used.
            ConfigError: when there is no such preset or device, or an override is out of range.
        """
        where, how = choose_device(device), config.sampling(preset, **overrides)
        loaded = checkpoint.load(weights or BUNDLED_WEIGHTS, unet=unet, diffusion=diffusion)
        unet, window = loaded.network.config, loaded.diffusion.window
        if unet.in_channels != 3 or FRAME_MULTIPLE % unet.stride or window % unet.stride:
            raise CheckpointError(
                f"{loaded.path}: {unet.in_channels} channels, sides divisible by {unet.stride}, window {window}\n"
                f"  Give one of 3 channels (b, m, x_t) whose factor divides {FRAME_MULTIPLE} and its window."
            )
        if loaded.diffusion.prediction == "eps" and how.steps < ENOUGH_STEPS:
            few = "%s predicts noise, for which %d steps are few: ask for %d or more"
            log.warning(few, loaded.path.name, how.steps, ENOUGH_STEPS)
        most, exact = usual(where, unet)
        most = min(most, at_most or most)
        size = batch_size or (memory.plan(unet, most) if where.type == "cpu" else most)
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
        self.weights.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._schedule = Schedule.of(self.weights.diffusion)

    def spread(self, threads: int, limit: int | None = None) -> None:
        """Sample as many batches side by side as a narrow network on a CPU has threads for, and memory, in bytes."""
        unet = self.weights.network.config
        if self.device.type == "cpu" and unet.width <= NARROW:
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
        stack = next(self.fill([scan], seed=seed), Stack(scan, self.sampling.samples))
        filled = time.perf_counter()
        result_XYZ, std_XYZ = self.finish(stack)
        timings = {"prepare": prepared - started, "fill": filled - prepared, "finish": time.perf_counter() - filled}
        if not isinstance(image, str | Path | Nifti1Image):
            shape = np.shape(image)
            return Inpainting(result_XYZ.reshape(shape), None if std_XYZ is None else std_XYZ.reshape(shape), timings)
        std = None if std_XYZ is None else volume.image_like(loaded, std_XYZ)
        return Inpainting(volume.image_like(loaded, result_XYZ), std, timings)

    def fill(
        self, scans: Iterable[Scan], *, seed: int = 0, keep: bool = False, on_pass: OnPass | None = None
    ) -> Iterator[Stack]:
        """Sample every masked slice of every scan, in batches across scans, and yield each scan when it is complete.

        Scans with an empty mask need no work and are not yielded. With ``keep`` the stacks keep every single sample.
        ``on_pass(n)`` is told before each network pass how many slices take it; from other threads, but one at a time.
        """
        window, samples = self.weights.diffusion.window, self.sampling.samples
        todo = (one for scan in scans for one in windows.todo(Stack(scan, samples, keep), window=window))
        batches = windows.batches(todo, lambda: self.batch_size)
        for batch, samples_N1V, seconds in self._sampled(batches, seed, on_pass or (lambda _: None)):
            log.debug("%d slices of %d × %d in %.2f s", len(batch), *samples_N1V.shape[2:], seconds)
            for one, sample_1HW in zip(batch, samples_N1V, strict=True):
                one.stack.add(one, sample_1HW[0])
                one.stack.seconds += seconds / len(batch)
                if not one.stack.missing:
                    yield one.stack

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
        self, batches: Iterable[list[Window]], seed: int, on_pass: OnPass
    ) -> Iterator[tuple[list[Window], np.ndarray, float]]:
        """Sample batches side by side, and yield them in their order with the seconds that each was waited for."""
        telling, stopped = threading.Lock(), threading.Event()

        def told(count: int) -> None:
            if stopped.is_set():
                raise CancelledError
            with telling:
                on_pass(count)

        def sample(batch: list[Window]) -> tuple[list[Window], np.ndarray]:
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
    def _sample(self, batch: list[Window], seed: int, on_pass: OnPass) -> np.ndarray:
        """Sample the slices of a batch, S × 1 × H × W in [0, 1]; with half as many at a time if memory runs out."""
        size = self.batch_size
        try:
            parts = [batch[start : start + size] for start in range(0, len(batch), size)]
            return np.concatenate([self._sample_at_once(part, size, seed, on_pass) for part in parts])
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            if size == 1:
                raise InpaintingError(
                    f"not enough memory on {self.device} for a single slice\n  Use --device cpu, or smaller weights."
                ) from error
        self.batch_size = min(self.batch_size, size // 2)
        log.warning("memory ran out with %d slices at a time; going on with %d", size, self.batch_size)
        return self._sample(batch, seed, on_pass)

    def _sample_at_once(self, batch: list[Window], size: int, seed: int, on_pass: OnPass) -> np.ndarray:
        """Sample up to ``size`` slices, padded to exactly so many: the shape of the work never varies."""
        low, high = self.weights.diffusion.image_range
        scaled_NCV = _padded([torch.from_numpy(one.condition_Chw) for one in batch], size)
        condition_NCV = torch.cat([low + (high - low) * scaled_NCV[:, :1], scaled_NCV[:, 1:]], dim=1)

        def draw(step: int) -> Tensor:
            return self._on_device(_padded([self._draw(one, seed, step) for one in batch], size))

        denoise = Denoiser(
            self._network,
            self._on_device(condition_NCV.contiguous(memory_format=torch.channels_last)),
            self._schedule,
            self.weights.diffusion,
        )

        def watched(x_N1V: Tensor, t: int) -> Prediction:
            on_pass(len(batch))
            return denoise(x_N1V, t)

        x0_N1V = samplers.SAMPLERS[self.sampling.sampler](
            watched,
            draw(0),
            self._schedule.timesteps(self.sampling.steps, spacing=self.sampling.spacing),
            self._schedule,
            noise=lambda k: draw(k + 1),
        )
        return ((x0_N1V[: len(batch)] - low) / (high - low)).float().cpu().numpy()

    def _network(self, x_NCV: Tensor, t_N: Tensor) -> Tensor:
        with autocast(self.device.type, self.precision):
            return self.weights.network(x_NCV, t_N)

    def _on_device(self, tensor: Tensor) -> Tensor:
        """Send a tensor where the network is; an NVIDIA GPU fetches it from pinned memory when it gets there."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _draw(self, one: Window, seed: int, step: int) -> Tensor:
        """Draw the noise of a slice's whole frame, and cut its window: 1 × H × W."""
        z, rows, columns = one.place
        frame_HW = noise.draw(
            one.stack.scan.frame.size,
            seed=seed,
            z=z,
            sample=one.sample,
            step=step,
            mode=self.sampling.noise,
        )
        return frame_HW[None, rows, columns]


def usual(device: torch.device, unet: UNetConfig) -> tuple[int, Precision]:
    """Return how many slices a network takes at a time, and in which precision, if nothing is said of it."""
    precision = best_precision(device)
    if precision == "bf16" and unet.width <= NARROW:  # measured with the bundled one (docs/benchmarks.md)
        return 2 * BATCH["cuda"], "fp32"
    return BATCH[device.type], precision


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
