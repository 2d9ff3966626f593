"""Measure how much memory slices of 224 × 224 take in a pass of a network: the growth of this process's peak.

usage: python -m tests.reliability.memory paper|small SLICES
"""

import sys

import torch

from brats_inpainting import host
from brats_inpainting.benchmark.subject import peak_bytes
from brats_inpainting.config import BUNDLED_WEIGHTS, FRAME, UNetConfig
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.unet import UNet


def peak():
    """Return the most memory that this process has had, in MB."""
    return peak_bytes("cpu") / 2**20


@torch.inference_mode()
def main():
    host.settle()  # as the command line does
    name, slices = sys.argv[1], int(sys.argv[2])
    network = UNet(UNetConfig()) if name == "paper" else checkpoint.load(BUNDLED_WEIGHTS).network
    network.eval().to(memory_format=torch.channels_last)
    before = peak()
    x_NCV = torch.randn(slices, 3, FRAME, FRAME).to(memory_format=torch.channels_last)
    network(x_NCV, torch.full((slices,), 500))
    print(f"{name}, {slices} slices: {(peak() - before) / slices:.0f} MB each, the process at its peak {peak():.0f} MB")


if __name__ == "__main__":
    main()
