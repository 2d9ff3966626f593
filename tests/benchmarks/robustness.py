"""What it costs when scans look different: the same cases, changed, filled, changed back and scored.

usage: python -m tests.benchmarks.robustness --data-path VAL [--table docs/validation/robustness.csv] [--weights FILE]

Every fill is compared with the truth as it was, so that all scores have one scale; noise cannot be taken back, and the
fill of a noisy scan is compared with the truth without it. What is random follows from the case's name. Cases that
stand in the table are not run again.
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
from tests.benchmarks import rows

SCORES = ("ssim", "psnr", "mse")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/validation/robustness.csv"))
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    inpainter = Inpainter.load(args.weights)
    key = rows.of(inpainter) | {"sampling": inpainter.sampling}
    for case in cases.find(args.data_path):
        if not rows.read(args.table, key | {"case": case.id}):
            rows.append(args.table, [key | row for row in measured(inpainter, case)])
            print(case.id, flush=True)
    print("| scans | SSIM | PSNR | MSE | SSIM lost | dB lost | MSE gained |\n|" + "---|" * 7)
    by_scans = rows.grouped(rows.read(args.table, key), "scans")
    table = {name: np.array([[float(row[s]) for s in SCORES] for row in found]) for (name,), found in by_scans.items()}
    for name, scores in table.items():
        means = "{:.3f} | {:.2f} | {:.4f}".format(*scores.mean(axis=0))
        costs = (table["as they are"] - scores) * (1, 1, -1)
        told = zip(costs.mean(axis=0), costs.std(axis=0, ddof=1), ("+.3f", "+.2f", "+.4f"), strict=True)
        print(f"| {name} | {means} |", " | ".join(f"{mean:{f}} ± {std:{f[1:]}}" for mean, std, f in told), "|")


def measured(inpainter, case):
    """Yield the scores of every change."""
    exam = examine(case, {})
    level, rng = white(exam.truth_XYZ), np.random.default_rng(zlib.crc32(case.id.encode()))
    for name, (change, undo) in changes(exam.truth_XYZ.shape, rng).items():
        mask_XYZ = change(exam.mask_XYZ.astype(np.float32)) > 0  # only the flip moves what is 0
        voided_XYZ = np.where(mask_XYZ, 0, change(exam.truth_XYZ / level)).astype(np.float32)
        filled_XYZ = undo(inpainter.inpaint(voided_XYZ, mask_XYZ.astype(np.float32)).image) * level
        scores = metrics.score(filled_XYZ.astype(np.float32), exam.truth_XYZ, exam.voided_XYZ, exam.healthy_XYZ)
        yield {"scans": name, "case": case.id} | {score: getattr(scores, score) for score in SCORES}


def changes(shape, rng):
    """Return by name what changes an image in [0, 1], and what takes that back; the field is mostly 0.7 to 1.4."""
    waves = ndimage.zoom(rng.standard_normal((4, 4, 4)), np.array(shape) / 4, order=3)
    field, grain = np.exp(0.17 * waves / waves.std()), 0.05 * rng.standard_normal(shape)
    return {
        "as they are": (same, same),
        "gamma 0.7": (lambda image: image**0.7, lambda image: image ** (1 / 0.7)),
        "gamma 1.4": (lambda image: image**1.4, lambda image: image ** (1 / 1.4)),
        "bias field": (lambda image: image * field, lambda image: image / field),
        "noise of 5 %": (lambda image: np.where(image > 0, (image + grain).clip(0), 0), same),
        "flipped left–right": (flipped, flipped),
    }


def same(image):
    return image


def flipped(image):
    return image[::-1]


if __name__ == "__main__":
    main()
