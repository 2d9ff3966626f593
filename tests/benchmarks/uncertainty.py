"""Whether the spread of the samples tells where a fill is wrong: rank correlation, and error against spread.

usage: python -m tests.benchmarks.uncertainty --data-path VAL --preset PRESET [--weights FILE]
           [--table docs/uncertainty.csv] [--plot docs/uncertainty.png]

Standard deviation and absolute error are taken voxel by voxel inside the healthy mask, in [0, 1] of the scan.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from brats_inpainting.data import cases
from brats_inpainting.evaluate import examine
from brats_inpainting.infer import Inpainter
from tests.benchmarks import rows
from tests.benchmarks.panel import built

BINS = 10  # of equally many voxels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/uncertainty.csv"))
    parser.add_argument("--plot", type=Path, default=Path("docs/uncertainty.png"))
    parser.add_argument("--preset", required=True, help="one of several samples")
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    inpainter = Inpainter.load(args.weights, preset=args.preset)
    key = {"preset": args.preset, "sampling": inpainter.sampling} | rows.of(inpainter)
    for case in cases.find(args.data_path):
        if not rows.read(args.table, key | {"case": case.id}):
            rows.append(args.table, [key | row for row in measured(inpainter, case)])
            print(case.id, flush=True)
    by_spread = rows.grouped(rows.read(args.table, key), "spread")
    for (spread,), found in by_spread.items():
        rho = [float(row["rho"]) for row in found if row["tenth"] == "0"]
        print(f"Spearman's rho, {spread}: {np.mean(rho):.3f} ± {np.std(rho, ddof=1):.3f}, at least {min(rho):.3f}")
    draw(by_spread, args.plot)


def measured(inpainter, case):
    """Yield the mean spread and the root mean square error of every tenth of the voxels, by spread.

    The fill is smoothed, so the spread is taken of the samples as they come, which is the map that ``infer`` writes,
    and of the samples smoothed alike.
    """
    exam = examine(case, {})
    slab = built(case.id, exam.truth_XYZ, exam.mask_XYZ, exam.healthy_XYZ)
    stack = next(inpainter.fill([slab.scan], keep=True))
    filled_XYZ, std_XYZ = inpainter.finish(stack)
    smoothed_XYZ = np.stack(list(inpainter.single_samples(stack))).std(axis=0, ddof=1)
    scale = slab.scan.intensity.high - slab.scan.intensity.low
    error_N = np.abs(filled_XYZ - slab.truth_XYZ)[slab.healthy_XYZ] / scale
    for spread, volume_XYZ in {"as they come": std_XYZ, "smoothed": smoothed_XYZ}.items():
        std_N = volume_XYZ[slab.healthy_XYZ] / scale
        rho = float(stats.spearmanr(std_N, error_N).statistic)
        for number, tenth in enumerate(np.array_split(np.argsort(std_N), BINS)):
            std, rmse = (float(np.sqrt(np.mean(values_N[tenth] ** 2))) for values_N in (std_N, error_N))
            yield {"case": case.id, "spread": spread, "rho": rho, "tenth": number, "std": std, "rmse": rmse}


def draw(by_spread, path):
    """Draw error against spread, a line a case: on the diagonal the spread would be the error."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for axis, ((spread,), found) in zip(axes, by_spread.items(), strict=True):
        by_case = rows.grouped(found, "case").values()
        lines = np.array([[[float(row[key]) for row in tenths] for key in ("std", "rmse")] for tenths in by_case])
        for line in lines:
            axis.plot(*line, ".-", color="C0", alpha=0.4, lw=0.8)
        axis.plot(*lines.mean(axis=0), "o-", color="C1", label="mean of the cases")
        axis.axline((0, 0), slope=1, color="k", lw=0.8, ls="--", label="spread = error")
        axis.set(xlabel=f"spread of the samples, {spread}", ylabel="error (root mean square)", xlim=0, ylim=0)
        axis.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
