"""The command line as its users call it: exit codes, existing outputs, clean output folders, interruptions."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
import typer

from brats_inpainting import cli
from brats_inpainting.cli.app import GROUPS
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import CheckpointError

from .conftest import LPS, TINY, brain, lesion, write_case

IDS = ["BraTS-GLI-00001-000", "BraTS-GLI-00002-000"]


def run(*args):
    """Run the app in this process; return its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(arg) for arg in args])
    return stop.value.code or 0


@pytest.fixture
def data(tmp_path):
    for seed, case_id in enumerate(IDS):
        write_case(tmp_path / "data", case_id, seed=seed)
    return tmp_path / "data"


@pytest.fixture
def infer(data, tmp_path, tiny_weights):
    def call(*args, weights=tiny_weights):
        fixed = (
            "--data-path",
            data,
            "--output-path",
            tmp_path / "out",
            "--device",
            "cpu",
            *(["--weights", weights] if weights else []),
        )
        return run("--quiet", "infer", *fixed, "--steps", 2, *args)

    return call


def outputs(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


NAMES = [f"{case_id}-t1n-inference.nii.gz" for case_id in IDS]


def test_the_output_folder_holds_filled_scans_and_nothing_else(infer, tmp_path):
    assert infer("--report-path", tmp_path / "report", "--samples", 2) == 0
    assert outputs(tmp_path) == NAMES
    report = json.loads((tmp_path / "report" / "run.json").read_text())
    assert set(report["cases"]) == set(IDS)
    for case_id in IDS:
        assert report["cases"][case_id]["voxels_changed_outside"] == 0
        assert (tmp_path / "report" / f"{case_id}-t1n-inference-std.nii.gz").exists()


def test_underscores_and_equal_signs_will_do(data, tmp_path, tiny_weights):
    paths = (f"--data_path={data}", f"--output_path={tmp_path / 'out'}", f"--weights={tiny_weights}")
    assert run("infer", *paths, "--steps=1") == 0
    assert outputs(tmp_path) == NAMES


@pytest.mark.parametrize("names", [("--input-dir", "--output-dir"), ("--data_path", "--output_path")])
def test_options_without_a_task_are_those_of_infer(data, tmp_path, tiny_weights, names):
    shutil.rmtree(data / IDS[1])
    pairs = dict(zip(names, (data, tmp_path / "out"), strict=True)) | {"--weights": tiny_weights, "--steps": 1}
    assert run("-q", *(f"{name}={value}" for name, value in pairs.items())) == 0
    assert outputs(tmp_path) == NAMES[:1]


def test_the_weights_may_lie_in_a_folder_of_additional_files(infer, tmp_path, tiny_weights, capfd):
    folder = tmp_path / "additional_files"
    folder.mkdir()
    (folder / "README").write_text("nothing that a network could use")
    for name in ("one.safetensors", "two.safetensors"):
        shutil.copy(tiny_weights, folder / name)
    assert infer("--additional-files-path", folder, weights="") == 2
    assert "more than one weights file, but one.safetensors, two.safetensors" in capfd.readouterr().err
    for name in ("one.safetensors", "two.safetensors"):
        (folder / name).rename(folder / f"{name}.zip")
    assert infer("--additional-files-path", folder, weights="") == 2
    assert "no .safetensors or .pt, but one.safetensors.zip" in capfd.readouterr().err
    (folder / "one.safetensors.zip").rename(folder / "one.safetensors")
    report = tmp_path / "report"
    assert infer("--additional-files-path", folder, "--report-path", report, weights="") == 0
    assert json.loads((report / "run.json").read_text())["weights"].startswith("one.safetensors")


def test_an_empty_folder_of_additional_files_means_the_bundled_weights(tmp_path):
    assert checkpoint.find(tmp_path) is None
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.find(tmp_path / "nowhere")


def test_a_single_pair_of_files_can_be_filled(data, tmp_path, tiny_weights):
    files = [data / IDS[0] / f"{IDS[0]}-{kind}.nii.gz" for kind in ("t1n-voided", "mask")]
    pair = ("--image", files[0], "--mask", files[1], "--output", tmp_path / "out" / "filled.nii.gz")
    assert run("infer", *pair, "--weights", tiny_weights, "--steps", 1) == 0
    assert outputs(tmp_path) == ["filled.nii.gz"]
    assert run("infer", *pair[:-1], tmp_path / "filled.txt", "--weights", tiny_weights) == 2


def test_existing_outputs_are_an_error_unless_something_is_said(infer, tmp_path):
    assert infer() == 0
    first = (tmp_path / "out" / NAMES[0]).read_bytes()
    assert infer("--seed", 1) == 2
    assert infer("--seed", 1, "--resume") == 0
    assert (tmp_path / "out" / NAMES[0]).read_bytes() == first
    assert infer("--seed", 1, "--overwrite") == 0
    assert (tmp_path / "out" / NAMES[0]).read_bytes() != first


def test_resume_makes_only_what_is_missing_and_refuses_other_settings(infer, tmp_path, capfd):
    report = ("--report-path", tmp_path / "report")
    assert infer(*report) == 0
    first = (tmp_path / "out" / NAMES[1]).read_bytes()
    (tmp_path / "out" / NAMES[1]).unlink()
    assert infer(*report, "--resume", "--seed", 9) == 2
    assert "another seed" in capfd.readouterr().err
    assert infer(*report, "--resume") == 0
    assert (tmp_path / "out" / NAMES[1]).read_bytes() == first
    assert set(json.loads((tmp_path / "report" / "run.json").read_text())["cases"]) == set(IDS)


def test_one_bad_case_does_not_stop_the_others(infer, data, tmp_path, capfd):
    (data / IDS[0] / f"{IDS[0]}-mask.nii.gz").write_bytes(b"nonsense")
    assert infer() == 3
    assert outputs(tmp_path) == NAMES[1:]
    printed = capfd.readouterr().err
    at_once, _, at_the_end = printed.partition("1 failed:\n")
    assert at_the_end.startswith(f"{IDS[0]}: cannot be read\n  {IDS[0]}-mask.nii.gz: not a NIfTI file")
    assert f"failed: {at_the_end}" in at_once


def test_the_reason_of_a_single_case_is_printed_once(infer, data, capfd):
    shutil.rmtree(data / IDS[1])
    (data / IDS[0] / f"{IDS[0]}-mask.nii.gz").write_bytes(b"nonsense")
    assert infer() == 3
    assert capfd.readouterr().err.count("not a NIfTI file") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["infer"], "nothing to fill"),
        (["infer", "--image", "a.nii"], "--mask and --output missing"),
        (["infer", "--data-path", "a", "--output-path", "b", "--image", "c"], "--mask and --output missing"),
        (["infer", "--data-path", "nowhere", "--output-path", "o"], "no such folder"),
        (["infer", "--stepz", "3"], "No such option"),
        (["frobnicate"], "No such command"),
        (["check", "--data-path", "nowhere"], "no such folder"),
    ],
)
def test_unusable_arguments_exit_with_2_and_say_why(args, message, capfd):
    assert run(*args) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(("given", "named"), [(".", ""), ("./", ""), ("..", ".."), ("sub/..", ".")])
def test_a_folder_given_by_dots_is_named_by_its_path(given, named, tmp_path, monkeypatch, capfd):
    here = tmp_path / "study" / "scans"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    for args in (["check", "--data-path", given], [f"--input-dir={given}", "--output-dir", "out"]):
        assert run(*args) == 2
        assert capfd.readouterr().err.startswith(f"{(here / named).resolve()}: no case found\n")
    assert run("check", "--data-path", "sub") == 2
    assert capfd.readouterr().err.startswith("sub: no case found\n")
    assert run("check", "--data-path", "") == 2
    assert "it is empty. Give a folder; . is the current one." in capfd.readouterr().err


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_of_the_command_line_that_is_not_there_exits_with_2(name, infer, data, tmp_path, capfd):
    for command in (infer, lambda *device: run("benchmark", "--data-path", data, *device)):
        assert command("--device", name) == 2
        why = "(torch .* is built without CUDA|no mps device found)"
        expected = f"device {name}: {why}\n  Use --device cpu, or leave --device out"
        assert re.match(expected, capfd.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_of_a_parameters_file_that_is_not_there_gives_the_cpu_and_a_warning(data, tmp_path, tiny_weights, capfd):
    (tmp_path / "p.yaml").write_text("device: cuda:0\nsteps: 1\n")
    shutil.rmtree(data / IDS[1])
    places = ("--data-path", data, "--output-path", tmp_path / "out", "--parameters-file", tmp_path / "p.yaml")
    assert run("--quiet", "infer", *places, "--weights", tiny_weights) == 0
    assert re.match("on the CPU: torch .* is built without CUDA\n", capfd.readouterr().err)
    assert run("infer", *places, "--weights", tiny_weights, "--overwrite", "--device", "auto") == 0
    assert "on the CPU: torch" in capfd.readouterr().err


def test_unusable_settings_exit_with_2_before_anything_is_written(infer, tmp_path, capfd):
    (tmp_path / "bad.yaml").write_text("stepz: 3")
    (tmp_path / "bad.pt").write_bytes(b"nonsense")
    assert infer("--preset", "quick") == 2
    assert infer("--batch-size", "none") == 2
    assert infer("--parameters-file", tmp_path / "bad.yaml") == 2
    assert infer(weights=tmp_path / "bad.pt") == 2
    assert "Did you mean steps?" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made_exits_with_2(infer, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    assert infer() == 2


def test_an_empty_mask_copies_the_scan(infer, data, tmp_path):
    path = data / IDS[0] / f"{IDS[0]}-mask.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((64, 64, 12), np.uint8), nib.load(path).affine), path)
    assert infer() == 0
    given, filled = (nib.load(p) for p in (data / IDS[0] / f"{IDS[0]}-t1n-voided.nii.gz", tmp_path / "out" / NAMES[0]))
    assert (np.asarray(given.dataobj, np.float32) == np.asarray(filled.dataobj)).all()


def test_what_a_killed_run_left_behind_is_removed(infer, tmp_path):
    left = tmp_path / "out" / ".partial-0a1b2c3d"
    left.mkdir(parents=True)
    for name in ("lock", "unfinished.part"):
        (left / name).write_bytes(b"half")
    assert infer() == 0
    assert outputs(tmp_path) == NAMES


def test_check_takes_a_single_pair_too(data, capfd):
    image, mask = (data / IDS[0] / f"{IDS[0]}-{kind}.nii.gz" for kind in ("t1n-voided", "mask"))
    assert run("check", "--image", image, "--mask", mask) == 0
    assert "1 of 1 cases can be filled" in capfd.readouterr().out
    assert run("check", "--image", image) == 2
    assert "--mask missing" in capfd.readouterr().err
    assert run("check") == 2
    mask.write_bytes(b"nonsense")
    assert run("check", "--image", image, "--mask", mask) == 3


def masked(data, values):
    """Replace the mask of the first case, and return its scan and mask."""
    image, mask = (data / IDS[0] / f"{IDS[0]}-{kind}.nii.gz" for kind in ("t1n-voided", "mask"))
    nib.save(nib.Nifti1Image(np.asarray(values, np.float32), LPS), mask)
    return image, mask


SEGMENTED = 2.0 * lesion((64, 64, 12), radius=0.3) + 97 * lesion((64, 64, 12))


@pytest.mark.parametrize("command", ["infer", "check", "baseline"])
def test_a_segmentation_needs_a_label_in_every_command(command, infer, data, tmp_path, capfd):
    def call(*args):
        if command == "infer":
            return infer("--overwrite", *args)
        out = () if command == "check" else ("--method", "mean", "--output-path", tmp_path / "out", "--overwrite")
        return run(command, "--data-path", data, *out, *args)

    masked(data, SEGMENTED)
    assert call() == 3
    assert "Choose the lesion's with --label 99" in capfd.readouterr().err
    assert call("--label", "99,1") == 0
    assert call("--label", 1, "--label", 5) == 3  # the first has neither
    assert "Its values: 2 (" in capfd.readouterr().err


def test_a_label_fills_what_a_binary_mask_of_it_fills(infer, data, tmp_path):
    (data / IDS[1]).rename(tmp_path / "away")
    filled = []
    for values, options in (
        (lesion((64, 64, 12)), ()),
        (SEGMENTED, ("--label", 99)),
        (SEGMENTED, ("--threshold", 50)),
        (~lesion((64, 64, 12)), ("--invert-mask",)),
        (255 * lesion((64, 64, 12)), ()),
    ):
        masked(data, values)
        assert infer(*options, "--overwrite") == 0
        filled.append((tmp_path / "out" / NAMES[0]).read_bytes())
    assert set(filled) == {filled[0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label", "1", "--threshold", "50"), "--label and --threshold are mutually exclusive"),
        (("--label", "1,lesion"), "--label 1,lesion: not whole numbers"),
        (("--threshold", "nan"), "--threshold nan: not a finite number"),
        (("--brain-mask", "brain.nii.gz"), "ID/ID-brain-mask.nii.gz, in BIDS …_desc-brain_mask.nii.gz"),
    ],
)
def test_options_of_masks_that_make_no_sense_exit_with_2(infer, data, capfd, options, message):
    assert infer(*options) == 2
    assert message in capfd.readouterr().err
    assert run("check", "--data-path", data, *options) == 2


def test_a_run_is_resumed_with_the_same_reading_of_masks_only(infer, data, tmp_path, capfd):
    (data / IDS[1]).rename(tmp_path / "away")
    report = ("--report-path", tmp_path / "report", "--no-images")
    assert infer(*report) == 0
    assert "mask_reading" not in json.loads((tmp_path / "report" / "run.json").read_text())["settings"]
    assert infer(*report, "--resume", "--label", 1) == 2
    assert "made with another mask_reading" in capfd.readouterr().err
    assert infer(*report, "--overwrite", "--label", 1) == 0
    assert json.loads((tmp_path / "report" / "run.json").read_text())["settings"]["mask_reading"] == [{"labels": [1]}]
    assert infer(*report, "--resume", "--label", 1) == 0
    assert infer(*report, "--resume") == 2
    assert "made with another mask_reading" in capfd.readouterr().err


def test_a_single_scan_takes_a_brain_mask_on_any_grid(data, capfd, tmp_path):
    image, mask = masked(data, lesion((64, 64, 12)))
    for name, shape in (("brain", (64, 64, 12)), ("other", (64, 64, 11))):
        nib.save(nib.Nifti1Image(np.uint8(brain(shape) > 0), LPS), tmp_path / f"{name}.nii.gz")
    pair = ("check", "--image", image, "--mask", mask, "--brain-mask")
    assert run(*pair, tmp_path / "brain.nii.gz") == 0
    assert "1 of 1 cases can be filled\n" in capfd.readouterr().out
    assert run(*pair, tmp_path / "other.nii.gz") == 0
    assert "1 of 1 cases can be filled, 1 of them with warnings\n" in capfd.readouterr().out
    nib.save(nib.Nifti1Image(np.zeros((64, 64, 12), np.uint8), LPS), tmp_path / "empty.nii.gz")
    assert run(*pair, tmp_path / "empty.nii.gz") == 3
    assert "the brain mask is empty, or elsewhere than the scan" in capfd.readouterr().err
    assert run(*pair, tmp_path / "absent.nii.gz") == 2


def test_a_baseline_resumes_and_reads_datasets(data, tmp_path, capfd):
    words = ("baseline", "--method", "mean", "--data-path", data, "--output-path", tmp_path / "out")
    assert run(*words, "--report-path", tmp_path / "report") == 0
    assert run(*words) == 2
    (tmp_path / "out" / NAMES[0]).unlink()
    assert run(*words, "--report-path", tmp_path / "report", "--resume") == 0
    assert "1 finished cases kept, 1 to do" in capfd.readouterr().err
    other = tmp_path / "dataset"
    anat = other / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (other / "dataset_description.json").write_text("{}")
    for kind, name in (("t1n-voided", "T1w"), ("mask", "label-lesion_mask")):
        (anat / f"sub-01_{name}.nii.gz").write_bytes((data / IDS[0] / f"{IDS[0]}-{kind}.nii.gz").read_bytes())
    assert run("baseline", "--method", "mean", "--data-path", other, "--output-path", tmp_path / "derivative") == 0
    assert (tmp_path / "derivative" / "sub-01" / "anat" / "sub-01_desc-inpainted_T1w.nii.gz").exists()


def test_check_lists_every_problem_of_every_case(data, capfd):
    assert run("check", "--data-path", data) == 0
    (data / IDS[0] / f"{IDS[0]}-mask.nii.gz").unlink()
    (data / IDS[1] / f"{IDS[1]}-t1n-voided.nii.gz").write_bytes(b"nonsense")
    assert run("check", "--data-path", data) == 3
    told = capfd.readouterr()
    assert "0 of 2 cases can be filled" in told.out
    assert f"{IDS[0]}-mask.nii.gz: no such file" in told.err
    assert f"{IDS[1]}-t1n-voided.nii.gz: not a NIfTI file" in told.err


def test_the_parameters_file_is_overridden_by_the_command_line(infer, tmp_path):
    (tmp_path / "p.yaml").write_text("preset: paper\nsteps: 3\nseed: 4\n")
    parameters = ("--parameters-file", tmp_path / "p.yaml", "--report-path", tmp_path / "report", "--smoothing", 0)
    assert infer(*parameters) == 0
    settings = json.loads((tmp_path / "report" / "run.json").read_text())["settings"]
    assert settings["seed"] == 4
    assert settings["sampling"]["steps"] == 2  # the fixture's own --steps
    assert settings["sampling"]["sampler"] == "ddpm"
    assert settings["sampling"]["smoothing"] == 0


@pytest.mark.parametrize(
    ("option", "preset", "steps", "replace"),
    [((), "paper", 26, "slices"), (("--steps", 2), "fast", 2, "mask")],
)
def test_guided_diffusions_file_means_the_papers_procedure_unless_an_option_says_more(
    option, preset, steps, replace, tmp_path, capfd
):
    mask = lesion((64, 64, 12))
    mask[..., :6] = mask[..., 7:] = False
    case = write_case(tmp_path / "data", IDS[0], mask=mask)
    keys = "num_channels: 32\nchannel_mult: '1,1,1,1'\nnum_res_blocks: 1\nattention_resolutions: ''\n"
    (tmp_path / "guided.yml").write_text(f"{keys}diffusion_steps: 26\ntimestep_respacing: ''\n")
    torch.save(UNet(TINY.model_copy(update={"multipliers": (1, 1, 1, 1)})).state_dict(), tmp_path / "savedmodel.pt")
    paths = ("--data-path", case.parent, "--output-path", tmp_path / "out", "--report-path", tmp_path / "report")
    files = ("--weights", tmp_path / "savedmodel.pt", "--parameters-file", tmp_path / "guided.yml")
    assert run("infer", *paths, *files, "--device", "cpu", "--no-images", *option) == 0
    sampling = json.loads((tmp_path / "report" / "run.json").read_text())["settings"]["sampling"]
    assert (sampling["steps"], sampling["replace"]) == (steps, replace)
    told = capfd.readouterr().err
    assert f"preset {preset}: {steps} steps" in told
    assert (f"{IDS[0]} takes {steps} network passes, on this CPU about " in told) == (steps >= 25)


def test_baselines_are_filled_and_evaluated(tmp_path, data):
    for seed, case_id in enumerate(IDS):
        files = {kind: data / case_id / f"{case_id}-{kind}.nii.gz" for kind in ("t1n", "mask", "mask-healthy")}
        nib.save(nib.load(files["mask"]), files["mask-healthy"])
        nib.save(nib.Nifti1Image(brain((64, 64, 12), seed), LPS), files["t1n"])
    for method in ("mean", "biharmonic"):
        assert run("baseline", "--method", method, "--data-path", data, "--output-path", tmp_path / method) == 0
        places = ("--predictions", tmp_path / method, "--data-path", data, "--report-path", tmp_path / "scores")
        assert run("evaluate", *places) == 0
    assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == [
        "report.html",
        *(f"scores.{kind}" for kind in ("csv", "json", "md", "tex")),
    ]
    assert len((tmp_path / "scores" / "scores.csv").read_text().splitlines()) == 3


COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_80_columns_and_cuts_no_name(name, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*filter(None, [name]), "--help") == 0
    text = capfd.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"…|\w\.\.\.|--[\w-]*-$", text, re.M)
    command = COMMANDS[name] if name else typer.main.get_command(cli.app)
    declared = {option for parameter in command.params if not parameter.hidden for option in parameter.opts}
    assert declared <= set(re.findall(r"-[\w-]+", text))
    for metavar in (parameter.metavar for parameter in command.params if not parameter.hidden and parameter.metavar):
        assert f" {metavar}" in text


def test_help_lists_options_by_group(capfd):
    names = {parameter.name for parameter in COMMANDS["infer"].params}
    assert all(names.issuperset(group) for group in GROUPS.values())
    assert run("infer", "--help") == 0
    text = capfd.readouterr().out
    assert re.findall(r"^(\w.*):$", text, re.M) == ["Options", *GROUPS]
    assert "--brain-mask" in text.partition("\nMasks:")[2].partition("\nNetwork")[0]


def test_the_list_of_commands_names_all_of_them(capfd):
    assert run("--help") == 0
    assert set(re.findall(r"^  (\w+)  +[A-Z]", capfd.readouterr().out.partition("Commands:")[2], re.M)) == {*COMMANDS}


def test_info_and_help_do_not_import_torch():
    code = "import sys; from brats_inpainting import cli; cli.main([{!r}])"
    for argument in ("info", "--help"):
        script = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code.format(argument)}"
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert told.strip().endswith("False")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_is_finished(data, tmp_path, tiny_weights, number, code):
    path = data / IDS[1] / f"{IDS[1]}-mask.nii.gz"
    nib.save(nib.Nifti1Image(lesion((64, 64, 12), radius=0.32).astype(np.uint8), LPS), path)  # the longer of the two
    args = ["infer", "--data-path", data, "--output-path", tmp_path / "out", "--weights", tiny_weights]
    settings = ["--sampler", "ddim", "--steps", "100", "--device", "cpu", "--batch-size", "1"]
    command = [sys.executable, "-m", "brats_inpainting", *map(str, args), *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while "written to" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert outputs(tmp_path) == NAMES[:1]
    first = (tmp_path / "out" / NAMES[0]).read_bytes()
    assert run(*args, "--steps", "1", "--resume") == 0
    assert outputs(tmp_path) == NAMES
    assert (tmp_path / "out" / NAMES[0]).read_bytes() == first


def test_a_kept_file_of_unknown_settings_is_kept_the_next_time_too(infer, tmp_path):
    assert infer() == 0
    before = [(tmp_path / "out" / name).read_bytes() for name in NAMES]
    for _ in range(2):
        assert infer("--report-path", tmp_path / "report", "--resume", "--seed", 1) == 0
        assert [(tmp_path / "out" / name).read_bytes() for name in NAMES] == before


def test_resume_after_an_interrupted_overwrite_does_not_mix_two_seeds(infer, data, tmp_path):
    report = ("--report-path", tmp_path / "report")
    assert infer(*report) == 0
    old = (tmp_path / "out" / NAMES[1]).read_bytes()
    away = tmp_path / "away"
    (data / IDS[1]).rename(away)
    assert infer(*report, "--overwrite", "--seed", 1) == 0  # as if it had ended after the first case
    away.rename(data / IDS[1])
    assert infer(*report, "--resume", "--seed", 1) == 0
    assert (tmp_path / "out" / NAMES[1]).read_bytes() != old


def test_the_report_may_not_lie_in_the_output_folder(infer, tmp_path):
    assert infer("--report-path", tmp_path / "out" / "report") == 2


def test_a_record_that_is_none_is_refused(infer, tmp_path):
    report = ("--report-path", tmp_path / "report")
    assert infer(*report) == 0
    for nonsense in ("{", "{}"):
        (tmp_path / "report" / "run.json").write_text(nonsense)
        assert infer(*report, "--resume") == 2


def test_an_input_is_never_overwritten(data, tiny_weights):
    files = [data / IDS[0] / f"{IDS[0]}-{kind}.nii.gz" for kind in ("t1n-voided", "mask")]
    pair = ("--image", files[0], "--mask", files[1], "--output", files[0])
    assert run("infer", *pair, "--weights", tiny_weights, "--overwrite") == 2


@pytest.mark.parametrize(
    ("sigma", "told"),
    [("inf", "not inf"), ("0,0,-1", "not -1.0"), ("0,1", "--smoothing 0,1: "), ("wide", "--smoothing wide: ")],
)
def test_a_filter_that_cannot_be_is_refused(infer, capsys, sigma, told):
    assert infer("--smoothing", sigma) == 2
    assert told in capsys.readouterr().err


def test_a_filter_may_differ_by_direction(infer, tmp_path):
    assert infer("--smoothing", "0,0,1.5", "--report-path", tmp_path / "report") == 0
    settings = json.loads((tmp_path / "report" / "run.json").read_text())["settings"]
    assert settings["sampling"]["smoothing"] == [0, 0, 1.5]


def test_a_terminal_of_few_letters_ends_no_run(tmp_path):
    write_case(tmp_path / "data", "Größe", shape=(16, 16, 8))
    command = [sys.executable, "-m", "brats_inpainting", "check", "--data-path", str(tmp_path / "data")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "Gr\\xf6\\xdfe" in told


def test_the_version_is_told(capfd):
    assert run("--version") == 0
    assert capfd.readouterr().out.strip() == importlib.metadata.version("brats-inpainting")


def test_verbose_says_more(data, tmp_path, tiny_weights, capfd):
    fixed = ("--data-path", data, "--output-path", tmp_path / "out", "--weights", tiny_weights, "--steps", 1)
    assert run("infer", *fixed, "-v") == 0
    assert "windows of 32×32" in capfd.readouterr().err


def test_a_single_pair_logs_ten_lines_at_most_and_the_hash_with_verbose_only(data, tmp_path, tiny_weights, capfd):
    files = [data / IDS[0] / f"{IDS[0]}-{kind}.nii.gz" for kind in ("t1n-voided", "mask")]
    pair = ("--image", files[0], "--mask", files[1], "--weights", tiny_weights, "--steps", 2, "--samples", 2)
    assert run("infer", *pair, "--output", tmp_path / "out" / "a.nii.gz", "--report-path", tmp_path / "report") == 0
    printed = capfd.readouterr()
    assert 1 <= len((printed.err + printed.out).splitlines()) <= 10
    assert not re.search("[0-9a-f]{64}", printed.err + printed.out)
    assert run("infer", *pair, "--output", tmp_path / "out" / "b.nii.gz", "-v") == 0
    assert f"SHA-256 {checkpoint.sha256(tiny_weights)}" in capfd.readouterr().err


def test_evaluation_goes_on_without_a_case_that_cannot_be_scored(data, tmp_path, capfd):
    assert run("baseline", "--method", "mean", "--data-path", data, "--output-path", tmp_path / "out") == 0
    assert run("evaluate", "--predictions", tmp_path / "out", "--data-path", data) == 3
    assert f"{IDS[1]}-t1n.nii.gz: no such file" in capfd.readouterr().err
