"""Synthetic healthy-tissue masks: the algorithm of the BraTS local-synthesis challenge (Kofler et al. 2023).

A tumour-shaped compartment is flipped, rotated and moved to a place in the brain away from the tumour. The challenge
takes its shapes from real tumours; ours are ellipsoids perturbed by smooth random fields.
Shapes: X Y Z a volume, A B C the box of a compartment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brats_inpainting.data.transforms import cut
from brats_inpainting.host import cpus

MIN_INSIDE = 0.75  # share of the healthy mask that must lie in the brain
MIN_DISTANCE = 5  # voxels between the healthy mask and the tumour mask
ATTEMPTS = 200


class Placed(NamedTuple):
    """A mask in a volume, stored as its bounding box: start and voxels."""

    start: tuple[int, ...]
    voxels: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Placed:
        """Crop a bool volume to its bounding box, which is empty for an empty mask."""
        if not mask.any():
            return cls((0,) * mask.ndim, mask[(slice(0),) * mask.ndim])
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        return cls(tuple(side.start for side in box), mask[box].copy())

    @property
    def planes(self) -> list[int]:
        """Indices along the first axis that the mask touches."""
        return [self.start[0] + int(i) for i in np.flatnonzero(self.voxels.any(axis=(1, 2)))]

    def within(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """Return the part of the mask in a box of the volume: bool of ``size``."""
        return cut(self.voxels, [a - b for a, b in zip(start, self.start, strict=True)], size)

    def union(self, other: Placed) -> Placed:
        """Return the union with another mask of the volume."""
        start = tuple(min(pair) for pair in zip(self.start, other.start, strict=True))
        stops = [[a + n for a, n in zip(mask.start, mask.voxels.shape, strict=True)] for mask in (self, other)]
        size = [max(pair) - a for pair, a in zip(zip(*stops, strict=True), start, strict=True)]
        return Placed(start, self.within(start, size) | other.within(start, size))


def compartment(rng: np.random.Generator, voxels: float) -> np.ndarray:
    """Return a tumour-like blob of about ``voxels`` voxels: bool A × B × C, its bounding box."""
    axes = rng.uniform(0.6, 1.4, 3)
    axes *= (3 * voxels / (4 * np.pi * axes.prod())) ** (1 / 3)
    half = np.ceil(1.6 * axes).astype(int) + 1
    grid = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), axis=-1)
    field = ndimage.gaussian_filter(rng.standard_normal(grid.shape[:3]), 0.35 * axes.mean())
    blob = np.linalg.norm(grid / axes, axis=-1) < 1 + 0.25 * field / field.std()
    labels, _ = ndimage.label(blob)
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return _cut(ndimage.binary_fill_holes(largest))


def compartments(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Return ``count`` compartments of 800 to 150,000 voxels, log-uniform in size."""
    sizes = np.exp(rng.uniform(np.log(800), np.log(150_000), count))
    with ThreadPoolExecutor(cpus()) as threads:
        return list(threads.map(compartment, rng.spawn(count), sizes))


def flipped(shape_ABC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the compartment, randomly flipped."""
    return np.flip(shape_ABC, tuple(np.flatnonzero(rng.random(3) < 0.5)))


def rotated(shape_ABC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the compartment, randomly flipped and rotated, in its new bounding box."""
    shape_ABC = flipped(shape_ABC, rng)
    size = int(np.ceil(np.linalg.norm(shape_ABC.shape))) + 2
    matrix = Rotation.random(rng=rng).as_matrix()
    offset = np.array(shape_ABC.shape) / 2 - 0.5 - matrix @ (np.full(3, size) / 2 - 0.5)
    return _cut(ndimage.affine_transform(shape_ABC, matrix, offset, (size,) * 3, order=0))


def healthy_mask(
    brain_XYZ: np.ndarray,
    distance_XYZ: np.ndarray,
    shapes: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw a mask over healthy tissue as a bool volume, X × Y × Z; see ``place``."""
    return place(brain_XYZ, distance_XYZ, shapes, rng).within((0, 0, 0), brain_XYZ.shape)


def place(
    brain_XYZ: np.ndarray,
    distance_XYZ: np.ndarray,
    shapes: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    vary: Callable[[np.ndarray, np.random.Generator], np.ndarray] = rotated,
) -> Placed:
    """Draw a mask over healthy tissue.

    Args:
        brain_XYZ: more than 0 in the brain; only the tried locations are read.
        distance_XYZ: distance of every voxel to the tumour mask, in voxels.
        shapes: bool compartments to choose from, not empty.
        rng: the source of all randomness.
        vary: random transform of a compartment; ``flipped`` is faster than ``rotated``.

    Returns:
        The mask: at least 75 % inside the brain, at least 5 voxels from the tumour. The one of two
        admissible places that is farther from the tumour.

    Raises:
        ValueError: no place was found in 200 attempts.
    """
    sites = rng.integers(brain_XYZ.shape, size=(50 * ATTEMPTS, 3))
    x, y, z = sites.T
    sites = sites[(brain_XYZ[x, y, z] > 0) & (distance_XYZ[x, y, z] >= MIN_DISTANCE)]
    found: list[tuple[float, Placed]] = []
    for site in sites[:ATTEMPTS]:
        shape = vary(shapes[int(rng.integers(len(shapes)))], rng)
        start = site - np.array(shape.shape) // 2
        if (start < 0).any() or (start + shape.shape > brain_XYZ.shape).any():
            continue
        box = tuple(slice(a, a + n) for a, n in zip(start, shape.shape, strict=True))
        distance = distance_XYZ[box][shape].min()
        if distance >= MIN_DISTANCE and (brain_XYZ[box][shape] > 0).mean() >= MIN_INSIDE:
            found.append((distance, Placed(tuple(int(a) for a in start), shape)))
        if len(found) == 2:
            break
    if not found:
        raise ValueError(f"no place for a healthy mask found in {ATTEMPTS} attempts: the free brain is too small")
    return max(found, key=lambda candidate: candidate[0])[1]


def _cut(blob: np.ndarray) -> np.ndarray:
    """Crop a blob to its bounding box."""
    cut: np.ndarray = blob[ndimage.find_objects(blob.astype(np.uint8))[0]]
    return cut
