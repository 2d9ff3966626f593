"""Convolutions in two and three dimensions, and faster ways to those of boxes on a CPU: the same sums in another order.

Gradients, GPUs and shorter precisions take PyTorch's own way (docs/benchmarks.md tells what the others save).

Shapes: N windows, C and O channels in and out, V or X Y Z the axes of a window, P slices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY_FORMAT = {2: torch.channels_last, 3: torch.channels_last_3d}  # of the filters, and so of all features
WORTH_WINOGRAD = 32  # maps that a convolution makes, from where on Winograd's products save more than its sums cost


def _fills_on_a_cpu(x_NCV: Tensor) -> bool:
    """Tell whether features are a box's on a CPU, in float32, without a gradient: oneDNN then has faster ways."""
    plain = x_NCV.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
    return x_NCV.ndim == 5 and x_NCV.device.type == "cpu" and plain and torch.backends.mkldnn.is_available()


class Conv3d(nn.Conv3d):
    """A convolution of boxes; on a CPU with fewer products, and by oneDNN where PyTorch would not ask it, too."""

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        """Return the convolved features."""
        if not _fills_on_a_cpu(x_NCXYZ):
            return super().forward(x_NCXYZ)
        same = self.kernel_size == (3, 3, 3) and self.stride == (1, 1, 1) and self.padding == (1, 1, 1)
        if same and x_NCXYZ.shape[2] % 2 == 0 and self.out_channels >= WORTH_WINOGRAD:
            return _winograd(x_NCXYZ, self.weight, self.bias)
        how = self.padding, self.stride, self.dilation, self.groups
        return torch.ops.aten.mkldnn_convolution(x_NCXYZ, self.weight, self.bias, *how)


def _winograd(x_NCXYZ: Tensor, weight_OCXYZ: Tensor, bias_O: Tensor | None) -> Tensor:
    """Convolve with 3 taps a side; along X 4 products make 2 voxels, not 6: F(2, 3) of Lavin & Gray 2016, §4.1."""
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


def doubled(x_NCV: Tensor, conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """Double the resolution, nearest neighbour, and convolve: N × O × V of twice the sides.

    Where it fills boxes on a CPU, as one transposed convolution: 8 products a voxel instead of 27.
    """
    if not _fills_on_a_cpu(x_NCV):
        return conv(F.interpolate(x_NCV, scale_factor=2, mode="nearest"))
    padded = F.pad(conv.weight.flip(2, 3, 4), [1] * 6)
    kernel = F.avg_pool3d(padded, 2, stride=1, divisor_override=1).transpose(0, 1)  # each tap, added to the next
    return F.conv_transpose3d(x_NCV, kernel, conv.bias, stride=2, padding=1)
