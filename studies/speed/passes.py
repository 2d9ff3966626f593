"""One denoising step, from x_t and its condition to x̂_0: time, rate, memory, and its operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from brats_inpainting.device import autocast
from brats_inpainting.diffusion.process import Denoiser, Schedule
from studies.speed import ceilings
from studies.speed.subject import TIMESTEP, Subject, median, peak_bytes

SHARE = 0.05  # operators with a smaller share of the time are not listed


@dataclass(frozen=True)
class Pass:
    """A denoising step of a whole batch.

    ``ceiling`` is the sum of the best times of its convolutions run alone, in seconds; ``operators`` are shares of the
    time; ``peak`` is in bytes.
    """

    subject: Subject
    seconds: float
    flops: int
    ceiling: float
    operators: dict[str, float]
    peak: int
    convolutions: list[ceilings.Convolution]


def measure(subject: Subject) -> Pass:
    """Measure in this process, which must be new for its peak memory to be the network's."""
    network, x_NCV = subject.network(), subject.input_NCV()

    def forward(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with autocast(subject.device, subject.precision):
            return network(x, t)

    condition_NCV, x_N1V = torch.cat([x_NCV[:, :2], x_NCV[:, 3:]], dim=1), x_NCV[:, 2:3]
    denoise = Denoiser(forward, condition_NCV, Schedule.of(subject.diffusion), subject.diffusion)
    with torch.inference_mode():
        taken = median(lambda: denoise(x_N1V, TIMESTEP), subject.device)
        peak = peak_bytes(subject.device)
        with profile(activities=[ProfilerActivity.CUDA if subject.device == "cuda" else ProfilerActivity.CPU]) as seen:
            denoise(x_N1V, TIMESTEP)
    flops, alone = ceilings.convolutions(network, subject)
    ceiling = sum(found.times * found.seconds for found in alone)
    return Pass(subject, taken, flops, ceiling, _shares(seen, subject.device), peak, alone)


def _shares(seen: profile, device: str) -> dict[str, float]:
    """Return the shares of operators above ``SHARE``, the largest first."""
    name = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    taken = {event.key: getattr(event, name) for event in seen.key_averages()}
    total = sum(taken.values())
    shares = {key.removeprefix("aten::"): value / total for key, value in taken.items()}
    return dict(sorted(((k, v) for k, v in shares.items() if v > SHARE), key=lambda item: -item[1]))
