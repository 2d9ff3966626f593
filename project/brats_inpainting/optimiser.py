"""The optimisers: AdamW as in the paper, or Muon (docs/training.md).

Shapes: K layers of one shape, O filters, V the axes of a filter, M rows and J columns of a matrix.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from brats_inpainting.config import TrainConfig

NARROW = 16  # a matrix with fewer rows or columns has little to orthogonalise
MOMENTUM = 0.95
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # of the Newton-Schulz iteration (Jordan et al. 2024)


def choose(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimiser for a network, without weight decay (§3.2 names none)."""
    if config.optimiser == "muon":
        return Muon(network.parameters(), config.lr)
    return torch.optim.AdamW(network.parameters(), config.lr, weight_decay=0)


class Muon(torch.optim.Optimizer):
    """Muon for the hidden layers, flattened to one row per filter; AdamW at a third of the rate for the rest.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", as ``torch.optim.Muon`` computes it;
    updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", equation 4). Layers
    of one shape are updated by batched products: a network has few shapes.
    """

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        """Assign each parameter to Muon or AdamW."""
        super().__init__(parameters, {"lr": lr})
        given = self.param_groups[0]["params"]
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in given:
            if p.ndim > 1 and min(p.shape[:2]) >= NARROW:
                by_shape[p.shape].append(p)
        self.alike = list(by_shape.values())
        self.momenta_KOV: list[Tensor] = []
        hidden = {id(p) for same in self.alike for p in same}
        self.adamw = torch.optim.AdamW([p for p in given if id(p) not in hidden], lr / 3, weight_decay=0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        rate = self.param_groups[0]["lr"]
        self.adamw.param_groups[0]["lr"] = rate / 3
        self.adamw.step(closure)
        grads = [torch.stack([p.grad for p in same]) for same in self.alike]  # type: ignore[misc]
        self.momenta_KOV = self.momenta_KOV or [torch.zeros_like(grad_KOV) for grad_KOV in grads]
        for same, grad_KOV, momentum_KOV in zip(self.alike, grads, self.momenta_KOV, strict=True):
            momentum_KOV.lerp_(grad_KOV, 1 - MOMENTUM)
            update_KMJ = orthogonal(grad_KOV.lerp(momentum_KOV, MOMENTUM).flatten(2))
            scale = 0.2 * math.sqrt(max(update_KMJ.shape[1:]))
            updates = update_KMJ.to(grad_KOV.dtype).reshape(grad_KOV.shape).unbind()
            torch._foreach_add_(same, updates, alpha=-rate * scale)

    def state_dict(self) -> dict[str, Any]:
        """Return the momenta and the state of AdamW."""
        return {"momenta": self.momenta_KOV, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the momenta and the state of AdamW."""
        firsts = [same[0] for same in self.alike]
        stored = state_dict["momenta"]  # none before the first step
        self.momenta_KOV = [kept.to(p) for kept, p in zip(stored, firsts, strict=bool(stored))]
        self.adamw.load_state_dict(state_dict["adamw"])


def orthogonal(matrices_KMJ: Tensor) -> Tensor:
    """Replace the singular values of each matrix by values of about 1, in bfloat16 (Jordan et al. 2024)."""
    a, b, c = COEFFICIENTS
    x, tall = matrices_KMJ.bfloat16(), matrices_KMJ.shape[1] > matrices_KMJ.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
