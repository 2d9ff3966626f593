"""The reference vectors of guided-diffusion and the recipe that makes their inputs and weights."""

import zlib
from pathlib import Path

import numpy as np
import torch

from brats_inpainting.config import UNetConfig
from brats_inpainting.diffusion.unet import UNet

VOLUME = np.load(Path(__file__).parent / "fixtures" / "volume_vectors.npz")
VECTORS = np.load(Path(__file__).parent / "fixtures" / "guided_diffusion_vectors.npz")
SMALL = UNetConfig(width=32, multipliers=(1, 2, 2), blocks=1, attention_at=(4,))


def rnd(tag, shape):
    """Every random input, by its tag."""
    rng = np.random.default_rng([0, zlib.crc32(tag.encode())])
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def fill(name, shape):
    """Every parameter, by its state-dict name."""
    z = rnd(name, shape)
    if len(shape) == 1:
        return 1 + 0.05 * z if name.endswith("weight") else 0.05 * z
    return z / float(np.sqrt(np.prod(shape[1:])))


def network(config):
    """A network with the recipe's weights, loaded strictly."""
    net = UNet(config).eval().requires_grad_(requires_grad=False)
    net.load_state_dict({name: fill(name, tuple(p.shape)) for name, p in net.state_dict().items()})
    return net


def distance(a, name, vectors=VECTORS):
    """‖a − b‖ / ‖b‖ against a stored vector."""
    b = vectors[name]
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
