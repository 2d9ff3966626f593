"""The Boutiques descriptor is valid, and its command lines are accepted by the program in the image."""

import json
import shlex
from pathlib import Path

import boutiques
import click
import pytest
import typer

from brats_inpainting.cli import bids_app
from brats_inpainting.cli.app import app
from brats_inpainting.config import PRESETS

ROOT = Path(__file__).parents[1]
PATH = ROOT / "mlcube" / "boutiques.json"
DESCRIPTOR = json.loads(PATH.read_text())
SMALLEST = {"bids_dir": "raw", "output_dir": "out", "analysis_level": "participant"}
COMPLETE = SMALLEST | {
    "participant_label": ["01", "sub-02"],
    "preset": "uncertainty",
    "seed": 3,
    "samples": 4,
    "dilate": 1.5,
    "weights": "w.safetensors",
    "device": "cuda:1",
    "report_path": "report",
    "resume": True,
}


@pytest.fixture
def parsed(tmp_path, monkeypatch, capfd):
    """Parse the command line that Boutiques makes of an invocation, as infer does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dataset_description.json").write_text("{}")

    def call(invocation):
        (tmp_path / "invocation.json").write_text(json.dumps(invocation))
        boutiques.execute("simulate", "-i", str(tmp_path / "invocation.json"), str(PATH))
        words = shlex.split(capfd.readouterr().out.splitlines()[-1])
        assert words[:2] == entry_point()
        command, *args = bids_app.translated(words[2:])
        infer = typer.main.get_group(app).commands[command]
        return infer.make_context("infer", args, parent=click.Context(infer)).params

    return call


def entry_point():
    """The image's."""
    (line,) = (line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("ENTRYPOINT"))
    return json.loads(line.removeprefix("ENTRYPOINT"))


def test_the_descriptor_is_valid():
    boutiques.validate(str(PATH))


def test_the_smallest_invocation_fills_all_participants(parsed):
    given = parsed(SMALLEST)
    assert (given["data_path"], given["output_path"]) == (Path("raw"), Path("out"))
    assert not given["participant_label"]


def test_every_input_reaches_its_option(parsed):
    assert set(COMPLETE) == {one["id"] for one in DESCRIPTOR["inputs"]}
    given = parsed(COMPLETE)
    assert given["participant_label"] == ["01,sub-02"]
    paths = {"weights": Path("w.safetensors"), "report_path": Path("report")}
    others = {name: value for name, value in COMPLETE.items() if name not in SMALLEST}
    assert {name: given[name] for name in others} == others | paths | {"participant_label": ["01,sub-02"]}


def test_the_descriptor_knows_all_presets():
    (preset,) = (one for one in DESCRIPTOR["inputs"] if one["id"] == "preset")
    assert preset["value-choices"] == [*PRESETS]
