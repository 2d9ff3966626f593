"""What a smaller or larger window around the mask costs: scores of the bundled weights, and the time of the fills.

usage: python -m tests.benchmarks.windows --data-path FOLDER [--windows 80 96 112 144 224] [--weights FILE]

A window is a least size: it grows with the mask. The cases take turns, so that a busy machine slows all windows alike.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from brats_inpainting import metrics
from brats_inpainting.data import cases
from brats_inpainting.evaluate import examine
from brats_inpainting.infer import Inpainter


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--windows", type=int, nargs="+", default=[80, 96, 112, 144, 224])
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    loaded = Inpainter.load(args.weights)
    own = loaded.weights.diffusion.window
    inpainters = {}
    for window in sorted({own, *args.windows}):
        diffusion = loaded.weights.diffusion.model_copy(update={"window": window})
        inpainters[window] = replace(loaded, weights=replace(loaded.weights, diffusion=diffusion))
    rows = {window: [] for window in inpainters}
    for case in cases.find(args.data_path):
        exam = examine(case, {})
        for window, inpainter in inpainters.items():
            filled = inpainter.inpaint(exam.voided_XYZ, exam.mask_XYZ.astype(np.float32))
            scores = metrics.score(filled.image, exam.truth_XYZ, exam.voided_XYZ, exam.healthy_XYZ)
            rows[window].append((scores.ssim, scores.psnr, scores.mse, filled.timings["fill"]))
        print(case.id, flush=True)
    print(
        f"\n| window | SSIM | PSNR | MSE | PSNR against {own}, dB | seconds a fill | of {own}'s |" + "\n|" + 7 * "---|"
    )
    base = np.array(rows[own])
    for window, found in rows.items():
        ssim, psnr, mse, seconds = np.mean(found, axis=0)
        gain = np.array(found)[:, 1] - base[:, 1]
        share = np.median(np.array(found)[:, 3] / base[:, 3])
        print(
            f"| {window} | {ssim:.4f} | {psnr:.2f} | {mse:.5f} | {gain.mean():+.3f} ± {gain.std(ddof=1):.3f} "
            f"| {seconds:.1f} | {share:.2f} |"
        )


if __name__ == "__main__":
    main()
