"""Whether classifiers tell filled patches from real ones, each subject scored by a model of the others.

One patch of 24 voxels a side for each component of a mask, where it is deepest, from the truth and from the fill. Two
classifiers of scikit-learn see features of texture, which a mirror image shares; a network sees the patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from brats_inpainting.pictures import white
from studies.downstream import network
from studies.downstream.fills import TRUTH, Subject

SIDE = 24  # voxels
SMALLEST = 500  # voxels of a component
BANDS = 6
NAMES = ("biharmonic", "2D fast", "3D fast", "3D realistic")
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def measured_together(subjects: Sequence[Subject], fill: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each classifier and pair of patches: the scores of the real and of the filled one."""
    found = [(subject, number, pair) for subject in subjects for number, pair in enumerate(pairs(subject, fill), 1)]
    persons = np.array([subject.person for subject, _, _ in found])
    patches = np.array([pair for _, _, pair in found])
    for classifier, score in CLASSIFIERS.items():
        scores = left_out(patches, persons, score)
        for (subject, number, _), (real, filled) in zip(found, scores.tolist(), strict=True):
            row = {"case": subject.id, "fill": fill, "patch": number, "classifier": classifier}
            yield row | {"real": real, "filled": filled}


def pairs(subject: Subject, fill: str) -> Iterator[np.ndarray]:
    """Yield the patches of a subject, 2 X Y Z, real and filled, in units of the truth's white matter."""
    images_2XYZ = np.stack([subject.image(TRUTH), subject.image(fill)]) / white(subject.image(TRUTH))
    for centre in centres(subject.mask()):
        yield images_2XYZ[:, *(slice(i - SIDE // 2, i + SIDE // 2) for i in centre)]


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


def left_out(patches: np.ndarray, persons: np.ndarray, score: Score) -> np.ndarray:
    """Return the score of every patch, N 2, by a model of the other persons' patches.

    Args:
        patches: N 2 X Y Z, real and filled.
        persons: whose they are, N.
        score: trains on patches M X Y Z and labels M (1 for filled), and scores others.
    """
    found = np.zeros(patches.shape[:2])
    for person in np.unique(persons):
        there = persons == person
        trained, tested = (patches[where].reshape(-1, *patches.shape[2:]) for where in (~there, there))
        labels = np.tile([0, 1], len(trained) // 2)
        found[there] = score(trained, labels, tested).reshape(-1, 2)
    return found


def logistic_regression(trained: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Score by a linear model of features of texture."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _textures(make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)), trained, labels, tested)


def random_forest(trained: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Score by trees on features of texture."""
    from sklearn.ensemble import RandomForestClassifier

    return _textures(RandomForestClassifier(100, min_samples_leaf=2, random_state=0), trained, labels, tested)


def _textures(model: Any, trained: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> np.ndarray:
    seen, asked = ([features(patch) for patch in patches] for patches in (trained, tested))
    return model.fit(seen, labels).predict_proba(asked)[:, 1]


CLASSIFIERS = {
    "logistic regression": logistic_regression,
    "random forest": random_forest,
    "3D network": network.score,
}


def features(patch: np.ndarray) -> list[float]:
    """Return features of a cubic patch: moments, gradients, correlations of neighbours, and its power spectrum."""
    centred = patch - patch.mean()
    variance = float(centred.var()) + 1e-9
    found = [float(patch.mean()), variance**0.5, float((centred**3).mean() / variance**1.5)]
    found.append(float(np.abs(ndimage.laplace(patch)).mean()))
    for axis in range(3):
        ahead = np.moveaxis(centred, axis, 0)
        found.append(float(np.abs(np.diff(ahead, axis=0)).mean()))
        found += [float((ahead[lag:] * ahead[:-lag]).mean() / variance) for lag in (1, 2, 4)]
    return found + spectrum(centred)


def spectrum(centred: np.ndarray) -> list[float]:
    """Return the logarithm of the mean power in shells of frequency, under a Hann window."""
    side = centred.shape[0]
    hann = np.hanning(side)
    windowed = centred * hann[:, None, None] * hann[:, None] * hann
    power = np.abs(np.fft.fftn(windowed)) ** 2
    axes = np.meshgrid(*[np.fft.fftfreq(side)] * 3, indexing="ij")
    shell = np.minimum((np.sqrt(sum(axis**2 for axis in axes)) * 2 * BANDS).astype(int), BANDS - 1)
    return [float(np.log(power[shell == k].mean() + 1e-9)) for k in range(BANDS)]
