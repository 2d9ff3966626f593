"""Robustness to changes of intensity and position: scores of fills of transformed scans.

usage: python -m studies.robustness --data-path VAL [--weights FILE] [--cases 90041-000 …]
           [--table docs/validation/robustness.csv]

Only the healthy mask is filled. Changes of intensity are inverted before a fill is scored against the original truth,
except noise: the fill of a noisy scan is compared with the truth without noise. Truth and masks move with a moved
scan, and the fill is scored in that position, in a volume of the original size. Random numbers are seeded by the
case's name. Cases in the table are skipped.
"""

import argparse
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brats_inpainting import metrics, runtime
from brats_inpainting.data import cases
from brats_inpainting.evaluate import read_volumes
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.pictures import white
from studies import rows

SCORES = ("ssim", "psnr", "mse")
CASES = ("90041-000", "90052-001", "90065-001")  # their healthy masks fit into one box each
ROOM = 48  # voxels added to every side before a scan is moved
CROPPED, SHIFTED = 30, 30


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/validation/robustness.csv"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cases", nargs="*", default=CASES)
    args = parser.parse_args()
    runtime.settle()
    inpainter = Inpainter.load(args.weights)
    key = rows.network_columns(inpainter) | {"sampling": inpainter.sampling}
    for case in cases.find(args.data_path):
        if case.id.endswith(tuple(args.cases)) and not rows.read(args.table, key | {"case": case.id}):
            rows.append(args.table, [key | row for row in measured(inpainter, case)])
            print(case.id, flush=True)
    print("| scans | SSIM | PSNR | MSE | SSIM lost | dB lost |\n|" + "---|" * 6)
    by_scans = rows.grouped(rows.read(args.table, key), "scans")
    table = {name: np.array([[float(row[s]) for s in SCORES] for row in found]) for (name,), found in by_scans.items()}
    for name, scores in table.items():
        means = "{:.3f} | {:.2f} | {:.4f}".format(*scores.mean(axis=0))
        print(f"| {name} | {means} | {{:+.3f}} | {{:+.2f}} |".format(*(table["as they are"] - scores).mean(axis=0)))


def measured(inpainter, case):
    """Yield the scores of every change."""
    volumes = read_volumes(case, {})
    truth_XYZ, healthy_XYZ = volumes.truth_XYZ, volumes.healthy_XYZ
    level, rng = white(truth_XYZ), np.random.default_rng(zlib.crc32(case.id.encode()))
    for name, (change, undo) in intensities(truth_XYZ.shape, rng).items():
        changed_XYZ = change(truth_XYZ / level).astype(np.float32)
        filled_XYZ = undo(filled(inpainter, changed_XYZ, healthy_XYZ)) * level
        yield {"scans": name, "case": case.id} | scored(filled_XYZ, truth_XYZ, healthy_XYZ)
    for name, (move, resize) in moves(truth_XYZ).items():
        moved_XYZ, mask_XYZ = move(truth_XYZ, order=1), move(healthy_XYZ.astype(np.float32), order=0) > 0
        filled_XYZ = filled(inpainter, moved_XYZ, mask_XYZ)
        scores = scored(*(np.ascontiguousarray(resize(volume)) for volume in (filled_XYZ, moved_XYZ, mask_XYZ)))
        yield {"scans": name, "case": case.id} | scores


def filled(inpainter, image_XYZ, mask_XYZ):
    return inpainter.inpaint(np.where(mask_XYZ, 0, image_XYZ), mask_XYZ.astype(np.float32)).image


def scored(filled_XYZ, truth_XYZ, mask_XYZ):
    voided_XYZ = np.where(mask_XYZ, 0, truth_XYZ)
    found = metrics.score(filled_XYZ.astype(np.float32), truth_XYZ, voided_XYZ, mask_XYZ)
    return {score: getattr(found, score) for score in SCORES}


def intensities(shape, rng):
    """Return by name an intensity transform of images in [0, 1] and its inverse; the field is mostly 0.7 to 1.4."""
    waves = ndimage.zoom(rng.standard_normal((4, 4, 4)), np.array(shape) / 4, order=3)
    field, grain = np.exp(0.17 * waves / waves.std()), 0.05 * rng.standard_normal(shape)
    return {
        "as they are": (same, same),
        "gamma 0.7": (lambda image: image**0.7, lambda image: image ** (1 / 0.7)),
        "gamma 1.4": (lambda image: image**1.4, lambda image: image ** (1 / 1.4)),
        "bias field": (lambda image: image * field, lambda image: image / field),
        "noise of 5 %": (lambda image: np.where(image > 0, (image + grain).clip(0), 0), same),
    }


def moves(truth_XYZ):
    """Return by name a spatial transform, which takes an interpolation order, and one that restores the size."""
    cut = int(np.flatnonzero(truth_XYZ.any(axis=(0, 1)))[0]) + CROPPED
    found = {
        "left and right swapped": (lambda image, order: image[::-1], same),  # noqa: ARG005 (needs no interpolation)
        f"shifted by {SHIFTED} voxels": (
            lambda image, order: np.roll(padded(image), SHIFTED, axis=(0, 1, 2)),  # noqa: ARG005
            lambda image: inner(np.roll(image, -SHIFTED, axis=(0, 1, 2))),
        ),
        f"lowest {CROPPED} slices cut off": (
            lambda image, order: image[:, :, cut:],  # noqa: ARG005
            lambda image: np.pad(image, ((0, 0), (0, 0), (cut, 0))),
        ),
    }
    for degrees in (15, 30):
        for axis in "xyz":
            found[f"rotated by {degrees}° about {axis}"] = partial(rotated, axis=axis, degrees=degrees), inner
    return found


def rotated(image, *, order, axis, degrees):
    """Rotate a volume about its centre."""
    image = padded(image)
    matrix = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    centre = np.array(image.shape) / 2 - 0.5
    return ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=order).astype(np.float32)


def padded(image):
    return np.pad(image, ROOM).astype(np.float32)


def inner(image):
    return image[(slice(ROOM, -ROOM),) * 3]


def same(image):
    return image


if __name__ == "__main__":
    main()
