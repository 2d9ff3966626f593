"""Whether a classifier of texture tells filled patches from real ones.

One patch of 24 voxels a side for each component of a mask, where it is deepest, and its features; a mirror image has
the same features. ``auc`` trains on all subjects but one and scores the patches of that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from brats_inpainting.pictures import white
from studies.downstream.fills import TRUTH, Subject

SIDE = 24  # voxels
SMALLEST = 500  # voxels of a component
BANDS = 6
NAMES = (TRUTH, "biharmonic", "2D fast", "3D fast", "3D realistic")
KEYS = ("case", "fill", "patch")


def measured(subject: Subject, fill: str) -> Iterator[dict[str, Any]]:
    """Yield the features of every patch."""
    image_XYZ = subject.image(fill) / white(subject.image(TRUTH))
    for number, centre in enumerate(centres(subject.mask()), 1):
        box = tuple(slice(i - SIDE // 2, i + SIDE // 2) for i in centre)
        yield {"case": subject.id, "fill": fill, "patch": number} | features(image_XYZ[box])


def centres(mask_XYZ: np.ndarray) -> list[tuple[int, ...]]:
    """Return the deepest voxel of every component of a mask, at least half a patch from the volume's faces."""
    labels_XYZ, _ = ndimage.label(mask_XYZ)
    found = []
    for label, box in enumerate(ndimage.find_objects(labels_XYZ), 1):
        part_XYZ = np.pad(labels_XYZ[box] == label, 1)
        if np.count_nonzero(part_XYZ) >= SMALLEST:
            depth_XYZ = ndimage.distance_transform_edt(part_XYZ)
            deepest = np.unravel_index(depth_XYZ.argmax(), depth_XYZ.shape)
            where = [i - 1 + side.start for i, side in zip(deepest, box, strict=True)]
            ends = [n - SIDE // 2 for n in mask_XYZ.shape]
            found.append(tuple(int(np.clip(i, SIDE // 2, end)) for i, end in zip(where, ends, strict=True)))
    return found


def features(patch: np.ndarray) -> dict[str, float]:
    """Return features of a cubic patch: moments, gradients, correlations of neighbours, and its power spectrum."""
    centred = patch - patch.mean()
    variance = float(centred.var()) + 1e-9
    found = {"mean": float(patch.mean()), "std": variance**0.5, "skew": float((centred**3).mean() / variance**1.5)}
    found["laplace"] = float(np.abs(ndimage.laplace(patch)).mean())
    for axis, name in enumerate("xyz"):
        ahead = np.moveaxis(centred, axis, 0)
        found[f"gradient_{name}"] = float(np.abs(np.diff(ahead, axis=0)).mean())
        for lag in (1, 2, 4):
            found[f"correlation_{name}{lag}"] = float((ahead[lag:] * ahead[:-lag]).mean() / variance)
    return found | spectrum(centred)


def spectrum(centred: np.ndarray) -> dict[str, float]:
    """Return the logarithm of the mean power in shells of frequency, under a Hann window."""
    side = centred.shape[0]
    hann = np.hanning(side)
    windowed = centred * hann[:, None, None] * hann[:, None] * hann
    power = np.abs(np.fft.fftn(windowed)) ** 2
    axes = np.meshgrid(*[np.fft.fftfreq(side)] * 3, indexing="ij")
    shell = np.minimum((np.sqrt(sum(axis**2 for axis in axes)) * 2 * BANDS).astype(int), BANDS - 1)
    return {f"power_{k}": float(np.log(power[shell == k].mean() + 1e-9)) for k in range(BANDS)}


def auc(real: Sequence[dict[str, str]], filled: Sequence[dict[str, str]], model: Any) -> float:
    """Return the area under the ROC curve of a classifier of scikit-learn, each subject scored by the others' model."""
    from studies.downstream.uncertainty import area

    found = [*real, *filled]
    names = [name for name in found[0] if name not in KEYS]
    table = np.array([[float(row[name]) for name in names] for row in found])
    label = np.arange(len(found)) >= len(real)
    person = np.array([row["case"].split("-")[0] for row in found])
    score = np.zeros(len(found))
    for left_out in np.unique(person):
        there = person == left_out
        score[there] = model.fit(table[~there], label[~there]).predict_proba(table[there])[:, 1]
    return area(score, label)
