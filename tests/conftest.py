"""Small synthetic brains, networks and cases, and shared fixtures."""

import logging
import os
from dataclasses import replace
from shutil import which

# read when torch is loaded, here and in the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not which("nvidia-smi"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # runs the GPU's kernels on the CPU

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_inpainting.config import DiffusionConfig, SamplingConfig, UNetConfig
from brats_inpainting.data import validation, volume
from brats_inpainting.data.nifti import LPS
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.plan import Plan

TINY = UNetConfig(width=32, multipliers=(1,), blocks=1, attention_at=(), out_channels=2)
TINY_3D = TINY.model_copy(update={"dims": 3, "patch": 2, "position": True, "in_channels": 6, "out_channels": 1})


class RandomOutput(torch.nn.Module):
    """A network with large random outputs, different at every call."""

    def forward(self, x_NCV, _t_N):
        return 50 * torch.randn(len(x_NCV), 1, *x_NCV.shape[2:])


def ball(shape, centre, radius):
    """Boolean mask of a ball; centre and radius are fractions of the shape."""
    grid = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2


def brain(shape, seed=0):
    """A bright ball with texture on background 0, in 1 … 1000, float32."""
    texture = np.random.default_rng(seed).uniform(300, 1000, shape)
    return np.where(ball(shape, (0.5, 0.5, 0.5), 0.4), texture, 0).round().astype(np.float32)


def lesion(shape, centre=(0.55, 0.45, 0.5), radius=0.15):
    """A mask inside the brain."""
    return ball(shape, centre, radius)


def scan_of(seed, case_id, shape=(64, 64, 12), **where):
    """A prepared scan of a brain with one lesion."""
    images = [nib.Nifti1Image(a, LPS) for a in (brain(shape, seed), lesion(shape, **where).astype(np.uint8))]
    return volume.prepare(validation.examine(case_id, *images, names=("image", "mask")))


def weights(network, **diffusion):
    """Wrap a network as ``checkpoint.load`` returns it; networks other than ``UNet`` get the configuration ``TINY``."""
    if not hasattr(network, "config"):
        network.config = TINY
    config = DiffusionConfig(**diffusion)
    return checkpoint.Weights(network, config, checkpoint.Path("test"), "0" * 64, ema=True)


def tiny_network(seed=0):
    """A small network with non-zero random weights."""
    torch.manual_seed(seed)
    network = UNet(TINY).eval().requires_grad_(requires_grad=False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def inpainter(network=None, *, batch_size=4, window=32, **sampling):
    """An inpainter with a tiny network, and two DDIM steps by default."""
    settings = {"sampler": "ddim", "steps": 2} | sampling
    loaded = weights(network or tiny_network(), prediction="x0", window=window)
    return Inpainter(loaded, SamplingConfig(**settings), Plan(torch.device("cpu"), batch_size=batch_size))


def with_plan(machine, **changes):
    """A copy of an inpainter with changes to its plan."""
    return replace(machine, plan=replace(machine.plan, **changes))


def write_case(folder, case_id, *, shape=(64, 64, 12), mask=None, seed=0):
    """Write the two files of a case and return its folder."""
    image = brain(shape, seed)
    mask = lesion(shape) if mask is None else mask
    case = folder / case_id
    case.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.where(mask, 0, image), LPS), case / f"{case_id}-t1n-voided.nii.gz")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), LPS), case / f"{case_id}-mask.nii.gz")
    return case


def write_cases(root, weights, number):
    """Write small cases to ``root / "data"``, and link the weights as ``root / "tiny.safetensors"``."""
    for seed in range(number):
        write_case(root / "data", f"case-{seed}", shape=(48, 48, 8), seed=seed)
    (root / "tiny.safetensors").symlink_to(weights)
    return root


@pytest.fixture(autouse=True)
def _default_logging():
    """Undo the logging configuration of the command line, so that caplog works in every test."""
    logger = logging.getLogger("brats_inpainting")
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers = True, []


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A tiny network as a .safetensors file."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    diffusion = DiffusionConfig(prediction="x0", window=32)
    checkpoint.save(path, tiny_network().state_dict(), unet=TINY, diffusion=diffusion, ema=True, notes={})
    return path
