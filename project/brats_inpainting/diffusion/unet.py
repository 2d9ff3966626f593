"""The guided-diffusion U-Net (Dhariwal & Nichol 2021) of paper §3.2, with guided-diffusion's parameter names.

Shapes: S slices, C channels, H W in-plane, N = H·W positions, E time-embedding features, D = heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brats_inpainting.config import UNetConfig

GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """Group normalisation computed in float32, whatever the precision of the features."""

    def __init__(self, channels: int) -> None:
        """Normalise ``channels`` features in 32 groups."""
        super().__init__(GROUPS, channels)

    def forward(self, x_NCV: Tensor) -> Tensor:
        """Return the normalised features in the input's dtype."""
        with torch.autocast(x_NCV.device.type, enabled=False):
            return super().forward(x_NCV.float()).to(x_NCV.dtype)


class SiLU(nn.SiLU):
    """SiLU that overwrites its input where no gradient is wanted: another block of memory is not needed."""

    def forward(self, x_NCV: Tensor) -> Tensor:
        """Return x · sigmoid(x)."""
        return F.silu(x_NCV, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """Two 3×3 convolutions around an added time embedding, plus a skip connection."""

    def __init__(self, c_in: int, c_out: int, embedding: int) -> None:
        """Map ``c_in`` channels to ``c_out`` under a time embedding of ``embedding`` features."""
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(c_in), SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, c_out))
        self.out_layers = nn.Sequential(
            GroupNorm(c_out), SiLU(), nn.Identity(), nn.Conv2d(c_out, c_out, 3, padding=1)
        )  # the Identity keeps guided-diffusion's numbering, where a dropout stands
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_NCV: Tensor, emb_NE: Tensor) -> Tensor:
        """Return the transformed features, S × c_out × H × W."""
        h_NCV = self.in_layers(x_NCV).add_(self.emb_layers(emb_NE)[:, :, None, None])
        return self.out_layers(h_NCV).add_(self.skip_connection(x_NCV))


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
        s, c, h, w = x_NCV.shape
        qkv_NCP = self.qkv(self.norm(x_NCV).reshape(s, c, h * w))
        # guided-diffusion's legacy order: heads first, then q, k, v within each head
        qkv_NDPC = qkv_NCP.reshape(s, self.heads, 3 * c // self.heads, h * w).transpose(2, 3)
        # features last in memory too: else the weights of all pairs of positions are held at once
        a_NDPC = F.scaled_dot_product_attention(*qkv_NDPC.contiguous().chunk(3, dim=-1))
        return x_NCV + self.proj_out(a_NDPC.transpose(2, 3).reshape(s, c, h * w)).reshape(s, c, h, w)


class Downsample(nn.Module):
    """Halve the resolution with a strided convolution."""

    def __init__(self, channels: int) -> None:
        """Keep ``channels`` features."""
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x_NCV: Tensor, _emb_NE: Tensor) -> Tensor:
        """Return S × C × H/2 × W/2."""
        return self.op(x_NCV)


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        """Keep ``channels`` features."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCV: Tensor, _emb_NE: Tensor) -> Tensor:
        """Return S × C × 2H × 2W."""
        return self.conv(F.interpolate(x_NCV, scale_factor=2, mode="nearest"))


class Stem(nn.Conv2d):
    """The first convolution; it takes no notice of the timestep."""

    def forward(self, x_NCV: Tensor, _emb_NE: Tensor) -> Tensor:  # type: ignore[override]
        """Return S × width × H × W."""
        return super().forward(x_NCV)


class Stage(nn.Sequential):
    """A sequence of layers that all see the time embedding."""

    def forward(self, x_NCV: Tensor, emb_NE: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the layers in order."""
        for layer in self:
            x_NCV = layer(x_NCV, emb_NE)
        return x_NCV


def timestep_embedding(t_N: Tensor, features: int) -> Tensor:
    """Return the sinusoidal embedding of the unscaled timesteps, cosines first: S × ``features``, float32."""
    half = features // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t_N.device) / half)
    angles = t_N[:, None].float() * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class UNet(nn.Module):
    """The paper's network and its smaller relatives, told apart by their ``UNetConfig`` alone."""

    def __init__(self, config: UNetConfig) -> None:
        """Build the network with freshly initialised weights."""
        super().__init__()
        self.config = config
        self.checkpointing = False  # forget features on the way forth, and compute them again on the way back
        width, emb = config.width, 4 * config.width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))

        self.input_blocks = nn.ModuleList([Stage(Stem(config.in_channels, width, 3, padding=1))])
        channels, skips = width, [width]
        for level, multiplier in enumerate(config.multipliers):
            if level > 0:
                self.input_blocks.append(Stage(Downsample(channels)))
                skips.append(channels)
            for _ in range(config.blocks):
                self.input_blocks.append(self._stage(channels, width * multiplier, level))
                channels = width * multiplier
                skips.append(channels)

        self.middle_block = Stage(
            ResBlock(channels, channels, emb), Attention(channels, config.heads), ResBlock(channels, channels, emb)
        )

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for block in range(config.blocks + 1):
                stage = self._stage(channels + skips.pop(), width * multiplier, level)
                channels = width * multiplier
                if level > 0 and block == config.blocks:
                    stage.append(Upsample(channels))
                self.output_blocks.append(stage)

        self.out = nn.Sequential(GroupNorm(channels), SiLU(), nn.Conv2d(channels, config.out_channels, 3, padding=1))
        self._zero_the_last_layers()

    def _stage(self, c_in: int, c_out: int, level: int) -> Stage:
        stage = Stage(ResBlock(c_in, c_out, 4 * self.config.width))
        if 2**level in self.config.attention_at:
            stage.append(Attention(c_out, self.config.heads))
        return stage

    def _zero_the_last_layers(self) -> None:
        """Start every residual branch, and the output, at zero, as guided-diffusion does."""
        blocks = [m.out_layers[-1] for m in self.modules() if isinstance(m, ResBlock)]
        attentions = [m.proj_out for m in self.modules() if isinstance(m, Attention)]
        for layer in [*blocks, *attentions, self.out[-1]]:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x_NCV: Tensor, t_N: Tensor) -> Tensor:
        """Estimate the noise (or what the weights were trained for) and its variance.

        Args:
            x_NCV: S × 3 × H × W: voided image b, mask m and noisy image x_t, in this order; H and W multiples of
                ``config.stride``.
            t_N: the S timesteps, unscaled, 0 … 999; a single one serves all slices.

        Returns:
            S × out_channels × H × W: the prediction, and the variance interpolation v where there are two channels.
        """
        emb_NE = self.time_embed(timestep_embedding(t_N, self.config.width))
        h_NCV, skips = x_NCV, []
        for stage in self.input_blocks:
            h_NCV = self._through(stage, h_NCV, emb_NE)
            skips.append(h_NCV)
        h_NCV = self._through(self.middle_block, h_NCV, emb_NE)
        for stage in self.output_blocks:
            h_NCV = self._through(stage, torch.cat([h_NCV, skips.pop()], dim=1), emb_NE)
        return self.out(h_NCV)

    def _through(self, stage: nn.Module, x_NCV: Tensor, emb_NE: Tensor) -> Tensor:
        if self.checkpointing:
            return checkpoint(stage, x_NCV, emb_NE, use_reentrant=False)
        return stage(x_NCV, emb_NE)
