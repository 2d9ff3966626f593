"""Whether the spread of the samples tells where a fill is wrong: rank correlation, and error against spread.

usage: python -m tests.benchmarks.uncertainty --data-path VAL [--preset accurate] [--weights FILE]
           [--table docs/uncertainty.csv] [--plot docs/uncertainty.png]

Standard deviation and absolute error are taken voxel by voxel inside the healthy mask, in [0, 1] of the scan.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import stats
from tests.benchmarks import rows

from brats_inpainting import host
from brats_inpainting.data import cases
from brats_inpainting.data.volume import Intensity
from brats_inpainting.evaluate import examine
from brats_inpainting.infer import Inpainter

BINS = 10  # of equally many voxels


def main():
    host.settle()
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/uncertainty.csv"))
    parser.add_argument("--plot", type=Path, default=Path("docs/uncertainty.png"))
    parser.add_argument("--preset", default="accurate")
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    inpainter = Inpainter.load(args.weights, preset=args.preset)
    for case in cases.find(args.data_path):
        if not rows.has(args.table, {"case": case.id}):
            rows.append(args.table, list(measured(inpainter, case)))
            print(case.id, flush=True)
    by_case = rows.grouped(args.table, "case")
    rho = [float(found[0]["rho"]) for found in by_case.values()]
    print(f"Spearman's rho {np.mean(rho):.3f} ± {np.std(rho, ddof=1):.3f}, {min(rho):.3f} to {max(rho):.3f}")
    draw(by_case, args.plot)


def measured(inpainter, case):
    """Yield the mean spread and the root mean square error of every tenth of the voxels, by spread."""
    exam = examine(case, {})
    filled, std_XYZ, _ = inpainter.inpaint(exam.voided_XYZ, exam.mask_XYZ.astype(np.float32))
    intensity = Intensity.of(exam.voided_XYZ)
    scale = intensity.high - intensity.low
    error_N = np.abs(filled - exam.truth_XYZ)[exam.healthy_XYZ] / scale
    std_N = std_XYZ[exam.healthy_XYZ] / scale
    rho = float(stats.spearmanr(std_N, error_N).statistic)
    for number, tenth in enumerate(np.array_split(np.argsort(std_N), BINS)):
        std, rmse = (float(np.sqrt(np.mean(values_N[tenth] ** 2))) for values_N in (std_N, error_N))
        yield {"case": case.id, "rho": rho, "tenth": number, "std": std, "rmse": rmse}


def draw(by_case, path):
    """Draw error against spread, a line a case: on the diagonal the spread would be the error."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 5), layout="constrained")
    for found in by_case.values():
        axis.plot(*([float(row[key]) for row in found] for key in ("std", "rmse")), ".-", color="C0", alpha=0.4, lw=0.8)
    tenths = np.array([[[float(row[key]) for row in found] for key in ("std", "rmse")] for found in by_case.values()])
    axis.plot(*tenths.mean(axis=0), "o-", color="C1", label="mean of the cases")
    axis.axline((0, 0), slope=1, color="k", lw=0.8, ls="--", label="spread = error")
    axis.set(xlabel="spread of the samples (standard deviation)", ylabel="error (root mean square)", xlim=0, ylim=0)
    axis.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
