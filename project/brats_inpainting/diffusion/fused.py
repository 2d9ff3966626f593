"""Operations that Triton kernels fuse on an NVIDIA GPU, and their counterparts in PyTorch; this module chooses.

Shapes: N windows, C channels, V the axes of a window (H W of a patch, X Y Z of a box), P its positions.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

GROUPS = 32
CONVOLVE = {4: F.conv2d, 5: F.conv3d}  # by the number of axes of the features
_found: dict[str, Any] = {}  # kernels by the kind of device


class GroupNorm(nn.GroupNorm):
    """Group normalisation with statistics in float32, for features of any precision."""

    def __init__(self, channels: int) -> None:
        """Normalise ``channels`` features in 32 groups."""
        super().__init__(GROUPS, channels)

    def forward(self, x_NCV: Tensor, shift_NC: Tensor | None = None, *, silu: bool = False) -> Tensor:
        """Return the normalised features of ``x + shift`` in the input's dtype, with ``silu`` their x · sigmoid(x).

        The shift may be added in place.
        """
        if kernels := _kernels(x_NCV.device.type):
            settings = {"groups": self.num_groups, "eps": self.eps, "silu": silu}
            return kernels.group_norm(x_NCV, self.weight, self.bias, shift_NC, **settings)
        if shift_NC is not None:
            x_NCV.add_(shift_NC.reshape(*shift_NC.shape, *[1] * (x_NCV.ndim - 2)))
        with torch.autocast(x_NCV.device.type, enabled=False):
            y_NCV = super().forward(x_NCV.float()).to(x_NCV.dtype)
        return F.silu(y_NCV, inplace=not torch.is_grad_enabled()) if silu else y_NCV


def convolve(conv: Any, x_NCV: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return the convolved features, and the bias where the next operation can add it: 0 if it is added already."""
    if not _kernels(x_NCV.device.type):
        return conv(x_NCV), 0.0
    return CONVOLVE[x_NCV.ndim](x_NCV, conv.weight, None, conv.stride, conv.padding), conv.bias


def pointwise(conv: nn.Conv1d, x_NCP: Tensor) -> Tensor:
    """Return a convolution of kernel size 1, on a GPU as a matrix product that keeps channels last."""
    if not _kernels(x_NCP.device.type):
        return conv(x_NCP)
    return F.linear(x_NCP.transpose(1, 2), conv.weight[..., 0], conv.bias).transpose(1, 2)


def add(h_NCV: Tensor, x_NCV: Tensor, bias_C: Tensor | float) -> Tensor:
    """Return ``h + x + bias``; in place without gradients, and on a CPU."""
    if (kernels := _kernels(h_NCV.device.type)) and isinstance(bias_C, Tensor):
        return kernels.add(h_NCV, x_NCV, bias_C)
    return h_NCV.add_(x_NCV)


def _kernels(device: str) -> Any:
    """Return the module of Triton kernels if they run on this kind of device; else ``None``."""
    if device not in _found:
        _found[device] = _trial() if device == "cuda" else None
    return _found[device]


# what torch.compiler.assume_constant_result does, without the seconds that it takes to import the compiler
vars(_kernels)["_dynamo_marked_constant"] = True


def _trial() -> Any:
    """Run a kernel on the GPU; return the module, or ``None`` with a warning."""
    try:
        kernels = import_module("brats_inpainting.diffusion.kernels")
        x_NCV = torch.ones(1, GROUPS, 2, 2, device="cuda")
        kernels.group_norm(x_NCV, x_NCV[0, :, 0, 0], x_NCV[0, :, 0, 0], None, groups=GROUPS, eps=1e-5, silu=True)
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - a compiler may be missing, a folder read-only, a GPU too old
        log.warning(
            "passes take about three times as long: Triton's kernels do not run on this GPU (%s: %s)\n"
            "  Triton needs a C compiler, and a folder to write to and to load libraries from (TRITON_CACHE_DIR).",
            *(type(error).__name__, error),
        )
        return None
    return kernels
