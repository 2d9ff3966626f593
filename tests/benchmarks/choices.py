"""How samples become a fill, one factor at a time, on the panel of panel.py.

usage: python -m tests.benchmarks.choices --data-path VAL [--preset fast] [--table docs/choices.csv] [--weights FILE]
           [--factor smoothing …] [--run FOLDER]

Every line changes one thing in the preset with the paper's filter, and is the mean of four seeds. --run is a training
run of the same network: the moving averages in its last state are compared too. Lines that stand in the table are not
run again.
"""

import argparse
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np

from brats_inpainting import state
from brats_inpainting.config import DEFAULT_PRESET
from brats_inpainting.data import volume
from brats_inpainting.diffusion import noise
from brats_inpainting.infer import Inpainter
from tests.benchmarks import rows
from tests.benchmarks.panel import mirrored, panel, texture

SEEDS = 4
TOLD = ("ssim", "psnr", "mse", "stripes", "stripes_truth", "texture", "texture_truth")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--preset", default=DEFAULT_PRESET)
    parser.add_argument("--table", type=Path, default=Path("docs/choices.csv"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--factor", nargs="*")
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    slabs, base = panel(args.data_path), Inpainter.load(args.weights, preset=args.preset, smoothing=1.075)
    key = {"preset": args.preset, "sampling": base.sampling} | rows.of(base)
    for factor, variant, fill in [*ways(base), *averages(base, args.run)]:
        wanted = key | {"factor": factor, "variant": variant}
        if factor in (args.factor or [factor]) and not rows.read(args.table, wanted):
            print(factor, variant, flush=True)
            runs = product(range(SEEDS), slabs)
            rows.append(args.table, [wanted | {"seed": n, "case": s.scan.id} | scored(s, fill(s, n)) for n, s in runs])
    print("| factor | variant | SSIM | PSNR | MSE | stripes | truth's | texture | truth's |\n|" + "---|" * 9)
    for group, found in rows.grouped(rows.read(args.table, key), "factor", "variant").items():
        print("|", " | ".join(group), "|", rows.means(found, *TOLD))


def scored(slab, filled_XYZ):
    textures = (texture(volume_XYZ, slab.healthy_XYZ) for volume_XYZ in (filled_XYZ, slab.truth_XYZ))
    return slab.scores(filled_XYZ) | dict(zip(("texture", "texture_truth"), textures, strict=True))


def ways(base):
    """List factor, variant, and the function that fills a slab so."""
    unchanged = cache(partial(sampled, base))  # for what only finishes otherwise
    for sigma in (0, 0.5, 1.075, 1.5):
        yield "smoothing", str(sigma), filling(base, unchanged, smoothing=sigma)
    for plane, z in ((0, 0.5), (0, 1.075), (0, 1.5), (0, 2.0), (0.5, 1.5)):
        name = f"{plane} in the plane, {z} along z" if plane else f"{z} along z only"
        yield "smoothing", name, filling(base, unchanged, smoothing=(plane, plane, z))
    low, high = base.weights.diffusion.image_range
    for name, clamp in {"[0, 1]": (low, high), "[-1, 1]": (2 * low - high, high)}.items():
        yield "images clamped to", name, filling(meaning(base, clamp=clamp))
    yield "intensities", "exact inverse", filling(base, unchanged)
    yield "intensities", "the paper's percentiles", partial(rescaled, base, unchanged)
    for distance in (2, 4, 8, 16, 32):
        yield "slices between the anchors of slerp", str(distance), partial(anchored, base, distance)
    yield "two samples", "of the scan", filling(base, samples=2)
    yield "two samples", "of the scan and its mirror image", partial(with_mirror_image, base)


def averages(base, run):
    """List the moving averages of a training run, and the network without one, as ``ways`` does."""
    if run is None:
        return
    stored, _, kept = state.read(run)
    for rate, parameters in ({0: stored["network"]} | kept).items():
        network = deepcopy(base.weights.network)
        network.load_state_dict(parameters)
        averaged = replace(base, weights=replace(base.weights, network=network))
        yield "EMA", f"{rate} at step {stored['step']}", filling(averaged)


def filling(inpainter, fill=None, **changes):
    """Return a function that fills a slab by a seed, with changed sampling; the changes are not validated.

    With ``fill`` the changed inpainter only finishes what that function fills.
    """
    changed = replace(inpainter, sampling=inpainter.sampling.model_copy(update=changes))
    fill = fill or partial(sampled, changed)
    return lambda slab, seed: changed.finish(fill(slab, seed))[0]


def sampled(inpainter, slab, seed):
    return next(inpainter.fill([inpainter.stack(slab.scan)], seed=seed))


def meaning(inpainter, **changes):
    """Change what the network's numbers mean."""
    diffusion = inpainter.weights.diffusion.model_copy(update=changes)
    return replace(inpainter, weights=replace(inpainter.weights, diffusion=diffusion))


def rescaled(inpainter, fill, slab, seed):
    """Fill, and map the intensities back as the paper does instead of exactly."""
    scan, mean_SHW = slab.scan, fill(slab, seed).mean_SHW
    smoothed_SHW = volume.smooth(np.where(scan.mask_SHW, mean_SHW, scan.image_SHW), inpainter.sampling.smoothing)
    everywhere_XYZ = scan.everywhere(np.where(scan.mask_SHW, smoothed_SHW, scan.image_SHW))
    return np.where(scan.mask_XYZ, everywhere_XYZ, scan.voided_XYZ)


def anchored(inpainter, distance, slab, seed):
    with patch.object(noise, "ANCHOR_DISTANCE", distance):
        return filling(inpainter, noise="slerp")(slab, seed)


def with_mirror_image(inpainter, slab, seed):
    own_XYZ, other_XYZ = (filling(inpainter, samples=1)(one, seed) for one in (slab, mirrored(slab)))
    return (own_XYZ + other_XYZ[::-1]) / 2


if __name__ == "__main__":
    main()
