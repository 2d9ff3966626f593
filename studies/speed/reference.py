"""The forward pass of guided-diffusion: unfused operations, contiguous layout, one timestep embedding per slice.

It uses our network's parameters and gives the same numbers (tests/test_studies.py).
Shapes: S slices, C channels, H W in-plane, N = H·W positions, E time-embedding features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brats_inpainting.diffusion.fused import GROUPS, GroupNorm
from brats_inpainting.diffusion.unet import Attention, ResBlock, UNet, Upsample, timestep_embedding


class Reference(nn.Module):
    """Guided-diffusion's forward pass with the parameters of our network."""

    def __init__(self, network: UNet) -> None:
        """Convert a network's parameters to contiguous layout."""
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, x_NCV: Tensor, t_N: Tensor) -> Tensor:
        """Return the network's output."""
        t_N = t_N.expand(len(x_NCV))
        emb_NE = self.network.time_embed(timestep_embedding(t_N, self.network.config.width))
        h_NCV, skips = x_NCV.contiguous(), []
        for stage in self.network.input_blocks:
            h_NCV = _through(stage, h_NCV, emb_NE)
            skips.append(h_NCV)
        h_NCV = _through(self.network.middle_block, h_NCV, emb_NE)
        for stage in self.network.output_blocks:
            h_NCV = _through(stage, torch.cat([h_NCV, skips.pop()], dim=1), emb_NE)
        norm, _, last = self.network.out
        return last(F.silu(_norm(norm, h_NCV)))


def _through(stage: nn.Module, h_NCV: Tensor, emb_NE: Tensor) -> Tensor:
    for layer in stage.children():
        if isinstance(layer, ResBlock):
            h_NCV = _residual(layer, h_NCV, emb_NE)
        elif isinstance(layer, Attention):
            h_NCV = _attention(layer, h_NCV)
        elif isinstance(layer, nn.Conv2d):
            h_NCV = layer(h_NCV)
        elif isinstance(layer, Upsample):
            h_NCV = layer.conv(F.interpolate(h_NCV, scale_factor=2))
        else:
            h_NCV = layer(h_NCV, emb_NE)
    return h_NCV


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(norm, GroupNorm)
    return F.group_norm(x.float(), GROUPS, norm.weight, norm.bias, norm.eps).type(x.dtype)


def _residual(block: ResBlock, x_NCV: Tensor, emb_NE: Tensor) -> Tensor:
    h_NCV = block.in_layers[2](F.silu(_norm(block.in_layers[0], x_NCV)))
    h_NCV = h_NCV + block.emb_layers[1](F.silu(emb_NE)).type(h_NCV.dtype)[:, :, None, None]
    h_NCV = block.out_layers[3](F.silu(_norm(block.out_layers[0], h_NCV)))
    return block.skip_connection(x_NCV) + h_NCV


def _attention(block: Attention, x_NCV: Tensor) -> Tensor:
    s, c, h, w = x_NCV.shape
    qkv = block.qkv(_norm(block.norm, x_NCV.reshape(s, c, h * w)))
    q, k, v = qkv.reshape(s * block.heads, 3 * c // block.heads, h * w).chunk(3, dim=1)
    scale = q.shape[1] ** -0.25
    weights = torch.einsum("bct,bcs->bts", q * scale, k * scale).float().softmax(dim=-1).type(v.dtype)
    a_SCN = torch.einsum("bts,bcs->bct", weights, v).reshape(s, c, h * w)
    return x_NCV + block.proj_out(a_SCN).reshape(s, c, h, w)
