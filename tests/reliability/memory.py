"""Measure the memory of one pass of a network, as the growth of this process's peak.

usage: python -m tests.reliability.memory paper|small-2 SLICES, of 224 × 224
       python -m tests.reliability.memory volume-2 SIDE, of a box in voxels

Measured: 287 MB for one slice of the paper's network, 347 each for four (estimate: 411); small-2: 75 and 76 (103).
"""

import math
import sys

import torch

from brats_inpainting import memory, runtime
from brats_inpainting.config import BUNDLED, FRAME, UNetConfig
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from brats_inpainting.diffusion.unet import UNet


def peak():
    """Return this process's peak memory in MB."""
    return memory.peak() / 2**20


@torch.inference_mode()
def main():
    runtime.settle()  # as the command line does
    name, size = sys.argv[1], int(sys.argv[2])
    network = UNet(UNetConfig()) if name == "paper" else checkpoint.load(BUNDLED[name]).network
    unet = network.config
    network.eval().to(memory_format=MEMORY_FORMAT[unet.dims])
    before = peak()
    shape = (size, 3, FRAME, FRAME) if unet.dims == 2 else (1, unet.in_channels, size, size, size)
    network(torch.randn(shape).to(memory_format=MEMORY_FORMAT[unet.dims]), torch.tensor([500]))
    maps = (peak() - before) * 2**20 / (4 * unet.width * math.prod((shape[0], *shape[2:])) / unet.patch**unet.dims)
    print(f"{name}, {size}: {peak() - before:.0f} MB, {maps:.1f} feature maps; at its peak {peak():.0f} MB")


if __name__ == "__main__":
    main()
