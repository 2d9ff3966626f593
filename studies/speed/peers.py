"""Our network compared with equivalent ones, alternately, each in a separate process with its default settings.

Only the spinning of idle threads is the same for all: ``GOMP_SPINCOUNT`` as in ``studies/__init__.py``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brats_inpainting import runtime
from brats_inpainting.config import Precision, UNetConfig
from brats_inpainting.device import autocast
from studies.speed import subject as subjects
from studies.speed.reference import Reference
from studies.speed.subject import TIMESTEP, Subject, peak_bytes


@dataclass(frozen=True)
class Peer:
    """Results of one network: seconds of every turn, FLOPs of a pass, peak memory in bytes.

    ``distance`` is ‖ours − theirs‖ / ‖ours‖, or ``None`` where the weights differ.
    """

    name: str
    seconds: list[float]
    flops: int
    peak: int
    distance: float | None

    def ratio(self, ours: Peer) -> float:
        """Return the time per FLOP relative to ours: the median over the turns."""
        pairs = zip(self.seconds, ours.seconds, strict=True)
        return statistics.median(theirs / own for theirs, own in pairs) * ours.flops / self.flops


def compare(subject: Subject, *, rounds: int = 5) -> list[Peer]:
    """Run one pass of every peer per round, after a warm-up pass each; ours is the first."""
    names = [name for name, kind in PEERS.items() if kind.makes_sense(subject.device)]
    with ExitStack() as stack:
        running = {name: stack.enter_context(subjects.process(_prepare, name, subject)) for name in names}
        outputs = {name: alone.submit(_output).result() for name, alone in running.items()}
        taken: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(rounds):
            for name, alone in running.items():
                taken[name].append(alone.submit(_turn).result())
        costs = {name: alone.submit(_cost).result() for name, alone in running.items()}
    distances = {name: _distance(outputs["ours"], outputs[name]) for name in names if PEERS[name].library == "torch"}
    return [Peer(name, taken[name], *costs[name], distances.get(name)) for name in names]


def _compiled(subject: Subject) -> nn.Module:
    return torch.compile(subject.network(), mode="reduce-overhead")  # type: ignore[return-value] # with CUDA graphs


def _reference(subject: Subject) -> nn.Module:
    return Reference(subject.network())


def _diffusers(subject: Subject) -> nn.Module:
    from diffusers import UNet2DModel

    config = subject.unet
    attends = [2**level in config.attention_at for level in range(len(config.multipliers))]
    model = UNet2DModel(
        sample_size=subject.side,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        layers_per_block=config.blocks,
        block_out_channels=_channels(config),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=max(_channels(config)) // config.heads,
    )
    return _Sample(model)


def _monai(subject: Subject) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    config = subject.unet
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        channels=_channels(config),
        num_res_blocks=config.blocks,
        attention_levels=[2**level in config.attention_at for level in range(len(config.multipliers))],
        num_head_channels=max(_channels(config)) // config.heads,
    )


class _Sample(nn.Module):
    """Returns the tensor in the output of a diffusers model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_NCV: Tensor, t_N: Tensor) -> Tensor:
        return self.model(x_NCV, t_N).sample


def _channels(config: UNetConfig) -> tuple[int, ...]:
    return tuple(config.width * multiplier for multiplier in config.multipliers)


@dataclass(frozen=True)
class Kind:
    """How a peer is built and run: its library, its only device if any, and whether to call ``runtime.settle``."""

    build: Callable[[Subject], nn.Module]
    library: str = "torch"
    only_on: str | None = None
    precision: Precision | None = None
    keeps_memory: bool = False

    def makes_sense(self, device: str) -> bool:
        """Return whether the library is installed and the comparison applies to this device."""
        return self.only_on in (None, device) and find_spec(self.library) is not None


PEERS = {
    "ours": Kind(Subject.network, keeps_memory=True),
    "ours, compiled": Kind(_compiled, only_on="cuda", keeps_memory=True),
    "eager reference": Kind(_reference),
    "eager reference, memory kept": Kind(_reference, only_on="cpu", keeps_memory=True),
    "eager reference, float32": Kind(_reference, only_on="cuda", precision="fp32"),
    "diffusers UNet2DModel": Kind(_diffusers, library="diffusers"),
    "MONAI DiffusionModelUNet": Kind(_monai, library="monai"),
}
_here: dict[str, Any] = {}  # network and inputs of this peer's process


def _prepare(name: str, subject: Subject) -> None:
    """Build a peer and its inputs, in its preferred memory layout, in this process."""
    kind, ours = PEERS[name], name.startswith("ours")
    if kind.keeps_memory:
        runtime.settle()
    subject = replace(subject, precision=kind.precision or subject.precision)
    network = kind.build(subject).eval().requires_grad_(requires_grad=False).to(subject.device)
    x_NCV = subject.input_NCV() if ours else subject.input_NCV().contiguous()
    t = torch.full((1 if ours else subject.batch,), TIMESTEP, device=subject.device)
    _here.update(network=network, x=x_NCV, t=t, subject=subject)


def _pass() -> Tensor:
    subject = _here["subject"]
    with torch.inference_mode(), autocast(subject.device, subject.precision):
        return _here["network"](_here["x"], _here["t"])


def _output() -> np.ndarray:
    return _pass().float().cpu().numpy()


def _turn() -> float:
    return subjects.seconds(_pass, _here["subject"].device)


def _cost() -> tuple[int, int]:
    """Return the FLOPs of a pass, counted on a single slice, and this process's peak memory."""
    peak = peak_bytes(_here["subject"].device)
    _here.update(x=_here["x"][:1], t=_here["t"][:1])
    with FlopCounterMode(display=False) as counter:
        _pass()
    return counter.get_total_flops() * _here["subject"].batch, peak


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
