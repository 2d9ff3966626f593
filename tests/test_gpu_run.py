"""The run on a borrowed GPU: packed, unpacked in an empty folder, trained twice; here on a CPU."""

import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel as nib
import pytest
import torch
import yaml

from brats_inpainting.diffusion import checkpoint

from .test_train import PARAMETERS, ROOT, scans  # noqa: F401 (a fixture)

# What the machine there has: PyTorch, NumPy, SciPy, safetensors, and what PyTorch brings.
THERE = (
    "torch",
    "functorch",
    "numpy",
    "scipy",
    "safetensors",
    "sympy",
    "mpmath",
    "filelock",
    "fsspec",
    "networkx",
    "jinja2",
)
RUN = "import runpy, sys; sys.path.append('site'); runpy.run_path('gpu_run.py', run_name='__main__')"


@pytest.mark.parametrize(("recipe", "slices"), [("small", 12), ("volume", 24)])
def test_a_pack_for_volumes_keeps_all_slices(recipe, slices, scans, tmp_path, monkeypatch):  # noqa: F811
    spec = importlib.util.spec_from_file_location("gpu_run", ROOT / "project" / "gpu_run.py")
    gpu_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_run)
    monkeypatch.setattr(gpu_run, "_packages", lambda *_: None)
    gpu_run.pack(scans, tmp_path / "run.tar", PARAMETERS / f"{recipe}.yaml", "3.12")
    with tarfile.open(tmp_path / "run.tar") as tar:
        tar.extractall(tmp_path / "there", filter="data")
    paths = sorted((tmp_path / "there" / "data").glob("*/*.nii"))
    assert len(paths) == 6
    for path in paths:
        image = nib.load(path)
        assert image.shape == (72, 72, slices)
        assert abs(image.affine[2, 2]) == 24 / slices


@pytest.mark.slow
def test_the_pack_trains_with_pytorch_alone_and_goes_on(scans, tmp_path):  # noqa: F811
    recipe = yaml.safe_load((PARAMETERS / "smoke.yaml").read_text()) | dict.fromkeys(
        ("max_steps", "report_every", "save_every", "validate_every"), 1_000_000
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, ROOT / "project" / "gpu_run.py", "pack", "--data-path", scans, "--python", version]
    command += ["--recipe", tmp_path / "recipe.yaml", "--output-file", tmp_path / "run.tar"]
    subprocess.run(command, check=True)
    there = tmp_path / "there"
    with tarfile.open(tmp_path / "run.tar") as tar:
        tar.extractall(there, filter="data")
    (there / "site").mkdir()
    for path in Path(torch.__file__).parents[1].iterdir():
        if path.name.startswith(THERE):
            (there / "site" / path.name).symlink_to(path)
    for _ in range(2):
        task = ("train", "--minutes", "0.05", "--output-path", "out")  # -I -S: nothing else that is installed here
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", RUN, *task], cwd=there, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    steps = [json.loads(line)["step"] for line in (there / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert len(steps) == 2
    assert checkpoint.load(there / "out" / "weights.safetensors").notes["step"] in steps
    assert all(path.stat().st_size <= 15e6 for path in (there / "out").iterdir())
    (state,) = {path.name.partition(".part")[0] for path in (there / "out").glob("*.part*")}
    assert int(state.removesuffix(".pt")) == steps[-1]
