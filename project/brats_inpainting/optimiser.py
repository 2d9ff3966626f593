"""The optimisers: AdamW as in the paper, or Muon (docs/training.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from brats_inpainting.config import TrainConfig
from brats_inpainting.errors import ConfigError

NARROW = 16  # a matrix with fewer rows or columns has little to orthogonalise


def choose(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimiser for a network, without weight decay (§3.2 names none).

    Raises:
        ConfigError: when torch is too old for it.
    """
    if config.optimiser == "muon":
        return MuonOfFilters(network.parameters(), config.lr)
    return torch.optim.AdamW(network.parameters(), config.lr, weight_decay=0)


class MuonOfFilters(torch.optim.Optimizer):
    """Muon for the hidden layers, flattened to one row per filter; AdamW at a third of the rate for the rest.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; updates are scaled to the size of
    AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", equation 4).
    """

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        """Assign each parameter to Muon or AdamW.

        Raises:
            ConfigError: when torch is older than 2.9.
        """
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError("optimiser muon needs torch 2.9 or later\n  Update torch, or set optimiser: adamw.")
        super().__init__(parameters, {"lr": lr})
        given = self.param_groups[0]["params"]
        self.filters = [p for p in given if p.ndim > 1 and min(p.shape[:2]) >= NARROW]
        hidden = {id(p) for p in self.filters}
        self.rows = [Parameter(p.detach().flatten(1).clone()) for p in self.filters]
        self.parts = {
            "muon": torch.optim.Muon(self.rows, lr, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW([p for p in given if id(p) not in hidden], lr / 3, weight_decay=0),
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        rate = self.param_groups[0]["lr"]
        self.parts["muon"].param_groups[0]["lr"], self.parts["adamw"].param_groups[0]["lr"] = rate, rate / 3
        self._copy_filters()
        for matrix, p in zip(self.rows, self.filters, strict=True):
            matrix.grad = None if p.grad is None else p.grad.flatten(1)
        for part in self.parts.values():
            part.step(closure)
        for matrix, p in zip(self.rows, self.filters, strict=True):
            p.copy_(matrix.view(p.shape))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimisers."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of both optimisers."""
        self._copy_filters()
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])

    def _copy_filters(self) -> None:
        """Copy the network's current filters into the matrices."""
        for matrix, p in zip(self.rows, self.filters, strict=True):
            matrix.data = p.detach().flatten(1).clone()
