"""Whether the spread of the samples tells where a fill is wrong: rank correlation, and error against spread.

usage: python -m tests.benchmarks.uncertainty --data-path VAL --fills FOLDER [--table docs/uncertainty.csv]
           [--plot docs/uncertainty.png] [--case ID]

FOLDER holds ID-t1n-inference.nii.gz and ID-t1n-std.nii.gz, as presets.py --fills keeps them. Spread and absolute error
are taken voxel by voxel inside the healthy mask, in [0, 1] of the scan. The plot shows the maps of one case too.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import stats

from brats_inpainting import pictures
from brats_inpainting.data import cases, volume
from brats_inpainting.evaluate import examine
from tests.benchmarks import rows

BINS = 10  # of equally many voxels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--fills", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/uncertainty.csv"))
    parser.add_argument("--plot", type=Path, default=Path("docs/uncertainty.png"))
    parser.add_argument("--case", default="BraTS-GLI-90041-000")
    args = parser.parse_args()
    found = {case.id: Maps.of(case, args.fills) for case in cases.find(args.data_path)}
    args.table.unlink(missing_ok=True)
    rows.append(args.table, [{"case": name} | row for name, maps in found.items() for row in maps.tenths()])
    rho = [maps.rho() for maps in found.values()]
    print(
        f"Spearman's rho of {len(rho)} cases: {np.mean(rho):.3f} ± {np.std(rho, ddof=1):.3f}, at least {min(rho):.3f}"
    )
    draw(rows.read(args.table, {}), found[args.case], args.plot)


@dataclass(frozen=True)
class Maps:
    """A fill's volumes in [0, 1] of the scan, X × Y × Z in LPS: the spread of its samples, and its absolute error."""

    truth_XYZ: np.ndarray
    filled_XYZ: np.ndarray
    spread_XYZ: np.ndarray
    error_XYZ: np.ndarray
    healthy_XYZ: np.ndarray

    @classmethod
    def of(cls, case, folder):
        exam = examine(case, {})
        images = (nib.load(folder / f"{case.id}-t1n-{what}.nii.gz") for what in ("inference", "std"))
        filled_XYZ, std_XYZ = (volume.in_lps(image) for image in images)
        intensity = volume.Intensity.of(exam.voided_XYZ)
        truth_XYZ, filled_XYZ = (
            (v - intensity.low) / (intensity.high - intensity.low) for v in (exam.truth_XYZ, filled_XYZ)
        )
        spread_XYZ = std_XYZ / (intensity.high - intensity.low)
        return cls(truth_XYZ, filled_XYZ, spread_XYZ, abs(filled_XYZ - truth_XYZ), exam.healthy_XYZ)

    @property
    def inside(self):
        return self.spread_XYZ[self.healthy_XYZ], self.error_XYZ[self.healthy_XYZ]

    def rho(self):
        return float(stats.spearmanr(*self.inside).statistic)

    def tenths(self):
        """Yield the root mean squares of spread and error of every tenth of the voxels, by spread."""
        spread_N, error_N = self.inside
        for number, tenth in enumerate(np.array_split(np.argsort(spread_N), BINS)):
            spread, rmse = (float(np.sqrt(np.mean(values_N[tenth] ** 2))) for values_N in (spread_N, error_N))
            yield {"rho": self.rho(), "tenth": number, "spread": spread, "rmse": rmse}


def draw(table, maps, path):
    """Draw error against spread, a line a case, and the maps of one; on the diagonal the spread would be the error."""
    figure = pictures.figure((16, 3.6), layout="constrained")
    axis, *others = figure.subplots(1, 5, width_ratios=[1.4, 1, 1, 1, 1])
    by_case = rows.grouped(table, "case").values()
    lines = np.array([[[float(row[key]) for row in found] for key in ("spread", "rmse")] for found in by_case])
    for line in lines:
        axis.plot(*line, ".-", color="C0", alpha=0.4, lw=0.8)
    axis.plot(*lines.mean(axis=0), "o-", color="C1", label=f"mean of {len(lines)} cases")
    axis.axline((0, 0), slope=1, color="k", lw=0.8, ls="--", label="spread = error")
    axis.set(xlabel="spread of the samples", ylabel="error (root mean square)", xlim=0, ylim=0)
    axis.legend()
    plane = pictures.Plane.through(maps.healthy_XYZ, maps.truth_XYZ > 0, "axial")
    views = {
        "truth": (maps.truth_XYZ, "gray", 1),
        "fill": (maps.filled_XYZ, "gray", 1),
        "spread": (maps.spread_XYZ * maps.healthy_XYZ, "inferno", 0.06),
        "absolute error": (maps.error_XYZ * maps.healthy_XYZ, "inferno", 0.3),
    }
    for axis, (name, (volume_XYZ, colours, brightest)) in zip(others, views.items(), strict=True):
        shown = axis.imshow(plane.cut(volume_XYZ), cmap=colours, vmin=0, vmax=brightest)
        figure.colorbar(shown, ax=axis, location="bottom", shrink=0.7)
        axis.set_title(name)
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
