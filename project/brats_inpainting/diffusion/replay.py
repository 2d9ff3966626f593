"""CUDA graphs: the operations of a pass are recorded once and replayed without launching each from Python.

Shapes: N windows, C channels, V the axes of a window.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from brats_inpainting.diffusion.process import Network

log = logging.getLogger(__name__)

EAGER = 2  # passes of one shape before it is recorded: kernels are compiled and chosen in them


@dataclass(frozen=True)
class Recording:
    """A recorded pass with the memory of its inputs and output; it holds the addresses of the network's weights."""

    graph: torch.cuda.CUDAGraph
    x_NCV: Tensor
    t_1: Tensor
    out_NCV: Tensor

    def __call__(self, x_NCV: Tensor, t_1: Tensor) -> Tensor:
        """Return the output for other features and another timestep."""
        self.x_NCV.copy_(x_NCV)
        self.t_1.copy_(t_1)
        self.graph.replay()
        return self.out_NCV.clone()


class Replay:
    """A network that replays its pass as a CUDA graph, from the third pass of a shape on.

    Results are those of the network. A pass of another shape begins again, and frees the memory of the last graph. If
    a pass cannot be recorded, a warning is logged and the shape's passes run as they are. The network must not be
    moved to another device afterwards; its weights may change in place.
    """

    def __init__(self, network: Network) -> None:
        """Wrap a network on a GPU."""
        self.network, self.shape, self.passes = network, torch.Size(), 0
        self.recording: Recording | None = None
        self.lock = threading.Lock()

    def __call__(self, x_NCV: Tensor, t_1: Tensor) -> Tensor:
        """Return the network's output for N × C × V features and a timestep."""
        with self.lock, torch.cuda.device_of(x_NCV):
            if x_NCV.shape != self.shape:
                self.shape, self.passes, self.recording = x_NCV.shape, 0, None
            self.passes += 1
            if self.passes == EAGER + 1:
                self.recording = self._record(x_NCV, t_1)
            return (self.recording or self.network)(x_NCV, t_1)

    def _record(self, x_NCV: Tensor, t_1: Tensor) -> Recording | None:
        try:
            x_NCV, t_1, graph = x_NCV.clone(), t_1.clone(), torch.cuda.CUDAGraph()
            here = torch.cuda.stream(torch.cuda.current_stream())  # restored if recording fails
            side = torch.cuda.Stream(x_NCV.device)
            with here, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                out_NCV = self.network(x_NCV, t_1)
        except RuntimeError as error:
            log.warning("passes are not replayed as a CUDA graph: %s", str(error).splitlines()[0])
            return None
        return Recording(graph, x_NCV, t_1, out_NCV)
