"""How samples become a fill, one factor at a time, on the panel of panel.py.

usage: python -m tests.benchmarks.choices --data-path VAL [--preset fast] [--table docs/choices.csv] [--weights FILE]
           [--run FOLDER]

Every line changes one thing in the preset. --run is a training run of the same network: the moving averages in its
last state are compared too. Lines that stand in the table are not run again.
"""

import argparse
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from tests.benchmarks import rows
from tests.benchmarks.panel import mirrored, panel

from brats_inpainting import host, state
from brats_inpainting.config import DEFAULT_PRESET
from brats_inpainting.data import volume
from brats_inpainting.diffusion import noise
from brats_inpainting.infer import Inpainter


def main():
    host.settle()
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--preset", default=DEFAULT_PRESET)
    parser.add_argument("--table", type=Path, default=Path("docs/choices.csv"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    slabs, base = panel(args.data_path), Inpainter.load(args.weights, preset=args.preset)
    for factor, variant, fill in [*ways(base), *averages(base, args.run)]:
        wanted = {"preset": args.preset, "factor": factor, "variant": variant}
        if not rows.has(args.table, wanted):
            rows.append(args.table, [wanted | {"case": s.scan.id} | s.scores(fill(s)) for s in slabs])
    print("| preset | factor | variant | SSIM | PSNR | MSE | stripes | truth's |\n|" + "---|" * 8)
    for group, found in rows.grouped(args.table, "preset", "factor", "variant").items():
        print("|", " | ".join(group), "|", rows.means(found, "ssim", "psnr", "mse", "stripes", "stripes_truth"))


def ways(base):
    """List factor, variant, and the function that fills a slab so."""
    for sigma in (0, 0.5, 1.075):
        yield "smoothing", str(sigma), filling(base, smoothing=sigma)
    yield "smoothing", "1.075 along z only", filling(base, smoothing=(0, 0, 1.075))
    low, high = base.weights.diffusion.image_range
    for name, clamp in {"[0, 1]": (low, high), "[-1, 1]": (2 * low - high, high)}.items():
        yield "images clamped to", name, filling(meaning(base, clamp=clamp))
    yield "intensities", "exact inverse", filling(base)
    yield "intensities", "the paper's percentiles", lambda slab: rescaled(base, slab)
    for distance in (2, 4, 8, 16, 32):
        yield "slices between the anchors of slerp", str(distance), lambda slab, d=distance: anchored(base, d, slab)
    yield "two samples", "of the scan", filling(base, samples=2)
    yield "two samples", "of the scan and its mirror image", lambda slab: with_mirror_image(base, slab)


def averages(base, run):
    """List the moving averages of a training run, and the network without one, as ``ways`` does."""
    if run is None:
        return
    stored, _, kept = state.read(run)
    for rate, parameters in ({0: stored["network"]} | kept).items():
        network = deepcopy(base.weights.network)
        network.load_state_dict(parameters)
        yield "EMA", str(rate), filling(replace(base, weights=replace(base.weights, network=network)))


def filling(inpainter, **changes):
    """Return a function that fills a slab, with changed sampling; the changes are not validated."""
    changed = replace(inpainter, sampling=inpainter.sampling.model_copy(update=changes))
    return lambda slab: changed.finish(sampled(changed, slab))[0]


def sampled(inpainter, slab):
    return next(inpainter.fill([slab.scan]))


def meaning(inpainter, **changes):
    """Change what the network's numbers mean."""
    diffusion = inpainter.weights.diffusion.model_copy(update=changes)
    return replace(inpainter, weights=replace(inpainter.weights, diffusion=diffusion))


def rescaled(inpainter, slab):
    """Take the inside from the paper's rescaling of the whole volume."""
    stack = sampled(inpainter, slab)
    everywhere_XYZ = slab.scan.everywhere(volume.smooth(stack.mean_HWS, inpainter.sampling.smoothing))
    return np.where(slab.scan.mask_XYZ, everywhere_XYZ, slab.scan.voided_XYZ)


def anchored(inpainter, distance, slab):
    with patch.object(noise, "ANCHOR_DISTANCE", distance):
        return filling(inpainter)(slab)


def with_mirror_image(inpainter, slab):
    own_XYZ, other_XYZ = (filling(inpainter)(one) for one in (slab, mirrored(slab)))
    return (own_XYZ + other_XYZ[::-1]) / 2


if __name__ == "__main__":
    main()
