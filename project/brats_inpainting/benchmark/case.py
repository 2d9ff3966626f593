"""A whole case, from the files to the file, phase by phase."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from brats_inpainting import memory
from brats_inpainting.benchmark import subject
from brats_inpainting.config import BUNDLED_WEIGHTS, DEFAULT_PRESET
from brats_inpainting.data import cases, volume
from brats_inpainting.device import Precision
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.folder import Run
from brats_inpainting.infer import Inpainter

NETWORK, SAMPLER = "network", "sampler arithmetic"
ALL = 10**6  # windows


@dataclass(frozen=True)
class Phases:
    """Seconds of a case by phase, after one case to warm up; the most memory, in bytes, that the process took.

    Network and sampler were timed on ``measured`` of the ``passes`` (windows × steps) that the case needs, and scaled.
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
        """The share of everything that is not the network."""
        return 1 - self.seconds[NETWORK] / sum(self.seconds.values())


@dataclass(frozen=True)
class Row:
    """Seconds of several cases: in a row, with batches side by side, as ``infer`` has them, or in turn; one by one.

    ``network`` is the network's alone, in the cases one by one.
    """

    cases: int
    side_by_side: float
    in_turn: float
    one_by_one: float
    network: float


class Timed(nn.Module):
    """A network that counts the seconds it takes."""

    def __init__(self, network: UNet, device: str) -> None:
        """Wrap a network on a device."""
        super().__init__()
        self.network, self.config, self.device, self.seconds = network, network.config, device, 0.0

    def forward(self, x_NCV: Tensor, t_N: Tensor) -> Tensor:
        """Return what the network returns."""
        out: list[Tensor] = []
        self.seconds += subject.seconds(lambda: out.append(self.network(x_NCV, t_N)), self.device)
        return out[0]


def measure(
    network: str, preset: str, data_path: Path, device: str, precision: Precision, limits: tuple[int, int]
) -> Phases:
    """Fill the first case of a folder.

    Args:
        network: bundled weights by name, or ``paper`` with random ones, which cost the same as trained ones.
        preset: a name in ``config.PRESETS``.
        data_path: folder of cases.
        device: where the network runs.
        precision: its precision.
        limits: the most windows and the most steps that are really done; network and sampler are scaled from them.
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


def in_a_row(data_path: Path, device: str, precision: Precision) -> Row:
    """Fill all cases of a folder with the default network as ``infer`` does, and each on its own before."""
    inpainter, timed = _inpainter(BUNDLED_WEIGHTS.stem, DEFAULT_PRESET, device, precision)
    found = cases.find(data_path)
    _fill(inpainter, timed, found[0], ALL)
    alone = [_fill(inpainter, timed, case, ALL)[0] for case in found]
    several = Inpainter.load(device=device, precision=precision)
    side_by_side, in_turn = (_in_a_row(each, found) for each in (several, replace(several, side_by_side=1)))
    whole = sum(sum(each.values()) for each in alone)
    return Row(len(found), side_by_side, in_turn, whole, sum(each[NETWORK] for each in alone))


def _in_a_row(inpainter: Inpainter, found: list[cases.Case]) -> float:
    """Fill cases into a folder; return the seconds."""
    with tempfile.TemporaryDirectory() as output:
        run = Run(inpainter, {Path(output) / cases.output_name(case.id): case for case in found}, quiet=True)
        run.start("error")
        return subject.seconds(run.go, str(inpainter.device))


def _inpainter(network: str, preset: str, device: str, precision: Precision) -> tuple[Inpainter, Timed]:
    """Load bundled weights, or put the paper's network in the place of slice-wise ones; every pass is timed."""
    bundled = "small-2" if network == "paper" else network
    inpainter = Inpainter.load(bundled, preset=preset, device=device, precision=precision)
    weights, size = inpainter.weights, inpainter.batch_size
    if network == "paper":
        papers = subject.Subject.of("paper", 1, device, precision)
        weights = replace(weights, network=papers.network(), diffusion=papers.diffusion)
        size = memory.plan(papers.unet, size) if device == "cpu" else size
    timed = Timed(weights.network, device)
    weights = replace(weights, network=cast("UNet", timed))
    return Inpainter(weights, inpainter.sampling, inpainter.device, size, precision), timed


def _fill(inpainter: Inpainter, timed: Timed, case: cases.Case, limit: int) -> tuple[dict[str, float], int, int]:
    """Fill a case, or its first windows; return the seconds by phase, the windows it has, and those that were done."""
    times = {"start": time.perf_counter()}

    def lap(name: str) -> None:
        times[name] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        loaded = cases.load(case)
        lap("load")
        scan = volume.prepare(loaded)
        lap("prepare")
        timed.seconds = 0.0
        stack = inpainter.stack(scan)
        todo = len(stack.windows)
        stack = replace(stack, windows=stack.windows[:limit])
        list(inpainter.fill([stack]))
        lap("fill")
        result_XYZ, _ = inpainter.finish(stack)
        lap("undo")
        volume.save(volume.image_like(loaded, result_XYZ), Path(folder) / "filled.nii.gz")
        lap("save")
    seconds = {name: times[name] - times[before] for before, name in pairwise(times)}
    seconds |= {NETWORK: timed.seconds, SAMPLER: seconds.pop("fill") - timed.seconds}
    return seconds, todo, len(stack.windows)
