"""Cost of filling at another resolution than 1 mm: scores of the fills of resampled scans.

usage: python -m studies.resolution --data-path VAL [--table docs/validation/resolution.csv]

The scan, its truth and the healthy mask are brought to each resolution by scikit-image (cubic, anti-aliased; nearest
for the mask), and only that mask is filled: in the scan as it is, resampled to 1 mm inside, and, for comparison, in
the original of 1 mm, whose fill is then brought to that resolution. All are scored against the truth there. Cases in
the table are skipped.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from skimage.transform import resize

from brats_inpainting import metrics, runtime
from brats_inpainting.data import cases
from brats_inpainting.evaluate import read_volumes
from brats_inpainting.inpainter import Inpainter
from studies import rows

RESOLUTIONS = {"0.8": (0.8, 0.8, 0.8), "1.5": (1.5, 1.5, 1.5), "1 × 1 × 3": (1, 1, 3)}
SCORES = ("ssim", "psnr", "mse")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/validation/resolution.csv"))
    args = parser.parse_args()
    runtime.settle()
    inpainter = Inpainter.load()
    key = rows.network_columns(inpainter)
    for case in cases.find(args.data_path):
        if not rows.read(args.table, key | {"case": case.id}):
            rows.append(args.table, [key | row for row in measured(inpainter, case)])
            print(case.id, flush=True)
    print("| voxels in mm | fill | SSIM | PSNR | MSE |\n|" + "---|" * 5)
    for (mm, fill), found in rows.grouped(rows.read(args.table, key), "mm", "fill").items():
        means = np.mean([[float(row[score]) for score in SCORES] for row in found], axis=0)
        print(f"| {mm} | {fill} |" + " {:.3f} | {:.2f} | {:.4f} |".format(*means))


def measured(inpainter, case):
    """Yield the scores at every resolution."""
    volumes = read_volumes(case, {})
    truth_XYZ, healthy_XYZ = volumes.truth_XYZ, volumes.healthy_XYZ
    at_1_mm_XYZ = filled(inpainter, truth_XYZ, healthy_XYZ, (1, 1, 1))
    as_it_is = replace(inpainter, sampling=inpainter.sampling.model_copy(update={"resample": False}))
    for name, spacing in RESOLUTIONS.items():
        there_XYZ, mask_XYZ = brought(truth_XYZ, spacing), brought(healthy_XYZ, spacing)
        fills = {
            "at 1 mm": brought(at_1_mm_XYZ, spacing),
            "resampled inside": filled(inpainter, there_XYZ, mask_XYZ, spacing),
            "as it is": filled(as_it_is, there_XYZ, mask_XYZ, spacing),
        }
        for fill, filled_XYZ in fills.items():
            voided_XYZ = np.where(mask_XYZ, 0, there_XYZ)
            found = metrics.score(filled_XYZ, there_XYZ, voided_XYZ, mask_XYZ)
            yield {"case": case.id, "mm": name, "fill": fill} | {score: getattr(found, score) for score in SCORES}


def brought(volume_XYZ, spacing):
    """Bring a volume of 1 mm to another voxel size."""
    shape = tuple(round(n / side) for n, side in zip(volume_XYZ.shape, spacing, strict=True))
    if volume_XYZ.dtype == bool:
        return resize(volume_XYZ, shape, order=0, anti_aliasing=False)
    found_XYZ = resize(volume_XYZ.astype(np.float32), shape, order=3, anti_aliasing=True, preserve_range=True)
    return np.where(brought(volume_XYZ > 0, spacing), found_XYZ.clip(0), 0).astype(np.float32)


def filled(inpainter, image_XYZ, mask_XYZ, spacing):
    """Fill an LPS volume of a voxel size."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1])
    voided_XYZ = np.where(mask_XYZ, 0, image_XYZ).astype(np.float32)
    images = (nib.Nifti1Image(voided_XYZ, affine), nib.Nifti1Image(mask_XYZ.astype(np.uint8), affine))
    return np.asarray(inpainter.inpaint(*images).image.dataobj)


if __name__ == "__main__":
    main()
