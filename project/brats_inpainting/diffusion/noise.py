"""Per-slice seeded noise, a function of only seed, slice, sample and step.

Shapes: H W a slice's frame.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ANCHOR_DISTANCE = 8  # slices between the anchors of slerp


def draw(shape_HW: tuple[int, int], *, seed: int, z: int, sample: int, step: int, mode: str) -> Tensor:
    """Return one standard normal draw for one slice, H × W, float32, on the CPU.

    Args:
        shape_HW: the frame's size; windows are cropped from the frame's draw, so they agree where they overlap.
        seed: the run's seed.
        z: index of the slice in the LPS volume.
        sample: index of the sample, 0 … K − 1.
        step: 0 for x_T, k + 1 for the draw of step k.
        mode: a name in ``config.NOISE_MODES``: ``independent`` between slices (the paper), ``shared`` by all slices, or
            ``slerp``: spherically interpolated along z between anchors 8 slices apart (ISCS, arXiv 2602.04162).
    """
    if mode == "independent":
        return _normal(shape_HW, (seed, z, sample, step))
    if mode == "shared":
        return _normal(shape_HW, (seed, 0, sample, step))
    anchor, distance = divmod(z, ANCHOR_DISTANCE)
    a, b = (_normal(shape_HW, (seed, (anchor + i) * ANCHOR_DISTANCE, sample, step)) for i in (0, 1))
    return slerp(a, b, distance / ANCHOR_DISTANCE)


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Interpolate between two tensors along the great circle, so that the norm stays the same."""
    cosine = torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    return (((1 - fraction) * angle).sin() * a + (fraction * angle).sin() * b) / angle.sin()


def _normal(shape_HW: tuple[int, int], key: tuple[int, ...]) -> Tensor:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.randn(shape_HW, generator=torch.Generator().manual_seed(int(state)))
