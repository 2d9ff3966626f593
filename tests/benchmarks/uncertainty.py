"""Whether the spread of the samples tells where a fill is wrong: rank correlation, and error against spread.

usage: python -m tests.benchmarks.uncertainty --data-path VAL --fills FOLDER … [--table docs/uncertainty.csv]
           [--plot docs/uncertainty.png] [--case ID]

A FOLDER holds ID-t1n-inference.nii.gz and ID-t1n-inference-std.nii.gz, as presets.py --fills keeps them. Spread and
absolute error are taken voxel by voxel inside the healthy mask, in [0, 1] of the scan, and so is the depth, the
distance from the edge of the whole mask, which goes with both. The plot shows the first folder, and maps of one case.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage, stats

from brats_inpainting import pictures
from brats_inpainting.data import cases, volume
from brats_inpainting.evaluate import examine, named_after
from tests.benchmarks import rows

BINS = 10  # of equally many voxels
CORRELATIONS = {  # Spearman's
    "rho": "spread with error",
    "rho_depth": "depth with error",
    "rho_given_depth": "spread with error, given the depth",
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--fills", type=Path, nargs="+", required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/uncertainty.csv"))
    parser.add_argument("--plot", type=Path, default=Path("docs/uncertainty.png"))
    parser.add_argument("--case", default="BraTS-GLI-90041-000")
    args = parser.parse_args()
    found = {case.id: case for case in cases.find(args.data_path)}
    pairs = product(args.fills, found.values())
    told = [{"fills": of.name, "case": case.id} | row for of, case in pairs for row in Maps.of(case, of).rows()]
    args.table.unlink(missing_ok=True)
    rows.append(args.table, told)
    for folder in args.fills:
        of_folder = rows.read(args.table, {"fills": folder.name, "tenth": 0})
        for key, meaning in CORRELATIONS.items():
            rho = [float(row[key]) for row in of_folder]
            told = f"{np.mean(rho):.2f} ± {np.std(rho, ddof=1):.2f} ({min(rho):.2f} to {max(rho):.2f})"
            print(f"{folder.name}, {len(rho)} cases, {meaning}: {told}")
    draw(rows.read(args.table, {"fills": args.fills[0].name}), Maps.of(found[args.case], args.fills[0]), args.plot)


@dataclass(frozen=True)
class Maps:
    """A case's volumes, X × Y × Z in LPS: intensities, spread and error in [0, 1] of the scan, depth in voxels."""

    truth_XYZ: np.ndarray
    filled_XYZ: np.ndarray
    spread_XYZ: np.ndarray
    error_XYZ: np.ndarray
    depth_XYZ: np.ndarray
    healthy_XYZ: np.ndarray

    @classmethod
    def of(cls, case, folder):
        exam, filled = examine(case, {}), folder / f"{case.id}-t1n-inference.nii.gz"
        filled_XYZ, std_XYZ = (
            volume.in_lps(nib.load(path)) for path in (filled, filled.with_name(named_after(filled, "std")))
        )
        intensity = volume.Intensity.of(exam.voided_XYZ)
        scale = intensity.high - intensity.low
        truth_XYZ, filled_XYZ = ((v_XYZ - intensity.low) / scale for v_XYZ in (exam.truth_XYZ, filled_XYZ))
        depth_XYZ = ndimage.distance_transform_edt(exam.mask_XYZ)
        return cls(truth_XYZ, filled_XYZ, std_XYZ / scale, abs(filled_XYZ - truth_XYZ), depth_XYZ, exam.healthy_XYZ)

    def rows(self):
        """Yield the root mean squares of spread and error of every tenth of the voxels, by spread."""
        spread_N, error_N, depth_N = (v[self.healthy_XYZ] for v in (self.spread_XYZ, self.error_XYZ, self.depth_XYZ))
        rho, rho_depth, together = (
            float(stats.spearmanr(*pair).statistic)
            for pair in ((spread_N, error_N), (depth_N, error_N), (spread_N, depth_N))
        )
        given = (rho - rho_depth * together) / np.sqrt((1 - rho_depth**2) * (1 - together**2))  # partial correlation
        told = {"rho": rho, "rho_depth": rho_depth, "rho_given_depth": float(given)}
        for number, tenth in enumerate(np.array_split(np.argsort(spread_N), BINS)):
            spread, rmse = (float(np.sqrt(np.mean(v_N[tenth] ** 2))) for v_N in (spread_N, error_N))
            yield told | {"tenth": number, "spread": spread, "rmse": rmse}


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
