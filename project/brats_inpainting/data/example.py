"""Create a complete example case from a packaged scan or a template, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from brats_inpainting import container, files
from brats_inpainting.data import masks

Brain = Literal["person", "template"]
CASE = "BraTS-GLI-00000-000"
SCAN = Path(__file__).parents[1] / "scans" / "ds002748-sub-41_T1w.nii.gz"  # CC0; see scans/README.md
SHAPE = (240, 240, 155)
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
# The same grid in the template's space, whose origin falls on voxel (119, 114, 66), as in BraTS.
TEMPLATE_AFFINE = np.array([[-1, 0, 0, 119], [0, -1, 0, 114], [0, 0, 1, -66], [0, 0, 0, 1]])
NECK = 2  # lowest slices, left empty: a brain at the edge of the image counts as cropped
WHITE = 1000  # intensity of the brain's 99.9th percentile
TUMOUR, HEALTHY = 4_000, 12_000  # approximate voxels; small, so that few slices are inpainted
MARGIN = 5  # voxels by which the challenge enlarges a tumour
DEPTH = 10  # minimum depth of both centres below the brain's surface, in voxels


def write_example(folder: Path, *, seed: int = 0, brain: Brain = "person") -> Path:
    """Write a case in the format of the challenge's training data: a healthy brain with synthetic tumour masks.

    The files are bit-identical for the same seed, brain and library versions.

    Args:
        folder: parent of the new folder ``BraTS-GLI-00000-000``, which has the challenge's five files.
        seed: seed of the masks.
        brain: ``person`` is subject 41 of OpenNeuro ds002748 (CC0), packaged in the BraTS grid, uint8, 0 to 255.
            ``template`` is the ICBM152 2009a T1 average that nilearn ships, translated to the same grid, int16,
            0 to about 1000; it is mirror-symmetric, so scores on it do not apply to patients.

    Returns:
        The case's folder.

    Raises:
        ConfigError: the folder cannot be written, or the template needs nilearn and it is not installed.
    """
    t1n_XYZ = _person() if brain == "person" else _template()
    unhealthy_XYZ, healthy_XYZ = _masks(t1n_XYZ > 0, np.random.default_rng(seed))
    mask_XYZ = unhealthy_XYZ | healthy_XYZ
    volumes = {
        "t1n": t1n_XYZ,
        "t1n-voided": t1n_XYZ * ~mask_XYZ,
        "mask": mask_XYZ.astype(np.uint8),
        "mask-healthy": healthy_XYZ.astype(np.uint8),
        "mask-unhealthy": unhealthy_XYZ.astype(np.uint8),
    }
    case = folder / CASE
    files.make_writable(case)
    for name, volume_XYZ in volumes.items():
        image = nib.Nifti1Image(volume_XYZ, AFFINE)
        image.set_qform(AFFINE, code=1)
        image.set_sform(AFFINE, code=1)
        image.header.set_xyzt_units("mm")
        nib.save(image, case / f"{CASE}-{name}.nii.gz")
    return case


def _person() -> np.ndarray:
    """Return the packaged scan: X × Y × Z, uint8, background 0."""
    return np.asarray(nib.nifti1.load(SCAN).dataobj)


def _template() -> np.ndarray:
    """Return the template in the BraTS grid: X × Y × Z, int16, background 0."""
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise container.missing("the template needs nilearn", "example") from error
    template = load_mni152_template(resolution=1)
    translated = resample_from_to(template, (SHAPE, TEMPLATE_AFFINE), order=0)  # by whole voxels
    brain_XYZ = np.asarray(translated.dataobj)
    brain_XYZ[:, :, :NECK] = 0
    return np.round(brain_XYZ * (WHITE / np.percentile(brain_XYZ[brain_XYZ > 0], 99.9))).astype(np.int16)


def _masks(brain_XYZ: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the enlarged tumour and a healthy compartment away from it, both bool X × Y × Z."""
    deep_XYZ = ndimage.binary_erosion(brain_XYZ, iterations=DEPTH)
    anywhere_XYZ = np.full(SHAPE, np.inf)
    tumour_XYZ = brain_XYZ & masks.healthy_mask(deep_XYZ, anywhere_XYZ, [masks.compartment(rng, TUMOUR)], rng)
    unhealthy_XYZ = ndimage.distance_transform_edt(~tumour_XYZ) <= MARGIN
    distance_XYZ = ndimage.distance_transform_edt(~unhealthy_XYZ)
    return unhealthy_XYZ, masks.healthy_mask(deep_XYZ, distance_XYZ, [masks.compartment(rng, HEALTHY)], rng)
