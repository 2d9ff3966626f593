"""The machine's limits: speed of matrix products, copies, and a network's convolutions, each run separately."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brats_inpainting.config import PRECISIONS, Precision
from brats_inpainting.device import autocast
from brats_inpainting.diffusion import fused
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from studies.speed.subject import TIMESTEP, Subject, best

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Use PyTorch's operations on a GPU, too."""
    with patch.object(fused, "_kernels", lambda _: None):
        yield


@dataclass(frozen=True)
class Shape:
    """Shapes of a convolution's input and weights, and its stride."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int


@dataclass(frozen=True)
class Convolution:
    """Cost of one convolution run separately, and the number of times a pass runs it."""

    shape: Shape
    times: int
    flops: int
    bytes: int
    seconds: float


def matrix_product(precision: Precision, device: str) -> float:
    """Return the FLOP/s of a large square matrix product."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(getattr(torch, PRECISIONS[precision])) for _ in range(2))
    return 2 * n**3 / best(lambda: a @ b, device)


def copy(device: str) -> float:
    """Return the bytes a second that a copy of 256 MB reads and writes."""
    a, b = (torch.zeros(2**26, device=device) for _ in range(2))
    return 2 * a.nbytes / best(lambda: b.copy_(a), device)


def convolutions(network: nn.Module, subject: Subject) -> tuple[int, list[Convolution]]:
    """Time every convolution of one pass separately, in the network's layout and precision; the best of each.

    Returns:
        The FLOPs of a whole pass, and its convolutions.
    """
    found: Counter[Shape] = Counter()

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, CONVOLUTIONS)
        shape = (subject.batch, *given[0].shape[1:])
        found[Shape(shape, tuple(layer.weight.shape), layer.stride[0])] += 1

    layers = [layer for layer in network.modules() if isinstance(layer, CONVOLUTIONS)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    running = autocast(subject.device, subject.precision)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, running, without_kernels():
        network(subject.input_NCV()[:1], torch.tensor([TIMESTEP], device=subject.device))
    for hook in hooks:
        hook.remove()
    flops = counter.get_total_flops() * subject.batch
    return flops, [_alone(shape, times, subject) for shape, times in found.items()]


def _alone(shape: Shape, times: int, subject: Subject) -> Convolution:
    c_out, c_in, *kernel = shape.weight
    dims = len(kernel)
    layer = CONVOLUTIONS[dims - 1](c_in, c_out, kernel[0], stride=shape.stride, padding=kernel[0] // 2)
    dtype = getattr(torch, PRECISIONS[subject.precision])
    x = torch.randn(shape.x, dtype=dtype, device=subject.device)
    layer.to(subject.device, dtype)
    if dims in MEMORY_FORMAT:
        x = x.contiguous(memory_format=MEMORY_FORMAT[dims])
        layer.to(memory_format=MEMORY_FORMAT[dims])  # type: ignore[call-overload]
    with torch.inference_mode():
        y = layer(x)
        taken = best(lambda: layer(x), subject.device, at_most=2)
    flops = 2 * y.numel() * layer.weight[0].numel()
    return Convolution(shape, times, flops, x.nbytes + y.nbytes + layer.weight.nbytes, taken)
