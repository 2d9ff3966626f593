"""Time per phase of a whole case, from reading its files to writing the result."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from brats_inpainting import memory
from brats_inpainting.config import Precision
from brats_inpainting.data import cases, output, volume
from brats_inpainting.data.volume import Scan
from brats_inpainting.data.windows import Stack
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.inpainter import Inpainter
from studies.speed import subject

NETWORK, SAMPLER = "network", "sampler arithmetic"


@dataclass(frozen=True)
class Phases:
    """Seconds of a case by phase after one warm-up case, and the process's peak memory in bytes.

    Network and sampler are timed on ``measured`` of the case's ``passes`` (windows × steps), and scaled.
    """

    network: str
    preset: str
    windows: int
    passes: int
    measured: int
    seconds: dict[str, float]
    peak: int

    @property
    def other_share(self) -> float:
        """The share of the time that is spent outside the network."""
        return 1 - self.seconds[NETWORK] / sum(self.seconds.values())


class Timed(nn.Module):
    """A network that measures its own time in seconds."""

    def __init__(self, network: UNet, device: str) -> None:
        """Wrap a network on a device."""
        super().__init__()
        self.network, self.config, self.device, self.seconds = network, network.config, device, 0.0

    def forward(self, x_NCV: Tensor, t_N: Tensor) -> Tensor:
        """Return what the network returns."""
        out: list[Tensor] = []
        self.seconds += subject.seconds(lambda: out.append(self.network(x_NCV, t_N)), self.device)
        return out[0]


@dataclass
class First(Inpainter):
    """Fills only the first ``limit`` windows of a scan; ``todo`` is the number of all its windows."""

    limit: int = 0
    todo: int = 0

    def stack(self, scan: Scan, *, keep: bool = False) -> Stack:
        """Return the first windows."""
        stack = super().stack(scan, keep=keep)
        self.todo = len(stack.windows)
        return replace(stack, windows=stack.windows[: self.limit])


def measure(
    network: str, preset: str, data_path: Path, device: str, precision: Precision, limits: tuple[int, int]
) -> Phases:
    """Fill the first case of a folder, one batch after another.

    Args:
        network: bundled weights by name, or ``paper`` with random ones, which cost the same as trained ones.
        preset: a name in ``config.PRESETS``.
        data_path: folder of cases.
        device: where the network runs.
        precision: its precision.
        limits: the maximum numbers of windows and steps to run; network and sampler times are scaled from them.
    """
    inpainter, timed = _inpainter(network, preset, device, precision)
    whole = inpainter.sampling
    inpainter.sampling = whole.model_copy(update={"steps": min(limits[1], whole.steps)})
    case = cases.find(data_path)[0]
    _fill(inpainter, timed, case, limits[0])
    seconds, todo, done = _fill(inpainter, timed, case, limits[0])
    passes, measured = todo * whole.passes, done * inpainter.sampling.passes
    for name in (NETWORK, SAMPLER):
        seconds[name] *= passes / measured
    return Phases(network, preset, todo, passes, measured, seconds, subject.peak_bytes(device))


def _inpainter(network: str, preset: str, device: str, precision: Precision) -> tuple[First, Timed]:
    """Load bundled weights, or substitute the paper's network with random ones; time every pass."""
    bundled = "small-2" if network == "paper" else network
    inpainter = Inpainter.load(bundled, preset=preset, device=device, precision=precision)
    weights, plan = inpainter.weights, inpainter.plan
    if network == "paper":
        papers = subject.Subject.of("paper", 1, device, precision)
        weights = replace(weights, network=papers.network(), diffusion=papers.diffusion)
        plan = plan.at_most(memory.batch_size(papers.unet, plan.batch_size)) if device == "cpu" else plan
    timed = Timed(weights.network, device)
    weights = replace(weights, network=cast("UNet", timed))
    return First(weights, inpainter.sampling, replace(plan, concurrent=1, replay=False)), timed


def _fill(inpainter: First, timed: Timed, case: cases.Case, limit: int) -> tuple[dict[str, float], int, int]:
    """Fill the first windows of a case; return the seconds by phase, and the numbers of all and of filled windows."""
    times = {"start": time.perf_counter()}

    def lap(name: str) -> None:
        times[name] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        loaded = cases.load(case)
        lap("load")
        scan = volume.prepare(loaded)
        lap("prepare")
        timed.seconds = 0.0
        inpainter.limit = limit
        (stack,) = inpainter.fill([scan])
        lap("fill")
        filled = inpainter.finish(stack)
        lap("undo")
        output.save(output.image_like(loaded, filled.volume_XYZ), Path(folder) / "filled.nii.gz")
        lap("save")
    seconds = {name: times[name] - times[before] for before, name in pairwise(times)}
    seconds |= {NETWORK: timed.seconds, SAMPLER: seconds.pop("fill") - timed.seconds}
    return seconds, inpainter.todo, len(stack.windows)
