"""Training on a borrowed GPU in one command, where there is no network and little more than PyTorch.

Here, pack everything that the run needs into one file of at most 50 MB: the code, the packages that are missing there,
a recipe, and the scans, their grey levels in 64 steps (well below their noise), and every second slice of them unless
the recipe's network is three-dimensional, which needs them all:

    python project/gpu_run.py pack --data-path TRAIN --output-file run.tar

There, with torch, numpy, scipy and safetensors installed, as often as there is time; each call goes on where the last
one stopped, and leaves weights.safetensors, metrics.jsonl and the state, in parts of at most 15 MB, in --output-path:

    tar -xf run.tar && python gpu_run.py train --minutes 9 --output-path out
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
THERE = {"torch", "numpy", "scipy", "safetensors"}
PACKAGES = ("accelerate", "nibabel", "pydantic", "pyyaml", "rich", "torchmetrics", "typer")
EVERY, LEVELS = 2, 64
LIMIT, PART = 50e6, 15_000_000  # bytes


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    packing = tasks.add_parser("pack")
    packing.add_argument("--data-path", type=Path, required=True, help="training folder, ID/ID-t1n.nii.gz")
    packing.add_argument("--output-file", type=Path, required=True)
    packing.add_argument("--recipe", type=Path, default=HERE.parent / "workspace" / "parameters" / "small.yaml")
    packing.add_argument("--python", default="3.12", help="the version of Python there")
    packing.set_defaults(run=lambda args: pack(args.data_path, args.output_file, args.recipe, args.python))
    training = tasks.add_parser("train")
    training.add_argument("--minutes", type=float, required=True)
    training.add_argument("--output-path", type=Path, required=True, help="weights, metrics, and the state in parts")
    training.add_argument("--work-path", type=Path, default=HERE / "run", help="kept between calls")
    training.set_defaults(run=lambda args: train(args.minutes, args.output_path, args.work_path))
    args = parser.parse_args()
    args.run(args)


def pack(data_path: Path, output_file: Path, recipe: Path, python: str) -> None:
    """Write the pack; exits with a message where it is larger than 50 MB."""
    from brats_inpainting.parameters import read_recipe

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copy(__file__, root)
        shutil.copy(recipe, root / "recipe.yaml")
        unwanted = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(
            HERE / "brats_inpainting", root / "packages" / "brats_inpainting", dirs_exist_ok=True, ignore=unwanted
        )
        _packages(root / "packages", python)
        every = 1 if read_recipe(recipe).unet.dims == 3 else EVERY
        scans = sorted([*data_path.glob("*-t1n.nii.gz"), *data_path.glob("*/*-t1n.nii.gz")])
        for path in scans:
            for kind in ("t1n", "mask-healthy", "mask-unhealthy"):
                if (file := path.with_name(path.name.replace("t1n", kind))).exists():
                    _thinned(file, root / "data" / path.name.removesuffix("-t1n.nii.gz") / file.name, every)
        with tarfile.open(output_file, "w:xz") as tar:
            tar.add(root, ".")
    size = output_file.stat().st_size
    sys.stdout.write(f"{output_file}: {len(scans)} scans, {size / 1e6:.1f} MB\n")
    if size > LIMIT:
        sys.exit(f"more than {LIMIT / 1e6:.0f} MB: pack fewer scans")


def train(minutes: float, output_path: Path, work_path: Path) -> None:
    """Train for so many minutes, from the last state on if there is one, and lay out what should travel back."""
    sys.path[:0] = [str(HERE / "packages")]
    from brats_inpainting.cli import common
    from brats_inpainting.parameters import read_recipe
    from brats_inpainting.train import train as run

    output_path.mkdir(parents=True, exist_ok=True)
    state = work_path / "state"
    if not state.exists() and (parts := sorted(output_path.glob("*.pt.part*"))):
        state.mkdir(parents=True)  # a fresh machine that was given the parts of an earlier one
        (state / parts[0].name.partition(".part")[0]).write_bytes(b"".join(part.read_bytes() for part in parts))
    common()
    run(HERE / "data", work_path, read_recipe(HERE / "recipe.yaml"), resume=True, minutes=minutes)
    for old in output_path.glob("*.part*"):
        old.unlink()
    for name in ("weights.safetensors", "metrics.jsonl", "folds.json"):
        shutil.copy(work_path / name, output_path)
    latest = max(state.glob("*.pt"))
    content = latest.read_bytes()
    for number, start in enumerate(range(0, len(content), PART)):
        (output_path / f"{latest.name}.part{number:03d}").write_bytes(content[start : start + PART])


def _thinned(source: Path, target: Path, every: int) -> None:
    """Write one slice of so many of a volume, in 64 grey levels if it is no mask."""
    import nibabel as nib
    import numpy as np

    image = nib.load(source)
    volume = np.asanyarray(image.dataobj)[:, :, ::every].astype(np.float32)
    if "mask" not in source.name:
        white = np.percentile(volume, 99.9)
        volume = np.ceil(volume.clip(0, white) / white * (LEVELS - 1))  # up: brain stays apart from the background
    target.parent.mkdir(parents=True, exist_ok=True)
    affine = image.affine @ np.diag([1, 1, every, 1])
    plain = target.with_suffix("")  # the pack is compressed as a whole
    nib.save(nib.Nifti1Image(volume.astype(np.uint8), affine), plain)


def _packages(target: Path, python: str) -> None:
    """Unpack the wheels of everything that the code needs and PyTorch does not bring, at the versions of this place."""
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in sorted(_needed(python))]
    with tempfile.TemporaryDirectory() as wheels:
        where = (
            "--python-version",
            python,
            "--platform",
            "manylinux_2_28_x86_64",
            "--platform",
            "manylinux2014_x86_64",
        )
        command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *where)
        subprocess.run([*command, "--dest", wheels, *pins], check=True)
        for wheel in Path(wheels).glob("*.whl"):
            shutil.unpack_archive(wheel, target, "zip")
    metadata = importlib.metadata.distribution("brats-inpainting")
    info = target / f"brats_inpainting-{metadata.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: brats-inpainting\nVersion: {metadata.version}\n")


def _needed(python: str) -> set[str]:
    """Return the packages and what they require, without what is there, and without extras."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    waiting = list(PACKAGES)
    while waiting:
        name = waiting.pop()
        if name in found | THERE:
            continue
        found.add(name)
        required = map(Requirement, importlib.metadata.requires(name) or ())
        there = {"python_version": python, "extra": ""}
        waiting += [r.name.lower().replace("_", "-") for r in required if not r.marker or r.marker.evaluate(there)]
    brought = {"setuptools", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock"}  # by torch
    return found - brought


if __name__ == "__main__":
    main()
