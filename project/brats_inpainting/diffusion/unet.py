"""The guided-diffusion U-Net (Dhariwal & Nichol 2021) of paper §3.2, with guided-diffusion's parameter names.

``UNetConfig.dims`` selects 2D or 3D convolutions.

Shapes: N windows, C channels, V the axes of a window (H W of a patch, X Y Z of a box), P = their product, the
positions, E time-embedding features, D heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brats_inpainting.config import UNetConfig
from brats_inpainting.diffusion.convolution import CONVOLUTION, upsample_conv
from brats_inpainting.diffusion.fused import GroupNorm, add, convolve, pointwise


class ResBlock(nn.Module):
    """Two convolutions (kernel size 3) with an added time embedding in between, plus a skip connection."""

    def __init__(self, c_in: int, c_out: int, embedding: int, dims: int) -> None:
        """Map ``c_in`` channels to ``c_out`` under a time embedding of ``embedding`` features."""
        super().__init__()
        conv = CONVOLUTION[dims]
        # each Identity keeps the numbering of guided-diffusion, which has SiLU or dropout there
        self.in_layers = nn.Sequential(GroupNorm(c_in), nn.Identity(), conv(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, c_out))
        self.out_layers = nn.Sequential(
            GroupNorm(c_out), nn.Identity(), nn.Identity(), conv(c_out, c_out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)

    def forward(self, x_NCV: Tensor, emb_NE: Tensor) -> Tensor:
        """Return the transformed features, N × c_out × V."""
        (norm_in, _, conv_in), (norm_out, _, _, conv_out) = self.in_layers, self.out_layers
        h_NCV, bias_C = convolve(conv_in, norm_in(x_NCV, silu=True))
        h_NCV, bias_C = convolve(conv_out, norm_out(h_NCV, self.emb_layers(emb_NE) + bias_C, silu=True))
        if isinstance(self.skip_connection, nn.Identity):
            return add(h_NCV, x_NCV, bias_C)
        skipped_NCV, bias_of_skip_C = convolve(self.skip_connection, x_NCV)
        return add(h_NCV, skipped_NCV, bias_C + bias_of_skip_C)


class Attention(nn.Module):
    """Self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int, heads: int) -> None:
        """Attend over ``channels`` features split among ``heads`` heads."""
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x_NCV: Tensor, _emb_NE: Tensor) -> Tensor:
        """Return features of the input's shape."""
        n, c = x_NCV.shape[:2]
        qkv_NCP = pointwise(self.qkv, self.norm(x_NCV).reshape(n, c, -1))
        # guided-diffusion's legacy order: heads first, then q, k, v within each head
        qkv_NDPC = qkv_NCP.reshape(n, self.heads, 3 * c // self.heads, -1).transpose(2, 3)
        # features last in memory too: otherwise PyTorch materialises the attention matrix
        q, k, v = qkv_NDPC.contiguous().chunk(3, dim=-1)
        a_NDPC = F.scaled_dot_product_attention(q, k, v)
        return x_NCV + pointwise(self.proj_out, a_NDPC.transpose(2, 3).reshape(n, c, -1)).reshape(x_NCV.shape)


class Downsample(nn.Module):
    """Halve the resolution with a strided convolution."""

    def __init__(self, channels: int, dims: int) -> None:
        """Keep ``channels`` features."""
        super().__init__()
        self.op = CONVOLUTION[dims](channels, channels, 3, stride=2, padding=1)

    def forward(self, x_NCV: Tensor, _emb_NE: Tensor) -> Tensor:
        """Return the features at half the resolution."""
        return self.op(x_NCV)


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, dims: int) -> None:
        """Keep ``channels`` features."""
        super().__init__()
        self.conv = CONVOLUTION[dims](channels, channels, 3, padding=1)

    def forward(self, x_NCV: Tensor, _emb_NE: Tensor) -> Tensor:
        """Return the features at twice the resolution."""
        return upsample_conv(x_NCV, self.conv)


class Stage(nn.Sequential):
    """A sequence of layers; all but convolutions receive the time embedding."""

    def forward(self, x_NCV: Tensor, emb_NE: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the layers in order."""
        for layer in self:
            x_NCV = layer(x_NCV) if isinstance(layer, nn.Conv2d | nn.Conv3d) else layer(x_NCV, emb_NE)
        return x_NCV


def timestep_embedding(t_N: Tensor, features: int) -> Tensor:
    """Return the sinusoidal embedding of the unscaled timesteps, cosines first: S × ``features``, float32."""
    half = features // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t_N.device) / half)
    angles = t_N[:, None].float() * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def fold(x_NCV: Tensor, patch: int) -> Tensor:
    """Fold patches of ``patch`` voxels a side into channels, as ``pixel_unshuffle`` does in 2D.

    In 3D channel c at offset (i, j, k) of a patch becomes channel patch³·c + patch²·i + patch·j + k.
    """
    if patch == 1:
        return x_NCV
    n, c, *sides = x_NCV.shape
    dims = len(sides)
    split = x_NCV.reshape(n, c, *(part for side in sides for part in (side // patch, patch)))
    offsets, positions = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
    return split.permute(0, 1, *offsets, *positions).reshape(n, c * patch**dims, *(side // patch for side in sides))


def unfold(x_NCV: Tensor, patch: int) -> Tensor:
    """Undo ``fold``."""
    if patch == 1:
        return x_NCV
    n, c, *sides = x_NCV.shape
    dims = len(sides)
    split = x_NCV.reshape(n, c // patch**dims, *[patch] * dims, *sides)
    pairs = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    return split.permute(0, 1, *pairs).reshape(n, c // patch**dims, *(patch * side for side in sides))


class UNet(nn.Module):
    """The paper's network and its 2D and 3D variants, as configured by a ``UNetConfig``."""

    def __init__(self, config: UNetConfig) -> None:
        """Build the network with freshly initialised weights."""
        super().__init__()
        self.config = config
        self.checkpointing = False  # recompute features in the backward pass
        width, emb, dims, folded = config.width, 4 * config.width, config.dims, config.patch**config.dims
        conv = CONVOLUTION[dims]
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))

        self.input_blocks = nn.ModuleList([Stage(conv(folded * config.in_channels, width, 3, padding=1))])
        channels, skips = width, [width]
        for level, multiplier in enumerate(config.multipliers):
            if level > 0:
                self.input_blocks.append(Stage(Downsample(channels, dims)))
                skips.append(channels)
            for _ in range(config.blocks):
                self.input_blocks.append(self._stage(channels, width * multiplier, level))
                channels = width * multiplier
                skips.append(channels)

        self.middle_block = Stage(
            ResBlock(channels, channels, emb, dims),
            Attention(channels, config.heads),
            ResBlock(channels, channels, emb, dims),
        )

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for block in range(config.blocks + 1):
                stage = self._stage(channels + skips.pop(), width * multiplier, level)
                channels = width * multiplier
                if level > 0 and block == config.blocks:
                    stage.append(Upsample(channels, dims))
                self.output_blocks.append(stage)

        last = conv(channels, folded * config.out_channels, 3, padding=1)
        self.out = nn.Sequential(GroupNorm(channels), nn.Identity(), last)
        self._zero_last_layers()

    def _stage(self, c_in: int, c_out: int, level: int) -> Stage:
        stage = Stage(ResBlock(c_in, c_out, 4 * self.config.width, self.config.dims))
        if 2**level in self.config.attention_at:
            stage.append(Attention(c_out, self.config.heads))
        return stage

    def _zero_last_layers(self) -> None:
        """Initialise the last layer of every residual branch, and the output, to zero, as guided-diffusion does."""
        blocks = [m.out_layers[-1] for m in self.modules() if isinstance(m, ResBlock)]
        attentions = [m.proj_out for m in self.modules() if isinstance(m, Attention)]
        for layer in [*blocks, *attentions, self.out[-1]]:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x_NCV: Tensor, t_N: Tensor) -> Tensor:
        """Predict the noise (or the configured target) and its variance.

        Args:
            x_NCV: N × in_channels × V: voided image b, mask m and noisy image x_t, in this order, then the positions
                if the network takes them; the sides in V multiples of ``config.stride``.
            t_N: the N timesteps, unscaled, 0 … 999; a single one applies to all windows.

        Returns:
            N × out_channels × V: the prediction, and the variance interpolation v if there are two channels.
        """
        emb_NE = self.time_embed(timestep_embedding(t_N, self.config.width))
        h_NCV, skips = fold(x_NCV, self.config.patch), []
        for stage in self.input_blocks:
            h_NCV = self._run(stage, h_NCV, emb_NE)
            skips.append(h_NCV)
        h_NCV = self._run(self.middle_block, h_NCV, emb_NE)
        for stage in self.output_blocks:
            h_NCV = self._run(stage, torch.cat([h_NCV, skips.pop()], dim=1), emb_NE)
        norm, _, last = self.out
        return unfold(last(norm(h_NCV, silu=True)), self.config.patch)

    def _run(self, stage: nn.Module, x_NCV: Tensor, emb_NE: Tensor) -> Tensor:
        if self.checkpointing:
            return checkpoint(stage, x_NCV, emb_NE, use_reentrant=False)
        return stage(x_NCV, emb_NE)
