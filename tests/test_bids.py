"""A BIDS dataset through the command line, and what the official validator says of the dataset that comes out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting.cli import bids_app

from .conftest import write_case
from .test_cli import run

FILLS = {
    "case-1": "sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_desc-inpainted_T1w.nii.gz",
    "case-2": "sub-02/anat/sub-02_desc-inpainted_T1w.nii.gz",
}
SIDECARS = [name.replace(".nii.gz", ".json") for name in FILLS.values()]
VALIDATOR = shutil.which(
    "bids-validator-deno", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)


@pytest.fixture
def folder(tmp_path):
    """The same two cases in both layouts."""
    names = {
        "case-1": ("sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_T1w.nii.gz", "sub-01_ses-2_label-lesion_roi.nii.gz"),
        "case-2": ("sub-02/anat/sub-02_T1w.nii.gz", "sub-02_desc-lesion_mask.nii.gz"),
    }
    for seed, (case_id, (scan, mask)) in enumerate(names.items()):
        case, place = write_case(tmp_path / "cases", case_id, seed=seed), (tmp_path / "raw" / scan).parent
        place.mkdir(parents=True)
        shutil.copy(case / f"{case_id}-t1n-voided.nii.gz", tmp_path / "raw" / scan)
        shutil.copy(case / f"{case_id}-mask.nii.gz", place / mask)
    (tmp_path / "raw" / "dataset_description.json").write_text('{"Name": "Raw", "BIDSVersion": "1.11.1"}')
    return tmp_path


@pytest.fixture
def infer(folder, tiny_weights):
    def call(data, out, *args):
        paths = ("--data-path", folder / data, "--output-path", folder / out, "--weights", tiny_weights)
        return run("--quiet", "infer", *paths, "--device", "cpu", "--steps", 2, *args)

    return call


def written(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def test_both_layouts_give_the_same_voxels(infer, folder):
    assert infer("cases", "filled") == 0
    assert infer("raw", "derivative") == 0
    for case_id, name in FILLS.items():
        one, other = (
            nib.load(path)
            for path in (folder / "filled" / f"{case_id}-t1n-inference.nii.gz", folder / "derivative" / name)
        )
        assert np.asarray(one.dataobj).tobytes() == np.asarray(other.dataobj).tobytes()
        assert one.header.binaryblock == other.header.binaryblock
    assert written(folder / "derivative") == sorted(["dataset_description.json", *FILLS.values(), *SIDECARS])


def test_a_failed_case_has_no_sidecar_until_it_is_resumed(infer, folder):
    mask = folder / "raw" / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_label-lesion_roi.nii.gz"
    sound = mask.read_bytes()
    mask.write_bytes(b"nonsense")
    report = ("--report-path", folder / "report", "--samples", 2)
    assert infer("raw", "out", *report) == 3
    assert written(folder / "out") == sorted(["dataset_description.json", FILLS["case-2"], SIDECARS[1]])
    (folder / "out" / SIDECARS[1]).unlink()
    mask.write_bytes(sound)
    assert infer("raw", "out", *report, "--resume") == 0
    assert written(folder / "out") == sorted(["dataset_description.json", *FILLS.values(), *SIDECARS])
    assert set(json.loads((folder / "report" / "run.json").read_text())["cases"]) == {
        "sub-01_ses-2_acq-mprage",
        "sub-02",
    }
    assert (folder / "report" / "sub-02_desc-inpainted_T1w-std.nii.gz").exists()
    assert "sub-01_ses-2_acq-mprage" in (folder / "report" / "report.html").read_text()


def test_participants_are_filled_one_by_one_into_one_dataset(infer, folder, capfd):
    out = folder / "raw" / "derivatives" / "inpainted"
    assert infer("raw", out, "--participant-label", "sub-02") == 0
    assert written(out) == sorted(["dataset_description.json", FILLS["case-2"], SIDECARS[1]])
    assert infer("raw", out, "--participant_label=01") == 0
    assert written(out) == sorted(["dataset_description.json", *FILLS.values(), *SIDECARS])
    assert run("check", "--data-path", folder / "raw", "--participant-label", "01,02") == 0
    assert "2 of 2 cases can be filled" in capfd.readouterr().out


def test_participants_go_with_a_dataset(infer, capfd):
    assert infer("cases", "filled", "--participant-label", "01") == 2
    assert "no BIDS dataset, which --participant-label goes with" in capfd.readouterr().err
    assert infer("raw", "out", "--participant-label", "4") == 2
    assert "There: 01, 02." in capfd.readouterr().err
    assert run("infer", "--image", "a", "--mask", "b", "--output", "c", "--participant-label", "01") == 2
    assert infer("raw", "raw") == 2
    assert "another BIDS dataset" in capfd.readouterr().err


@pytest.fixture
def app(tiny_weights):
    """The command line of BIDS Apps."""

    def call(*args):
        return run("--quiet", *args, "--weights", tiny_weights, "--device", "cpu", "--steps", 2)

    return call


def test_the_command_line_of_bids_apps_fills_a_dataset_as_infer_does(app, infer, folder):
    assert infer("raw", "infer") == 0
    assert app(folder / "raw", folder / "app", "participant") == 0
    assert written(folder / "app") == written(folder / "infer")
    for name in FILLS.values():
        assert (folder / "app" / name).read_bytes() == (folder / "infer" / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (["--participant-label", "01", "02"], ["--participant-label=01,02"]),
        (["--participant_label", "sub-01", "02", "--skip_bids_validation"], ["--participant-label=sub-01,02"]),
        (["--participant_label=01", "02", "--seed", "1"], ["--participant-label=01,02", "--seed", "1"]),
        (["--resume", "--participant-label", "01,02"], ["--resume", "--participant-label=01,02"]),
        (["--participant-label", "1", "--participant-label", "2"], ["--participant-label=1", "--participant-label=2"]),
        (["--skip-bids-validator", "--participant_label"], ["--participant-label"]),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_labels_are_separated_by_spaces_after_or_before_the_folders(folder, given, options, first):
    places = [str(folder / "raw"), str(folder / "out"), "participant"]
    arguments = bids_app.translated([*given, *places] if first else [*places, *given])
    assert arguments == ["infer", "--data-path", places[0], "--output-path", places[1], *options]


def test_the_group_level_and_what_is_no_dataset_are_refused_with_what_to_do(app, folder, capfd):
    raw, description = folder / "raw", folder / "raw" / "dataset_description.json"

    def refused(*args):
        assert app(*args) == 2
        return capfd.readouterr().err

    assert "nothing to do at the group level" in refused(raw, folder / "out", "group")
    assert "session: not an analysis level\n  Usage: brats-inpainting BIDS_DIR" in refused(
        raw, folder / "out", "session"
    )
    assert "the analysis level is missing\n  Usage: brats-inpainting BIDS_DIR" in refused(raw, folder / "out")
    assert "no such folder" in refused(folder / "nowhere", folder / "out", "participant")
    cases = refused(folder / "cases", folder / "out", "participant")
    assert "not a BIDS dataset, dataset_description.json is missing\n  Add it" in cases
    description.unlink()
    description.symlink_to(".git/annex/objects/nothing")
    assert "a broken link\n  Fetch its content: datalad get" in refused(raw, folder / "out", "participant")
    assert not (folder / "out").exists()


def test_a_command_is_not_mistaken_for_a_bids_dataset(capfd):
    assert run("infer", "raw", "participant") == 2
    assert "unexpected extra argument" in capfd.readouterr().err
    assert run("nonsense") == 2
    assert "No such command 'nonsense'" in capfd.readouterr().err


def test_a_file_that_is_not_fetched_is_named_and_the_other_scans_are_filled(app, folder, capfd):
    mask = folder / "raw" / "sub-02" / "anat" / "sub-02_desc-lesion_mask.nii.gz"
    mask.unlink()
    mask.symlink_to("../../.git/annex/objects/Xx/Yy/MD5E-s1--ab.nii.gz/MD5E-s1--ab.nii.gz")
    assert app(folder / "raw", folder / "out", "participant") == 3
    assert mask.name in capfd.readouterr().err
    assert written(folder / "out") == sorted(["dataset_description.json", FILLS["case-1"], SIDECARS[0]])


@pytest.mark.skipif(not VALIDATOR, reason="bids-validator-deno is not installed")
def test_the_official_validator_finds_no_error(infer, folder):
    scan = folder / "raw" / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    scan.rename(scan.with_name("sub-02_space-mine_res-1_T1w.nii.gz"))  # what needs further fields
    assert infer("raw", "out") == 0

    def errors():
        command = [VALIDATOR, str(folder / "out"), "--format", "json"]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
        assert sorted(told["summary"]["subjects"]) == ["01", "02"]
        return [issue for issue in told["issues"]["issues"] if issue["severity"] == "error"]

    assert errors() == []
    (folder / "out" / SIDECARS[0]).unlink()
    assert errors()  # it does look
