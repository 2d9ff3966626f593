"""The variants that the paper's discussion (§5) names: sequential slices and consistency models, in two dimensions.

usage: python -m studies.discussion --data-path VAL --runs RUNS [--folder docs/validation] [--cases 16]

RUNS holds networks trained with the recipes sequential.yaml (also its state after 200 steps, and that of a run with
``previous: 0``, without noise on the previous slice) and consistency.yaml: sequential, sequential-200,
sequential-200-clean, consistency, each ``.safetensors``. All start from small-2, which they are compared with. Only
windows with healthy mask are filled. No filter is applied, which would hide the stripes. ``discussion.csv`` has a row
for each case and setting, ``sequence.csv`` one for each slice with its squared error, and how many slices of the mask
were filled before it in a row. Rows in the tables are skipped.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from brats_inpainting import pictures, runtime
from brats_inpainting.config import SamplingConfig
from brats_inpainting.data import cases, volume
from brats_inpainting.evaluate import read_volumes
from brats_inpainting.inpainter import Inpainter
from studies import rows
from studies.surface import Healthy, scored

TWO = {"steps": 2}
SAMPLE = {"noise": "slerp", "smoothing": 0}
SETTINGS = {
    "small-2": ("small-2", TWO),
    "sequential, up": ("sequential", TWO),
    "sequential, down": ("sequential", TWO | {"order": "down"}),
    "sequential, outward": ("sequential", TWO | {"order": "outward"}),
    "sequential, up, 200 steps": ("sequential-200", TWO),
    "sequential, up, 200 steps without noise": ("sequential-200-clean", TWO),
    "small-2, 8 steps": ("small-2", {"steps": 8}),
    "consistency, 1 step": ("consistency", {"sampler": "consistency", "steps": 1}),
    "consistency, 2 steps": ("consistency", {"sampler": "consistency", "steps": 2}),
    "small-2, 1 step": ("small-2", {"sampler": "ddim", "steps": 1}),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("docs/validation"))
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--picture", type=Path, help="draw the first case with --settings, and do nothing else")
    args = parser.parse_args()
    runtime.settle()
    scores, sequence = args.folder / "discussion.csv", args.folder / "sequence.csv"
    found = sorted(cases.find(args.data_path), key=lambda case: case.id[::-1])  # the first mask of every subject first
    if args.picture:
        draw(found[0], args)
        return
    for case in found[: args.cases]:
        for setting in args.settings:
            wanted = {"case": case.id, "setting": setting}
            if not rows.read(scores, wanted):
                score, errors = measured(case, load(setting, args.runs))
                rows.append(sequence, [wanted | row for row in errors])
                rows.append(scores, [wanted | score])
                print(case.id, setting, flush=True)


def load(setting, runs):
    name, how = SETTINGS[setting]
    path = name if name == "small-2" else runs / f"{name}.safetensors"
    loaded = Inpainter.load(path)
    return replace(loaded, sampling=SamplingConfig(**SAMPLE | how))


def draw(case, args):
    volumes = read_volumes(case, {})
    views = {"voided": volumes.voided_XYZ}
    for setting in args.settings:
        _, filled_XYZ = filled(case, volumes, load(setting, args.runs))
        views[setting] = np.where(volumes.healthy_XYZ, filled_XYZ, volumes.truth_XYZ)
    pictures.three_planes(views | {"truth": volumes.truth_XYZ}, volumes.healthy_XYZ, args.picture, title=case.id)


def filled(case, volumes, inpainter):
    """Fill the windows of a case with healthy mask; return its stack and the filled scan."""
    (stack,) = Healthy.of(inpainter, volumes).fill([volume.prepare(cases.load(case))])
    return stack, inpainter.finish(stack).volume_XYZ


def measured(case, inpainter):
    """Return the scores of a case, and a row for each slice; ``seconds`` are those of sampling."""
    volumes = read_volumes(case, {})
    stack, filled_XYZ = filled(case, volumes, inpainter)
    truth_XYZ, healthy_XYZ = volumes.truth_XYZ, volumes.healthy_XYZ
    squares_XYZ = np.square((filled_XYZ - truth_XYZ) / np.percentile(truth_XYZ, 99.5), dtype=np.float64)
    filled_before = steps(stack, healthy_XYZ.any(axis=(0, 1)), inpainter.sampling.order)
    errors = {z: float(squares_XYZ[..., z][healthy_XYZ[..., z]].mean()) for z in sorted(filled_before)}
    score = {"seconds": stack.seconds} | scored(filled_XYZ, volumes)
    return score, [{"z": z, "step": filled_before[z], "mse": mse} for z, mse in errors.items()]


def steps(stack, wanted_Z, order):
    """Return how many wanted slices in a row were filled before each wanted slice, by its index."""
    found = {}
    for tasks in stack.sequence(order):
        z = tasks[0].window.place[0]
        if wanted_Z[z]:
            found[z] = found.get(tasks[0].previous, -1) + 1
    return found


if __name__ == "__main__":
    main()
