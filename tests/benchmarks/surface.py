"""Scores against network passes: samplers, steps, samples and noise, on the panel of panel.py.

usage: python -m tests.benchmarks.surface --data-path VAL [--table docs/surface.csv] [--plot docs/surface.png]
           [--weights FILE] [--precision fp32] [--samplers dpmpp_2m ddim heun ddpm] [--noise slerp …] [--most 1000]
           [--samples 10]

Settings that stand in the table are not run again, whatever precision its rows tell and whatever finish they lack. The
cheap ones come first; --most leaves out more steps, and --samples 1 or 4 the means of more.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from brats_inpainting.config import sampling
from brats_inpainting.infer import Inpainter
from tests.benchmarks import rows
from tests.benchmarks.panel import panel

STEPS, SAMPLES = (1, 2, 4, 8, 10, 20, 50), (1, 4, 10)
SOLVERS, NOISE = ("dpmpp_2m", "ddim", "heun"), ("independent", "shared", "slerp")
SAME_UNTIL = {"dpmpp_2m": 0, "heun": 1, "ddim": 2}  # the steps in which a solver does what DPM-Solver++ does
CHAINS = (100, 250, 1000)
FINISHES = {"filtered": {"smoothing": 1.075}, "along z": {"smoothing": (0, 0, 1.075)}, "raw": {"smoothing": 0}}
PAPERS = {"paper's": {"replace": "slices", "smoothing": 1.075}}
LINES = dict(zip(SAMPLES, (":", "--", "-"), strict=True))
AXES = {  # what lies outside, Heun's method in few steps, is in the table
    "ssim": {"ylabel": "SSIM, σ = 1.075 in all directions", "ylim": (0.5, 0.59)},
    "psnr": {"ylabel": "PSNR, dB, σ = 1.075 in all directions", "ylim": (13, 16)},
    "mse": {"ylabel": "MSE, σ = 1.075 in all directions", "ylim": (0.03, 0.055)},
    "stripes": {"ylabel": "stripe index, unfiltered", "ylim": (0.6, 3.2)},
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/surface.csv"))
    parser.add_argument("--plot", type=Path, default=Path("docs/surface.png"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--samplers", nargs="*", default=(*SOLVERS, "ddpm"))
    parser.add_argument("--noise", nargs="*", default=NOISE)
    parser.add_argument("--most", type=int, default=max(CHAINS))
    parser.add_argument("--samples", type=int, choices=SAMPLES, default=max(SAMPLES))
    args = parser.parse_args()
    loaded, slabs = Inpainter.load(args.weights, precision=args.precision), panel(args.data_path)
    key = {"weights": rows.of(loaded)["weights"]}
    for setting in settings(args.samples):
        wanted = key | {name: getattr(setting, name) for name in ("sampler", "steps", "noise")}
        asked = setting.sampler in args.samplers and setting.noise in args.noise and setting.steps <= args.most
        told = rows.read(args.table, wanted)
        if asked and max((int(row["samples"]) for row in told), default=0) < setting.samples:
            print(wanted, flush=True)
            found = measured(replace(loaded, sampling=setting), slabs)
            found = [rows.of(loaded) | wanted | row for row in found]
            rows.drop(args.table, wanted)  # of fewer samples
            rows.append(args.table, found)
    draw(rows.read(args.table, key), args.plot)


def settings(samples):
    """List every way of sampling, the cheapest first."""
    solvers = [
        sampling("fast", sampler=sampler, steps=steps, noise=noise, samples=samples)
        for sampler, steps, noise in product(SOLVERS, STEPS, NOISE)
        if steps > SAME_UNTIL[sampler]
    ]
    chains = [sampling("fast", sampler="ddpm", steps=steps, noise="independent") for steps in CHAINS]
    return sorted([*solvers, *chains], key=lambda setting: setting.passes * setting.samples)


def measured(inpainter, slabs):
    """Fill every slab, and score means of 1, 4 and 10 samples, each the average over two sets of them if there are."""
    by_case, setting = {slab.scan.id: slab for slab in slabs}, inpainter.sampling
    for stack in inpainter.fill([inpainter.stack(slab.scan, keep=True) for slab in slabs]):
        slab = by_case[stack.scan.id]
        for finish, changes in (FINISHES | (PAPERS if setting.sampler == "ddpm" else {})).items():
            finisher = replace(inpainter, sampling=setting.model_copy(update=changes))
            singles = np.stack(list(finisher.single_samples(stack)))
            for samples in (k for k in SAMPLES if k <= len(singles)):
                starts = range(0, len(singles) - samples + 1, samples)[:2]
                scores = [slab.scores(singles[start : start + samples].mean(axis=0)) for start in starts]
                told = {"finish": finish, "samples": samples, "case": slab.scan.id, "passes": samples * setting.passes}
                yield told | {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def means(table, score, **wanted):
    """Return passes and a score's mean over the cases, of the rows that are as wanted, by passes."""
    by_passes = rows.grouped(rows.matching(table, wanted), "passes").items()
    points = sorted((int(passes), np.mean([float(row[score]) for row in found])) for (passes,), found in by_passes)
    return list(zip(*points, strict=True)) or ([], [])


def draw(table, path):
    """Draw the scores by sampler with slerp, and the stripes of unfiltered fills by noise with DPM-Solver++."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(14, 8), layout="constrained")
    for axis, (score, scale) in zip(axes.flat, AXES.items(), strict=True):
        key, values, finish = ("noise", NOISE, "raw") if score == "stripes" else ("sampler", SOLVERS, "filtered")
        for (colour, value), samples in product(enumerate(values), SAMPLES):
            wanted = {"sampler": "dpmpp_2m", "noise": "slerp", "samples": samples, "finish": finish, key: value}
            style = {"color": f"C{colour}", "ls": LINES[samples], "label": f"{value}, samples: {samples}"}
            if any(drawn := means(table, score, **wanted)):
                axis.plot(*drawn, marker=".", **style)
        axis.plot(*means(table, score, sampler="ddpm", finish=finish), "k-", marker="x", label="ddpm, samples: 1")
        if score == "stripes":
            axis.axhline(np.mean([float(row["stripes_truth"]) for row in table]), color="k", lw=0.8, label="truth")
        axis.set(xscale="log", xlabel="network passes a slice", **scale)
    for axis in axes[:, 1]:
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
