"""A small 3D network that learns to tell filled patches from real ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

CHANNELS = (16, 32, 64)
EPOCHS, BATCH, RATE, DECAY = 60, 16, 2e-3, 1e-3


def score(trained: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Train on patches, and return the probability that others are filled.

    Args:
        trained: M X Y Z, X from left to right, in units of white matter.
        labels: M, 1 for filled.
        tested: N X Y Z.
    """
    torch.manual_seed(0)
    network = built()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    patches, targets = torch.from_numpy(trained).float(), torch.from_numpy(labels).float()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(patches)).split(BATCH):
            mirrored = torch.rand(len(batch), 1, 1, 1) < 0.5
            seen = torch.where(mirrored, patches[batch].flip(1), patches[batch])
            loss = nn.functional.binary_cross_entropy_with_logits(logits(network, seen), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        asked = torch.from_numpy(tested).float()
        both = logits(network, asked) + logits(network, asked.flip(1))
    return torch.sigmoid(both / 2).numpy()


def built() -> nn.Sequential:
    """Return the network: three convolutions, each of which halves the resolution."""
    layers: list[nn.Module] = []
    for before, channels in zip((1, *CHANNELS), CHANNELS, strict=False):
        layers += [nn.Conv3d(before, channels, 3, stride=2, padding=1), nn.BatchNorm3d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(CHANNELS[-1], 1))


def logits(network: nn.Module, patches_NXYZ: torch.Tensor) -> torch.Tensor:
    """Return the network's outputs, N."""
    return network(patches_NXYZ[:, None] - 0.5).squeeze(1)
