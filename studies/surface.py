"""Scores and texture of the 3D network against network passes: samplers, steps, samples, flips and smoothing.

usage: python -m studies.surface --data-path VAL [--table docs/surface.csv] [--part 0 --parts 1]

In every validation case, only windows with healthy mask are filled. Rows in the table are skipped; --part and --parts
distribute the settings among processes.

On three cases, eight trailing steps lose more than eight even ones for the same sharpness, and sixteen even steps lose
more than eight. A Gaussian filter changes one pass by at most 0.0014 of SSIM and 0.03 dB. The presets of 2D weights
were chosen by an earlier version of this study (commit e16128c).
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brats_inpainting import metrics, runtime
from brats_inpainting.config import sampling
from brats_inpainting.data import cases, volume
from brats_inpainting.evaluate import read_volumes
from brats_inpainting.inpainter import Inpainter
from studies import rows

FINISHES = {"none": 0, "along z": (0, 0, 0.5), "0.5": 0.5}
SETTINGS = [
    ({"steps": 1, "spacing": "trailing"}, False),
    ({"steps": 1, "spacing": "trailing"}, True),
    ({"steps": 8, "spacing": "even", "samples": 4}, False),
    ({"steps": 2, "spacing": "trailing"}, False),
    ({"steps": 4, "spacing": "even"}, False),
    ({"steps": 8, "sampler": "dpmpp_2m"}, False),
    ({"steps": 8, "spacing": "trailing"}, False),
    ({"steps": 16, "spacing": "even"}, False),
    ({"steps": 4, "sampler": "heun"}, False),
    ({"steps": 2, "spacing": "trailing", "samples": 4}, False),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/surface.csv"))
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    runtime.settle()
    loaded = Inpainter.load()
    found = {case.id: case for case in cases.find(args.data_path)}
    all_volumes = [read_volumes(case, {}) for case in found.values()]
    for changes, flip in SETTINGS[args.part :: args.parts]:
        how = sampling("fast", 3, **changes)
        key = rows.network_columns(loaded) | {
            "sampler": how.sampler,
            "spacing": how.timesteps,
            "steps": how.steps,
            "flip": flip,
        }
        for volumes in all_volumes:
            wanted = key | {"case": volumes.id, "of": how.samples}
            if not rows.read(args.table, wanted):
                rows.append(
                    args.table,
                    [wanted | row for row in measured(replace(loaded, sampling=how), found[volumes.id], volumes, flip)],
                )
                print(wanted, flush=True)


def measured(inpainter, case, volumes, flip):
    """Yield the scores of the first sample, and of the mean of all, by finish."""
    scans = [scan_of(case, flipped=side) for side in (False, True)[: 1 + flip]]
    stacks = [stack for scan in scans for stack in Healthy.of(inpainter, volumes).fill([scan], keep=True)]
    for finish, sigma in FINISHES.items():
        finisher = replace(inpainter, sampling=inpainter.sampling.model_copy(update={"smoothing": sigma}))
        filled = [finisher.finish(stack) for stack in stacks]
        samples = [[*each.samples_XYZ] or [each.volume_XYZ] for each in filled]
        if flip:
            samples[1] = [sample_XYZ[::-1] for sample_XYZ in samples[1]]
        both = [np.mean(pair, axis=0) for pair in zip(*samples, strict=True)]
        for count in {1, len(both)}:
            filled_XYZ = np.mean(both[:count], axis=0)
            passes = count * len(scans) * inpainter.sampling.passes
            yield {"samples": count, "finish": finish, "passes": passes} | scored(filled_XYZ, volumes)


def scored(filled_XYZ, volumes):
    """Return the columns of the scores and the texture of a fill inside the healthy mask."""
    truth_XYZ, healthy_XYZ = volumes.truth_XYZ, volumes.healthy_XYZ
    found = metrics.score(filled_XYZ, truth_XYZ, volumes.voided_XYZ, healthy_XYZ)
    return {
        "ssim": found.ssim,
        "psnr": found.psnr,
        "mse": found.mse,
        "sharpness": sharpness(filled_XYZ, healthy_XYZ) / sharpness(truth_XYZ, healthy_XYZ),
        "stripes": metrics.stripe_index(filled_XYZ, healthy_XYZ),
        "stripes_truth": metrics.stripe_index(truth_XYZ, healthy_XYZ),
    }


@dataclass
class Healthy(Inpainter):
    """Fills only the windows that contain healthy mask."""

    healthy_XYZ: np.ndarray | None = None

    @classmethod
    def of(cls, inpainter, volumes):
        return cls(inpainter.weights, inpainter.sampling, inpainter.plan, volumes.healthy_XYZ)

    def stack(self, scan, *, keep=False):
        stack = super().stack(scan, keep=keep)
        flipped = not np.array_equal(scan.loaded.mask_XYZ & self.healthy_XYZ, self.healthy_XYZ)
        healthy_SHW = scan.frame.cut(self.healthy_XYZ[::-1] if flipped else self.healthy_XYZ)
        found = [window for window in stack.windows if window.cut(healthy_SHW).any()]
        return replace(stack, windows=found)


def scan_of(case, *, flipped):
    """Prepare a case, optionally mirrored left to right."""
    loaded = cases.load(case)
    if flipped:
        loaded = replace(loaded, image_XYZ=loaded.image_XYZ[::-1], mask_XYZ=loaded.mask_XYZ[::-1])
    return volume.prepare(loaded)


def sharpness(volume_XYZ, mask_XYZ):
    """Return the mean absolute difference of neighbouring voxels inside a mask, over the three axes."""
    found = []
    for axis in range(3):
        along_XYZ, inside_XYZ = (np.moveaxis(array, axis, 0) for array in (volume_XYZ.astype(np.float64), mask_XYZ))
        pairs = inside_XYZ[1:] & inside_XYZ[:-1]
        found.append(np.abs(np.diff(along_XYZ, axis=0))[pairs].mean())
    return float(np.mean(found))


if __name__ == "__main__":
    main()
