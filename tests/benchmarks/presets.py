"""Every preset, and what was considered, on whole cases: network passes, seconds, scores, stripes and texture.

usage: python -m tests.benchmarks.presets --data-path VAL [--table docs/presets.csv] [--presets fast …]
           [--fills FOLDER] [--weights FILE] [--precision fp32]

The cheapest comes first; --fills keeps the filled scans and the spread of their samples, a sub-folder a preset. Cases
that stand in the table, and whose fills are kept if they shall be, are not filled again: a long run can be stopped.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from brats_inpainting.config import PRESETS, sampling
from brats_inpainting.data import cases, volume
from brats_inpainting.evaluate import examine, named_after
from brats_inpainting.infer import Inpainter
from tests.benchmarks import rows
from tests.benchmarks.panel import texture

CONSIDERED = {
    "one-step": sampling("fast", steps=1),
    "two-samples": sampling("fast", samples=2),
    "fast-all-directions": sampling("fast", smoothing=1.075),
    "fast-along-z-1.5": sampling("fast", smoothing=(0, 0, 1.5)),
    "ten-of-ddim": sampling("accurate", sampler="ddim", steps=4, smoothing=1.075),
    "paper-in-100": sampling("paper", steps=100),
    "realistic-ddim-4": sampling("realistic", sampler="ddim", steps=4),
}
WAYS = PRESETS | CONSIDERED
SCORES = ("ssim", "psnr", "mse", "stripe_index", "stripe_index_truth")
TOLD = ("passes", "seconds", *SCORES, "texture", "texture_truth")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/presets.csv"))
    parser.add_argument(
        "--presets", nargs="*", choices=WAYS, default=sorted(PRESETS, key=lambda name: passes(PRESETS[name]))
    )
    parser.add_argument("--fills", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    loaded = Inpainter.load(args.weights, precision=args.precision)
    keys = {name: {"preset": name, "sampling": WAYS[name]} | rows.of(loaded) for name in args.presets}
    for preset, key in keys.items():
        inpainter = replace(loaded, sampling=WAYS[preset])
        for case in cases.find(args.data_path):
            told = rows.read(args.table, key | {"case": case.id})
            kept = args.fills and args.fills / preset / f"{case.id}-t1n-inference.nii.gz"
            if not told or (kept and not kept.exists()):
                scores = scored(inpainter, case, kept)
                if not told:
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


def scored(inpainter, case, kept):
    """Fill a case from its files, and keep the fill if there is a path for it."""
    started = time.perf_counter()
    inpainting = inpainter.inpaint(case.image, case.mask)
    seconds = time.perf_counter() - started
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        inpainting.image.to_filename(kept)
        if inpainting.std is not None:
            inpainting.std.to_filename(kept.with_name(named_after(kept, "std")))
    exam = replace(examine(case, {}), fills={"filled": volume.in_lps(inpainting.image)})
    row = exam.rows()[0]
    return {"passes": passes(inpainter.sampling), "seconds": seconds} | {
        **{score: getattr(row, score) for score in SCORES},
        "texture": texture(exam.scored_tissue(exam.fills["filled"]), exam.healthy_XYZ),
        "texture_truth": texture(exam.scored_tissue(exam.truth_XYZ), exam.healthy_XYZ),
    }


if __name__ == "__main__":
    main()
