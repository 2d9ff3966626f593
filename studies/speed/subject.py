"""The network under test with its inputs, and functions that measure time and memory.

Shapes: N windows, C channels, V the axes of a window.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brats_inpainting import memory
from brats_inpainting.config import BUNDLED, FRAME, DiffusionConfig, Precision, UNetConfig
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from brats_inpainting.diffusion.unet import UNet

TIMESTEP = 500


@dataclass(frozen=True)
class Subject:
    """A network with random weights (as fast as trained ones), and ``batch`` windows of ``side`` voxels a side."""

    name: str
    unet: UNetConfig
    diffusion: DiffusionConfig
    side: int
    batch: int
    device: str
    precision: Precision

    @classmethod
    def of(cls, name: str, batch: int, device: str, precision: Precision) -> Subject:
        """Return the configuration of the ``paper``'s network or a bundled one, with its window size."""
        if name == "paper":
            return cls(name, UNetConfig(), DiffusionConfig(), FRAME, batch, device, precision)
        weights = checkpoint.load(BUNDLED[name])
        side = weights.diffusion.window
        return cls(name, weights.network.config, weights.diffusion, side, batch, device, precision)

    def network(self) -> UNet:
        """Build the network with reproducible random weights, none of them the zeros of a new network's last layers."""
        torch.manual_seed(0)
        network = UNet(self.unet).eval().requires_grad_(requires_grad=False)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        return network.to(self.device, memory_format=MEMORY_FORMAT[self.unet.dims])  # type: ignore[call-overload]

    def input_NCV(self) -> Tensor:
        """Return a reproducible random input."""
        sides = [self.side] * self.unet.dims
        x_NCV = torch.randn(self.batch, self.unet.in_channels, *sides, generator=torch.Generator().manual_seed(0))
        return x_NCV.to(self.device, memory_format=MEMORY_FORMAT[self.unet.dims])


def seconds(work: Callable[[], Any], device: str) -> float:
    """Return the seconds that ``work`` takes, synchronised on a GPU."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def best(work: Callable[[], Any], device: str, *, turns: int = 5, at_most: float = 10.0) -> float:
    """Return the minimum of up to ``turns`` times after a warm-up; stop after ``at_most`` seconds."""
    return min(_turns(work, device, turns, at_most))


def median(work: Callable[[], Any], device: str, *, turns: int = 5, at_most: float = 30.0) -> float:
    """Return the median of up to ``turns`` times after a warm-up; stop after ``at_most`` seconds."""
    return statistics.median(_turns(work, device, turns, at_most))


def _turns(work: Callable[[], Any], device: str, turns: int, at_most: float) -> list[float]:
    seconds(work, device)
    taken = [seconds(work, device)]
    while len(taken) < turns and sum(taken) < at_most:
        taken.append(seconds(work, device))
    return taken


def peak_bytes(device: str) -> int:
    """Return this process's peak memory: allocated on the GPU, or resident including PyTorch."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else memory.peak()


def process(prepare: Callable[..., None], *args: Any) -> ProcessPoolExecutor:
    """Start a process that runs one task at a time, with its own peak memory."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=prepare, initargs=args)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
