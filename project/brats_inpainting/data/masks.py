"""Synthetic healthy-tissue masks: the algorithm of the BraTS local-synthesis challenge (Kofler et al. 2023).

A tumour-shaped compartment is flipped, rotated and moved to a place that lies in the brain and away from the tumour.
The challenge takes its shapes from real tumours; ours are ellipsoids perturbed by smooth random fields.
Shapes: X Y Z a volume, A B C the box of a compartment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

MIN_INSIDE = 0.75  # share of the healthy mask that must lie in the brain
MIN_DISTANCE = 5  # voxels between the healthy mask and the tumour's
ATTEMPTS = 200


class Placed(NamedTuple):
    """A mask in a volume, stored as its bounding box alone: where the box starts, and its voxels."""

    start: tuple[int, ...]
    voxels: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Placed:
        """Cut a bool volume to its box; an empty one leaves nothing."""
        if not mask.any():
            return cls((0,) * mask.ndim, mask[(slice(0),) * mask.ndim])
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        return cls(tuple(side.start for side in box), mask[box].copy())

    @property
    def planes(self) -> list[int]:
        """Indices along the first axis that the mask touches."""
        return [self.start[0] + int(i) for i in np.flatnonzero(self.voxels.any(axis=(1, 2)))]

    def plane(self, index: int, shape: tuple[int, int]) -> np.ndarray:
        """Return one plane across the first axis: bool of ``shape``."""
        plane = np.zeros(shape, bool)
        (_, y, x), cut = self.start, self.voxels[index - self.start[0]]
        plane[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
        return plane


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
    return [compartment(rng, size) for size in sizes]


def moved(shape_ABC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the compartment after random flips and a random rotation, in its new bounding box."""
    flipped = np.flip(shape_ABC, tuple(np.flatnonzero(rng.random(3) < 0.5)))
    size = int(np.ceil(np.linalg.norm(flipped.shape))) + 2
    matrix = Rotation.random(rng=rng).as_matrix()
    offset = np.array(flipped.shape) / 2 - 0.5 - matrix @ (np.full(3, size) / 2 - 0.5)
    return _cut(ndimage.affine_transform(flipped, matrix, offset, (size,) * 3, order=0))


def healthy_mask(
    brain_XYZ: np.ndarray,
    distance_XYZ: np.ndarray,
    shapes: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw a mask over healthy tissue.

    Args:
        brain_XYZ: bool, where there is brain.
        distance_XYZ: distance of every voxel to the tumour's mask, in voxels.
        shapes: bool compartments to choose from, not empty.
        rng: the source of all randomness.

    Returns:
        Bool X × Y × Z: at least 75 % inside the brain, at least 5 voxels from the tumour. Of two admissible places the
        one farther from the tumour is taken.

    Raises:
        ValueError: when no place was found in 200 attempts.
    """
    sites = rng.integers(brain_XYZ.shape, size=(50 * ATTEMPTS, 3))
    x, y, z = sites.T
    sites = sites[brain_XYZ[x, y, z] & (distance_XYZ[x, y, z] >= MIN_DISTANCE)]
    found: list[tuple[float, tuple[slice, ...], np.ndarray]] = []
    for site in sites[:ATTEMPTS]:
        shape = moved(shapes[int(rng.integers(len(shapes)))], rng)
        start = site - np.array(shape.shape) // 2
        if (start < 0).any() or (start + shape.shape > brain_XYZ.shape).any():
            continue
        box = tuple(slice(a, a + n) for a, n in zip(start, shape.shape, strict=True))
        distance = distance_XYZ[box][shape].min()
        if distance >= MIN_DISTANCE and brain_XYZ[box][shape].mean() >= MIN_INSIDE:
            found.append((distance, box, shape))
        if len(found) == 2:
            break
    if not found:
        raise ValueError(f"no place for a healthy mask found in {ATTEMPTS} attempts: the free brain is too small")
    _, box, shape = max(found, key=lambda place: place[0])
    mask = np.zeros(brain_XYZ.shape, bool)
    mask[box] = shape
    return mask


def _cut(blob: np.ndarray) -> np.ndarray:
    """Cut a blob to its bounding box."""
    cut: np.ndarray = blob[ndimage.find_objects(blob.astype(np.uint8))[0]]
    return cut
