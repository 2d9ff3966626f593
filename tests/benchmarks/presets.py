"""Every preset on whole cases: network passes, seconds, scores and stripes.

usage: python -m tests.benchmarks.presets --data-path VAL [--table docs/presets.csv] [--presets fast …]
           [--weights FILE] [--precision fp32]

Cases that stand in the table are not filled again, so that a long run can be stopped and go on.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from tests.benchmarks import rows

from brats_inpainting import host
from brats_inpainting.config import PRESETS, sampling
from brats_inpainting.data import cases
from brats_inpainting.evaluate import examine
from brats_inpainting.infer import Inpainter

SCORES = ("ssim", "psnr", "mse", "stripe_index", "stripe_index_truth")


def main():
    host.settle()
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/presets.csv"))
    parser.add_argument("--presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    loaded = Inpainter.load(args.weights, precision=args.precision)
    for preset in args.presets:
        inpainter = replace(loaded, sampling=sampling(preset))
        for case in cases.find(args.data_path):
            wanted = {"preset": preset, "case": case.id}
            if not rows.has(args.table, wanted):
                rows.append(args.table, [wanted | scored(inpainter, case)])
                print(wanted, flush=True)
    print("| preset | cases | passes | seconds | SSIM | PSNR | MSE | stripes | truth's |\n|" + "---|" * 9)
    for (preset,), found in rows.grouped(args.table, "preset").items():
        print(f"| {preset} | {len(found)} |", rows.means(found, "passes", "seconds", *SCORES))


def scored(inpainter, case):
    exam = examine(case, {})
    started = time.perf_counter()
    filled = inpainter.inpaint(exam.voided_XYZ, exam.mask_XYZ.astype(np.float32)).image
    seconds = time.perf_counter() - started
    found = replace(exam, fills={"filled": filled}).rows()[0]
    passes = inpainter.sampling.passes * inpainter.sampling.samples
    return {"passes": passes, "seconds": seconds} | {score: getattr(found, score) for score in SCORES}


if __name__ == "__main__":
    main()
