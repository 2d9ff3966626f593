"""A fixed panel for choosing how to sample: four validation cases, first masks, 24 neighbouring slices of each.

Every slab is a small problem of its own: outside it the truth stands, so that the filter meets tissue at both ends,
about 3 % of what it averages. The network sees nothing of that.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image

from brats_inpainting import metrics
from brats_inpainting.data import cases, volume
from brats_inpainting.data.volume import Scan
from brats_inpainting.evaluate import examine
from brats_inpainting.infer import LPS

CASES, EVERY, SLICES = 4, 4, 24


@dataclass(frozen=True, eq=False)
class Slab:
    """The slices of one case that are filled, and the truth that they are scored against."""

    scan: Scan
    truth_XYZ: np.ndarray
    healthy_XYZ: np.ndarray

    @cached_property
    def stripes_truth(self):
        return metrics.stripe_index(self.truth_XYZ, self.healthy_XYZ)

    def scores(self, filled_XYZ):
        found = metrics.score(filled_XYZ, self.truth_XYZ, self.scan.voided_XYZ, self.healthy_XYZ)
        stripes = metrics.stripe_index(filled_XYZ, self.healthy_XYZ)
        scores = {"ssim": found.ssim, "psnr": found.psnr, "mse": found.mse}
        return scores | {"stripes": stripes, "stripes_truth": self.stripes_truth}


def panel(folder: Path) -> list[Slab]:
    """Take every fourth case, and its 24 neighbouring slices with most healthy voxels."""
    slabs = [slab(examine(case, {})) for case in cases.find(folder)[::EVERY]]
    assert [slab.healthy_XYZ.any(axis=(0, 1)).sum() for slab in slabs] == CASES * [SLICES], "not the data of the panel"
    return slabs


def slab(exam):
    voxels = np.convolve(exam.healthy_XYZ.sum(axis=(0, 1)), np.ones(SLICES), mode="valid")
    inside_Z = np.isin(np.arange(exam.mask_XYZ.shape[2]), int(voxels.argmax()) + np.arange(SLICES))
    return built(exam.id, exam.truth_XYZ, exam.mask_XYZ & inside_Z, exam.healthy_XYZ & inside_Z)


def mirrored(slab):
    """Exchange left and right."""
    return built(slab.scan.id, slab.truth_XYZ[::-1], slab.scan.mask_XYZ[::-1], slab.healthy_XYZ[::-1])


def texture(volume_XYZ, healthy_XYZ):
    """Return for x and y what the stripe index is for z: less than the truth's is blur."""
    turned = ([np.moveaxis(array, axis, 2) for array in (volume_XYZ, healthy_XYZ)] for axis in (0, 1))
    return float(np.mean([metrics.stripe_index(*arrays) for arrays in turned]))


def built(case, truth_XYZ, mask_XYZ, healthy_XYZ):
    images = (Nifti1Image(array.astype(np.float32), LPS) for array in (truth_XYZ, mask_XYZ))
    scan = volume.prepare(cases.examine(case, *images, names=("truth", "mask")))
    return Slab(scan, truth_XYZ, healthy_XYZ)
