"""Every preset on whole cases: network passes, seconds, scores, stripes and texture.

usage: python -m tests.benchmarks.presets --data-path VAL [--table docs/presets.csv] [--presets fast …]
           [--fills FOLDER] [--weights FILE] [--precision fp32]

The cheapest comes first; --fills keeps the filled scans and the spread of their samples, a sub-folder a preset. Cases
that stand in the table are not filled again, so that a long run can be stopped and go on.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from brats_inpainting import metrics
from brats_inpainting.config import PRESETS
from brats_inpainting.data import cases, volume
from brats_inpainting.evaluate import examine
from brats_inpainting.infer import Inpainter
from tests.benchmarks import rows

SCORES = ("ssim", "psnr", "mse", "stripe_index", "stripe_index_truth")
TOLD = ("passes", "seconds", *SCORES, "texture", "texture_truth")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/presets.csv"))
    parser.add_argument("--presets", nargs="*", default=sorted(PRESETS, key=lambda name: passes(PRESETS[name])))
    parser.add_argument("--fills", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    loaded = Inpainter.load(args.weights, precision=args.precision)
    keys = {name: {"preset": name, "sampling": PRESETS[name]} | rows.of(loaded) for name in args.presets}
    for preset, key in keys.items():
        inpainter = replace(loaded, sampling=PRESETS[preset])
        for case in cases.find(args.data_path):
            if not rows.read(args.table, key | {"case": case.id}):
                scores = scored(inpainter, case, args.fills and args.fills / preset)
                rows.append(args.table, [key | {"case": case.id} | scores])
                print(preset, case.id, flush=True)
    print(
        "| preset | cases | passes | seconds | SSIM | PSNR | MSE | stripes | truth's | texture | truth's |\n|"
        + "---|" * 11
    )
    for preset, key in keys.items():
        if found := rows.read(args.table, key):
            print(f"| {preset} | {len(found)} |", rows.means(found, *TOLD))


def passes(how):
    return how.passes * how.samples


def scored(inpainter, case, folder):
    """Fill a case from its files, and keep the fill if there is a folder for it."""
    started = time.perf_counter()
    inpainting = inpainter.inpaint(case.image, case.mask)
    seconds = time.perf_counter() - started
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for what, image in {"inference": inpainting.image, "std": inpainting.std}.items():
            if image is not None:
                image.to_filename(folder / f"{case.id}-t1n-{what}.nii.gz")
    exam = replace(examine(case, {}), fills={"filled": volume.in_lps(inpainting.image)})
    row = exam.rows()[0]
    return {"passes": passes(inpainter.sampling), "seconds": seconds} | {
        **{score: getattr(row, score) for score in SCORES},
        "texture": texture(exam, exam.fills["filled"]),
        "texture_truth": texture(exam, exam.truth_XYZ),
    }


def texture(exam, volume_XYZ):
    """Return for x and y what the stripe index is for z: less than the truth's is blur."""
    pair = exam.scored_tissue(volume_XYZ), exam.healthy_XYZ
    turned = ([np.moveaxis(array, axis, 2) for array in pair] for axis in (0, 1))
    return float(np.mean([metrics.stripe_index(*arrays) for arrays in turned]))


if __name__ == "__main__":
    main()
