"""What the studies measure: the reference is ours in other steps, peers do the same work, figures add up."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brats_inpainting.config import DiffusionConfig, UNetConfig
from studies import rows
from studies.speed import case, ceilings, passes, peers, report, run
from studies.speed.reference import Reference
from studies.speed.subject import Subject

from .conftest import inpainter, lesion, write_case
from .golden import SMALL, distance, network, rnd

STUDIES = sorted(
    path.relative_to(Path(__file__).parents[1]).with_suffix("")
    for path in (Path(__file__).parents[1] / "studies").rglob("*.py")
    if "def main" in path.read_text()
)
TINY = UNetConfig(width=32, multipliers=(1, 2), blocks=1, attention_at=(2,))
SUBJECT = Subject("tiny", TINY, DiffusionConfig(), side=16, batch=2, device="cpu", precision="fp32")
SHAPE = (64, 64, 12)


def test_the_eager_reference_gives_guided_diffusions_output():
    reference = Reference(network(SMALL))
    with torch.inference_mode():
        assert distance(reference(rnd("unet_x", (2, 3, 64, 64)), torch.tensor([7, 900])), "small_out") < 1e-4


def test_what_a_pass_overwrites_is_not_missed_on_the_way_back():
    x, t, gradients = rnd("unet_x", (2, 3, 16, 16)), torch.tensor([7, 900]), []
    for wrap in (lambda net: net, Reference):
        net = network(SMALL).requires_grad_()
        wrap(net)(x, t).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    ours, theirs = gradients
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()  # float32 sums in another order


def test_every_convolution_of_a_pass_is_counted():
    flops, alone = ceilings.convolutions(SUBJECT.network(), SUBJECT)
    layers = [m for m in SUBJECT.network().modules() if isinstance(m, torch.nn.Conv1d | torch.nn.Conv2d)]
    assert sum(found.times for found in alone) == len(layers)
    stem = next(found for found in alone if found.shape.weight == (32, 3, 3, 3))
    assert stem.flops == 2 * 2 * 16 * 16 * 32 * 3 * 9  # multiply and add, slices, pixels, channels out and in, kernel
    assert 0.8 * flops < sum(found.times * found.flops for found in alone) <= flops  # the rest is attention, embedding


def test_a_step_is_measured_beside_its_own_convolutions_and_drawn(tmp_path):
    found = passes.measure(SUBJECT)
    assert found.seconds > 0
    assert found.peak > 1e8  # torch alone takes that
    assert found.ceiling > 0
    assert 0 < sum(found.operators.values()) <= 1
    assert all(share > passes.SHARE for share in found.operators.values())
    fewer = replace(found, convolutions=found.convolutions[:1])
    assert coloured([found], tmp_path) > coloured([fewer], tmp_path) > coloured([], tmp_path) == 0


def coloured(measured, folder):
    """Count the pixels of matplotlib's first colour in the picture of some passes."""
    machine = {"GPU": "none", "processor": "this one", "precision": "fp32"}
    report.roofline(report.Results(machine, {"fp32": 1e11, "copy": 1e10}, measured), folder / "roofline.png")
    with Image.open(folder / "roofline.png") as image:
        red, _, blue = (channel.astype(int) for channel in np.moveaxis(np.asarray(image.convert("RGB")), 2, 0))
    return np.count_nonzero(blue - red > 40)


@pytest.mark.slow
def test_peers_do_the_same_work_and_the_reference_gives_the_same_numbers(monkeypatch):
    monkeypatch.delitem(peers.PEERS, "eager reference, memory kept")  # the reference again, in another setting
    found = {peer.name: peer for peer in peers.compare(SUBJECT, rounds=2)}
    assert set(found) == {"ours", "eager reference", "diffusers UNet2DModel", "MONAI DiffusionModelUNet"}
    ours = found["ours"]
    assert ours.distance == 0
    assert 0 < found["eager reference"].distance < 1e-5  # float32 sums in another order
    for peer in found.values():
        assert len(peer.seconds) == 2
        assert abs(peer.flops / ours.flops - 1) < 0.05  # of their embeddings and attention
    twice = replace(ours, seconds=[2 * second for second in ours.seconds], flops=4 * ours.flops)
    assert twice.ratio(ours) == pytest.approx(0.5)


def test_a_case_is_measured_by_phase_and_scaled_from_what_was_done(tmp_path):
    write_case(tmp_path, "a")
    found = case.measure("small-2", "paper", tmp_path, "cpu", "fp32", (2, 2))
    assert found.windows == lesion(SHAPE).any(axis=(0, 1)).sum()
    assert (found.passes, found.measured) == (1000 * found.windows, 2 * 2)
    assert list(found.seconds) == ["load", "prepare", "undo", "save", "network", "sampler arithmetic"]
    assert min(found.seconds.values()) > 0
    assert 0 < found.other_share < 0.5


@pytest.mark.slow
def test_the_study_of_speed_writes_tables_numbers_and_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "BATCHES", (1,))
    monkeypatch.setattr(run, "LIMITS", {"cpu": {"small-2": (1, 1)}})
    monkeypatch.setattr(run, "apart", lambda function, *args: function(*args))
    monkeypatch.setattr(run.Subject, "of", lambda *_: SUBJECT)
    monkeypatch.setattr(ceilings, "matrix_product", lambda *_: 1e11)
    monkeypatch.setattr(ceilings, "copy", lambda *_: 1e10)
    write_case(tmp_path / "cases", "a")
    where = ["--data-path", str(tmp_path / "cases"), "--report-path", str(tmp_path / "report"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["speed", "--network", "small-2", "--part", "ceilings", "passes", "cases", *where])
    run.main()
    assert "100 GFLOP/s" in capsys.readouterr().out
    written = json.loads((tmp_path / "report" / "speed.json").read_text())
    assert written["passes"][0]["subject"]["unet"]["width"] == 32
    assert [found["preset"] for found in written["phases"]] == ["fast", "paper"]
    assert "One denoising step" in (tmp_path / "report" / "speed.md").read_text()
    with Image.open(tmp_path / "report" / "roofline.png") as image:
        assert image.size == (880, 550)


@pytest.mark.parametrize("path", STUDIES, ids=str)
def test_every_study_says_how_it_is_called(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(".".join(path.parts)).main()
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_rows_of_studies_name_the_weights_and_the_precision():
    assert rows.network_columns(inpainter()) == {"weights": "00000000", "precision": "fp32"}


def test_the_gpu_study_runs_without_one(tmp_path):
    command = (sys.executable, "-m", "studies.gpu", "--tiny", "--output", str(tmp_path), "--part", "paper", "training")
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row for row in found["rows"] if "error" in row] == []
    assert {row["part"] for row in found["rows"]} == {"paper", "training, 2 × 16³"}
    assert "| paper | eager reference |" in (tmp_path / "gpu.md").read_text()
