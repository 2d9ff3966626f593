"""The network as guided-diffusion runs it: one operation after the other, contiguous, a timestep embedding a slice.

It takes the parameters of ours and gives the same numbers (tests/test_benchmark.py); only how it goes about it differs.
Shapes: S slices, C channels, H W in-plane, N = H·W positions, E time-embedding features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brats_inpainting.diffusion.unet import GROUPS, Attention, GroupNorm, ResBlock, UNet, timestep_embedding


class Reference(nn.Module):
    """Guided-diffusion's forward pass over the parameters of a network of ours."""

    def __init__(self, network: UNet) -> None:
        """Take over a network's parameters, in contiguous layout."""
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, x_SCHW: Tensor, t_S: Tensor) -> Tensor:
        """Return what the network returns for the same input."""
        t_S = t_S.expand(len(x_SCHW))
        emb_SE = self.network.time_embed(timestep_embedding(t_S, self.network.config.width))
        h_SCHW, skips = x_SCHW.contiguous(), []
        for stage in self.network.input_blocks:
            h_SCHW = _through(stage, h_SCHW, emb_SE)
            skips.append(h_SCHW)
        h_SCHW = _through(self.network.middle_block, h_SCHW, emb_SE)
        for stage in self.network.output_blocks:
            h_SCHW = _through(stage, torch.cat([h_SCHW, skips.pop()], dim=1), emb_SE)
        norm, _, last = self.network.out
        return last(F.silu(_norm(norm, h_SCHW)))


def _through(stage: nn.Module, h_SCHW: Tensor, emb_SE: Tensor) -> Tensor:
    for layer in stage.children():
        if isinstance(layer, ResBlock):
            h_SCHW = _residual(layer, h_SCHW, emb_SE)
        elif isinstance(layer, Attention):
            h_SCHW = _attention(layer, h_SCHW)
        else:
            h_SCHW = layer(h_SCHW, emb_SE)
    return h_SCHW


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(norm, GroupNorm)
    return F.group_norm(x.float(), GROUPS, norm.weight, norm.bias, norm.eps).type(x.dtype)


def _residual(block: ResBlock, x_SCHW: Tensor, emb_SE: Tensor) -> Tensor:
    h_SCHW = block.in_layers[2](F.silu(_norm(block.in_layers[0], x_SCHW)))
    h_SCHW = h_SCHW + block.emb_layers[1](F.silu(emb_SE)).type(h_SCHW.dtype)[:, :, None, None]
    h_SCHW = block.out_layers[3](F.silu(_norm(block.out_layers[0], h_SCHW)))
    return block.skip_connection(x_SCHW) + h_SCHW


def _attention(block: Attention, x_SCHW: Tensor) -> Tensor:
    s, c, h, w = x_SCHW.shape
    qkv = block.qkv(_norm(block.norm, x_SCHW.reshape(s, c, h * w)))
    q, k, v = qkv.reshape(s * block.heads, 3 * c // block.heads, h * w).chunk(3, dim=1)
    scale = q.shape[1] ** -0.25
    weights = torch.einsum("bct,bcs->bts", q * scale, k * scale).float().softmax(dim=-1).type(v.dtype)
    a_SCN = torch.einsum("bts,bcs->bct", weights, v).reshape(s, c, h * w)
    return x_SCHW + block.proj_out(a_SCN).reshape(s, c, h, w)
