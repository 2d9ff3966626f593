"""The tools: ANTs (antspyx) and dipy, called on arrays. Needs the extra ``studies``.

Arrays are X Y Z in LPS, 1 mm, with the origin of BraTS geometry, which is ITK's own convention. ANTs runs on one thread
with a fixed seed: only then does it give the same result twice.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")  # read when ants is imported

import ants
import numpy as np
from scipy import ndimage
from skimage.transform import resize

ORIGIN = (0.0, -239.0, 0.0)
COARSE = 2  # mm, of registration


def brain(image_XYZ: np.ndarray) -> np.ndarray:
    """Return the voxels that are not background, as the 8-bit scans have it, bool."""
    return image_XYZ >= 0.5


def segment(tool: str, image_XYZ: np.ndarray, *, mm: float, seed: int = 0) -> np.ndarray:
    """Segment a skull-stripped T1 into three tissues.

    Args:
        tool: name in ``SEGMENTERS``.
        image_XYZ: the scan, 0 in the background.
        mm: voxel size at which the tool works; every voxel there is the mean of the tissue in it.
        seed: of Atropos: 0 is fixed, 1 random.

    Returns:
        Classes at 1 mm (nearest neighbour), uint8: 1 CSF, 2 grey matter, 3 white matter, 0 background.
    """
    brain_XYZ = brain(image_XYZ)
    there_XYZ = np.where(brain_XYZ, image_XYZ, 0)
    if mm != 1:
        shape = [round(n / mm) for n in image_XYZ.shape]
        values_XYZ, shares_XYZ = (resize(a, shape, order=1) for a in (there_XYZ, brain_XYZ.astype(np.float32)))
        there_XYZ = np.where(shares_XYZ > 0.01, values_XYZ / np.maximum(shares_XYZ, 0.01), 0)
    (box,) = ndimage.find_objects((there_XYZ > 0).astype(np.uint8))
    found_XYZ = np.zeros(there_XYZ.shape, np.uint8)
    found_XYZ[box] = SEGMENTERS[tool](np.ascontiguousarray(there_XYZ[box], dtype=np.float32), seed)
    return found_XYZ if mm == 1 else resize(found_XYZ, image_XYZ.shape, order=0) * brain_XYZ


def _atropos(image_XYZ: np.ndarray, seed: int) -> np.ndarray:
    """ANTs Atropos: k-means, then five iterations with a Markov field."""
    image, mask = ants.from_numpy(image_XYZ), ants.from_numpy((image_XYZ > 0).astype(np.float32))
    with _scratch():
        return ants.atropos(a=image, x=mask, i="kmeans[3]", m="[0.1,1x1x1]", c="[5,0]", r=seed)["segmentation"].numpy()


def _hmrf(image_XYZ: np.ndarray, _seed: int) -> np.ndarray:
    """Hidden Markov random field of dipy, five iterations."""
    from dipy.segment.tissue import TissueClassifierHMRF

    _, found, _ = TissueClassifierHMRF(verbose=False).classify(image_XYZ.astype(np.float64), 3, 0.1, max_iter=5)
    return found * (image_XYZ > 0)


SEGMENTERS = {"Atropos": _atropos, "HMRF": _hmrf}


def register(
    image_XYZ: np.ndarray,
    *,
    iterations: tuple[int, ...],
    seed: int = 1,
    left_out_XYZ: np.ndarray | None = None,
) -> Registration:
    """Register a scan to the MNI152 template by ANTs: affine, then SyN, both of mutual information, at 2 mm.

    Args:
        image_XYZ: the scan, the moving image.
        iterations: of SyN at 8, 4 and 2 mm.
        seed: of the sampling of the affine metric.
        left_out_XYZ: cost-function masking: voxels that no stage may look at.
    """
    ants.config.set_ants_deterministic(on=True, seed_value=seed)
    fixed, moving = template(), ants.resample_image(_image(image_XYZ), (COARSE,) * 3, False, 0)
    options = {}
    if left_out_XYZ is not None:
        mask = ants.resample_image(_image((~left_out_XYZ).astype(np.float32)), (COARSE,) * 3, False, 1)
        options = {"moving_mask": mask, "mask_all_stages": True}
    with _scratch() as folder:
        found = ants.registration(fixed, moving, "SyN", outprefix=f"{folder}/", reg_iterations=iterations, **options)
        composed = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=f"{folder}/all")
        return Registration(ants.image_read(composed).numpy(), _affine(found["fwdtransforms"][1]))


class Registration:
    """Where the template's voxels are in the scan: displacements in mm, X Y Z 3."""

    def __init__(self, displacement_XYZ3: np.ndarray, affine: np.ndarray) -> None:
        """Keep the whole displacement, and the affine part, 3 × 4 in mm."""
        self.displacement_XYZ3, self.affine = displacement_XYZ3, affine

    @property
    def affine_XYZ3(self) -> np.ndarray:
        """The displacement of the affine stage alone."""
        points_XYZ3 = points(template())
        return points_XYZ3 @ self.affine[:, :3].T + self.affine[:, 3] - points_XYZ3

    def carry(self, labels_XYZ: np.ndarray) -> np.ndarray:
        """Return a scan's labels at the template's voxels, nearest neighbour; 0 outside the template's brain."""
        where_XYZ3 = points(template()) + self.displacement_XYZ3 - ORIGIN
        found_XYZ = ndimage.map_coordinates(labels_XYZ, np.moveaxis(where_XYZ3, -1, 0), order=0)
        return found_XYZ * (template().numpy() > 0)


def points(image: ants.ANTsImage) -> np.ndarray:
    """Return the positions of the voxels of an unrotated image, in mm, X Y Z 3."""
    steps = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
    return (steps * image.spacing + image.origin).astype(np.float32)


@cache
def template() -> ants.ANTsImage:
    """Return nilearn's MNI152 template (2009a, skull-stripped) at 2 mm, in LPS."""
    from nilearn.datasets import load_mni152_template

    found = load_mni152_template(resolution=COARSE)
    last = np.array([*np.array(found.shape[:2]) - 1, 0, 1])
    origin = (found.affine @ last)[:3] * (-1, -1, 1)
    array = found.get_fdata(dtype=np.float32)[::-1, ::-1]
    array = np.where(array > 0.01, array, 0)  # its resampling leaves traces of 1e-6 in the background
    return ants.from_numpy(array, origin=tuple(origin), spacing=(COARSE,) * 3)


def bias(image_XYZ: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """Return the logarithm of N4's bias field, X Y Z; 0 outside a box, which holds the brain and the mask."""
    there_XYZ = image_XYZ[box]
    with _scratch():
        image, mask = _image(np.where(brain(there_XYZ), there_XYZ, 0)), _image(brain(there_XYZ))
        found = ants.n4_bias_field_correction(image, mask=mask, return_bias_field=True)
    field_XYZ = np.zeros(image_XYZ.shape, np.float32)
    field_XYZ[box] = np.log(np.maximum(found.numpy(), 1e-6))
    return field_XYZ


def _image(array_XYZ: np.ndarray) -> ants.ANTsImage:
    return ants.from_numpy(array_XYZ.astype(np.float32), origin=ORIGIN, spacing=(1.0, 1.0, 1.0))


def _affine(path: str) -> np.ndarray:
    """Read an ITK affine transform as 3 × 4."""
    read = ants.read_transform(path)
    matrix, shift = read.parameters[:9].reshape(3, 3), read.parameters[9:]
    centre = np.asarray(read.fixed_parameters)
    return np.column_stack([matrix, shift + centre - matrix @ centre])


@contextmanager
def _scratch() -> Iterator[str]:
    """Let ANTs leave its temporary files in a folder that is removed."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = str(Path(folder))
        try:
            yield folder
        finally:
            tempfile.tempdir = before
