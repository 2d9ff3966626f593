"""What it costs the bundled weights when scans look different: the same cases, changed, filled and scored.

usage: python -m tests.benchmarks.robustness --data-path FOLDER [--weights FILE]

The truth is changed with the scan, so that the scores say how well the changed brain was filled. What is random follows
from the case's name.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
from scipy import ndimage

from brats_inpainting import metrics
from brats_inpainting.data import cases
from brats_inpainting.evaluate import examine
from brats_inpainting.infer import Inpainter
from brats_inpainting.pictures import white


def bias(image_XYZ, rng):
    """Multiply by a smooth field, 0.7 to 1.4 for most of it."""
    field = ndimage.zoom(rng.standard_normal((4, 4, 4)), np.array(image_XYZ.shape) / 4, order=3)
    return image_XYZ * np.exp(0.17 * field / field.std())


def noise(image_XYZ, rng):
    """Add noise of 5 % of white to the tissue."""
    noisy_XYZ = image_XYZ + 0.05 * rng.standard_normal(image_XYZ.shape)
    return np.where(image_XYZ > 0, noisy_XYZ.clip(0), 0)


CHANGES = {
    "as they are": lambda image, _: image,
    "gamma 0.7": lambda image, _: image**0.7,
    "gamma 1.4": lambda image, _: image**1.4,
    "bias field": bias,
    "noise of 5 %": noise,
    "flipped left–right": lambda image, _: image[::-1],
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    inpainter = Inpainter.load(args.weights)
    scores = {name: [] for name in CHANGES}
    for case in cases.find(args.data_path):
        exam = examine(case, {})
        level, mask_XYZ, healthy_XYZ = white(exam.truth_XYZ), exam.mask_XYZ, exam.healthy_XYZ
        for name, change in CHANGES.items():
            rng = np.random.default_rng(zlib.crc32(case.id.encode()))
            truth_XYZ = np.asarray(change(exam.truth_XYZ / level, rng), np.float32)
            masks = (mask_XYZ, healthy_XYZ) if name != "flipped left–right" else (mask_XYZ[::-1], healthy_XYZ[::-1])
            voided_XYZ = np.where(masks[0], 0, truth_XYZ)
            filled_XYZ = inpainter.inpaint(voided_XYZ, masks[0].astype(np.float32)).image
            scores[name].append(metrics.score(filled_XYZ, truth_XYZ, voided_XYZ, masks[1])[:3])
        print(case.id, flush=True)
    print("\n| scans | SSIM | PSNR | MSE | mean loss of SSIM |\n|---|---|---|---|---|")
    base = np.array(scores["as they are"])
    for name, rows in scores.items():
        found = np.array(rows)
        means = "{:.4f} | {:.2f} | {:.5f}".format(*found.mean(axis=0))
        print(f"| {name} | {means} | {(base - found)[:, 0].mean():+.4f} ± {(base - found)[:, 0].std(ddof=1):.4f} |")


if __name__ == "__main__":
    main()
