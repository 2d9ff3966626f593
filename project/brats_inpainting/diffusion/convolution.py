"""2D and 3D convolutions; 3D float32 inference on a CPU uses faster, mathematically equivalent algorithms.

Training, GPUs and lower precisions use PyTorch's implementation.

Shapes: N windows, C and O channels in and out, V or X Y Z the axes of a window, P slices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY_FORMAT = {2: torch.channels_last, 3: torch.channels_last_3d}  # of filters, and therefore of all features
MIN_WINOGRAD_CHANNELS = 32  # output channels from which Winograd is faster


def _onednn_eligible(x_NCV: Tensor) -> bool:
    """Return whether features are 3D float32 on a CPU without gradients, for which oneDNN has faster kernels."""
    plain = x_NCV.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
    return x_NCV.ndim == 5 and x_NCV.device.type == "cpu" and plain and torch.backends.mkldnn.is_available()


class Conv3d(nn.Conv3d):
    """A 3D convolution; on a CPU by Winograd's algorithm or oneDNN, which PyTorch does not always choose."""

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        """Return the convolved features."""
        if not _onednn_eligible(x_NCXYZ):
            return super().forward(x_NCXYZ)
        same = self.kernel_size == (3, 3, 3) and self.stride == (1, 1, 1) and self.padding == (1, 1, 1)
        if same and x_NCXYZ.shape[2] % 2 == 0 and self.out_channels >= MIN_WINOGRAD_CHANNELS:
            return _winograd(x_NCXYZ, self.weight, self.bias)
        how = self.padding, self.stride, self.dilation, self.groups
        return torch.ops.aten.mkldnn_convolution(x_NCXYZ, self.weight, self.bias, *how)


def _winograd(x_NCXYZ: Tensor, weight_OCXYZ: Tensor, bias_O: Tensor | None) -> Tensor:
    """3 × 3 × 3 convolution by Winograd's F(2, 3) along X: 4 products per 2 voxels, not 6 (Lavin & Gray 2016, §4.1)."""
    pairs_NXPYZC = F.pad(x_NCXYZ, (0, 0, 0, 0, 1, 1)).movedim(1, -1).unflatten(1, (-1, 2))
    (d0, d1), (d2, d3) = pairs_NXPYZC[:, :-1].unbind(2), pairs_NXPYZC[:, 1:].unbind(2)
    g0, g1, g2 = weight_OCXYZ.unbind(2)

    def product(data_NXYZC: Tensor, taps_OCYZ: Tensor, bias_O: Tensor | None = None) -> Tensor:
        slices_PCYZ = data_NXYZC.flatten(0, 1).movedim(-1, 1)
        return F.conv2d(slices_PCYZ, taps_OCYZ.contiguous(memory_format=MEMORY_FORMAT[2]), bias_O, padding=1)

    middle, difference = product(d1 + d2, (g0 + g1 + g2) / 2, bias_O), product(d2 - d1, (g0 - g1 + g2) / 2)
    even = (middle + difference).add_(product(d0 - d2, g0))
    odd = middle.sub_(difference).sub_(product(d1 - d3, g2))
    both_PXYZO = torch.stack([even.movedim(1, -1), odd.movedim(1, -1)], 1)
    return both_PXYZO.view(len(x_NCXYZ), -1, *both_PXYZO.shape[2:]).movedim(-1, 1)


CONVOLUTION: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: Conv3d}


def upsample_conv(x_NCV: Tensor, conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """Upsample by 2 (nearest neighbour) and convolve: N × O × V, sides doubled.

    3D inference on a CPU computes one transposed convolution: 8 products per voxel instead of 27.
    """
    if x_NCV.is_cuda:
        return conv(_doubled(x_NCV))
    if not _onednn_eligible(x_NCV):
        return conv(F.interpolate(x_NCV, scale_factor=2, mode="nearest"))
    padded = F.pad(conv.weight.flip(2, 3, 4), [1] * 6)
    kernel = F.avg_pool3d(padded, 2, stride=1, divisor_override=1).transpose(0, 1)  # sums of adjacent taps
    return F.conv_transpose3d(x_NCV, kernel, conv.bias, stride=2, padding=1)


def _doubled(x_NCV: Tensor) -> Tensor:
    """Repeat every position along every axis, in channels-last layout.

    CUDA's ``interpolate`` has no such kernel in 3D, and autocast runs it in float32.
    """
    x_NVC = x_NCV.movedim(1, -1)
    n, *sides, c = x_NVC.shape
    apart = x_NVC.reshape(n, *(part for side in sides for part in (side, 1)), c)
    pairs = apart.expand(n, *(part for side in sides for part in (side, 2)), c)
    return pairs.reshape(n, *(2 * side for side in sides), c).movedim(-1, 1)
