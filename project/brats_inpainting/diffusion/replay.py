"""CUDA graphs: the operations of a pass are recorded once and replayed without launching each from Python.

Shapes: N windows, C channels, V the axes of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brats_inpainting.diffusion.process import Network

EAGER = 2  # passes of one shape before it is recorded: kernels are compiled and chosen in them


class Replay:
    """A network that replays its pass as a CUDA graph, from the third pass of a shape on.

    Results are those of the network. A pass of another shape begins again, and frees the memory of the last graph.
    """

    def __init__(self, network: Network) -> None:
        """Wrap a network on a GPU."""
        self.network, self.shape, self.passes = network, torch.Size(), 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x_NCV: Tensor, t_1: Tensor) -> Tensor:
        """Return the network's output for N × C × V features and a timestep."""
        if x_NCV.shape != self.shape:
            self.shape, self.passes, self.graph = x_NCV.shape, 0, None
        self.passes += 1
        if self.passes <= EAGER:
            return self.network(x_NCV, t_1)
        graph = self.graph = self.graph or self._record(x_NCV, t_1)
        self.x_NCV.copy_(x_NCV)
        self.t_1.copy_(t_1)
        graph.replay()
        return self.out_NCV.clone()

    def _record(self, x_NCV: Tensor, t_1: Tensor) -> torch.cuda.CUDAGraph:
        torch.cuda.empty_cache()  # recording needs memory of its own
        self.x_NCV, self.t_1 = x_NCV.clone(), t_1.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.out_NCV = self.network(self.x_NCV, self.t_1)
        return graph
