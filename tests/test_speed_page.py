"""What docs/validation/speed.csv and peers.csv say of the GPU is what its run measured, docs/validation/gpu.json."""

import csv
import json
from pathlib import Path

import pytest

VALIDATION = Path(__file__).parents[1] / "docs" / "validation"
RUN = json.loads((VALIDATION / "gpu.json").read_text())["rows"]
CASES = {
    "`volume-2`, `fast` (default)": ("a case, volume-1", "fast"),
    "`volume-2`, `uncertainty`": ("a case, volume-1", "uncertainty"),
    "`small-2`, `fast`": ("a case, small-2", "fast"),
    "the paper's network, `paper`": ("a case, paper's network", "paper, 80 slices, scaled"),
}
PEERS = {
    "**brats-inpainting**": "ours, CUDA graph",
    "guided-diffusion's steps": "eager reference",
    "MONAI `DiffusionModelUNet`": "monai",
    "diffusers `UNet2DModel`": "diffusers",
}


def table(name):
    """Return first cell → the other cells."""
    with (VALIDATION / name).open() as file:
        return {first: others for first, *others in csv.reader(file)}


def measured(part, name):
    (row,) = (row for row in RUN if (row["part"], row["name"]) == (part, name))
    return row


@pytest.mark.parametrize(("row", "case"), CASES.items())
def test_the_seconds_of_a_scan_are_those_of_the_run(row, case):
    found = measured(*case)
    seconds = f"{found['s']:.1f}" if found["s"] < 100 else f"{found['s']:.0f}"
    assert table("speed.csv")[row][2:] == [f"{seconds} s", f"{found['peak_gb']:.1f} GB"]


@pytest.mark.parametrize(("row", "name"), PEERS.items())
def test_the_milliseconds_of_a_pass_are_those_of_the_run(row, name):
    assert table("peers.csv")[row][1] == f"{measured('paper', name)['ms']:.3g} ms"
