"""The real mlcube against the image: configure, infer, train, evaluate, with overrides and workspaces."""

import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import yaml
from scipy import ndimage

from brats_inpainting.data import cases, volume
from brats_inpainting.infer import Inpainter

from .conftest import (
    IDS,
    VERSION,
    WHEELHOUSE,
    assert_same,
    call,
    copy_of_the_project,
    docker_run,
    run,
    voxels,
)


@pytest.fixture
def project(tmp_path):
    return copy_of_the_project(tmp_path / "project")


@pytest.fixture
def mlcube(project, tmp_path):
    """Call mlcube on the project, with its settings file kept out of the home folder."""

    def mlcube_(task, *args):
        settings = os.environ | {"MLCUBE_SYSTEM_SETTINGS": str(tmp_path / "mlcube.yaml")}
        return run("mlcube", "run", f"--mlcube={project / 'mlcube'}", f"--task={task}", *args, env=settings)

    return mlcube_


def test_the_example_is_filled_and_scored_out_of_the_box(mlcube, project, complete, filled):
    workspace = project / "workspace"
    shutil.copytree(complete, workspace / "data")
    mlcube("infer", "--platform=docker")
    assert_same(voxels(workspace / "predictions"), filled)
    mlcube("evaluate")
    scores = (workspace / "report" / "scores.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in scores[1:]] == IDS


def test_inputs_outputs_and_resources_can_be_chosen(mlcube, data, out, filled):
    mlcube("infer", f"data_path={data}", f"output_path={out}", "--network=none", "--memory=4g")
    assert_same(voxels(out), filled)
    assert {path.stat().st_uid for path in out.iterdir()} == {os.getuid()}


def test_another_workspace_serves_as_well(mlcube, project, complete, tmp_path, filled):
    workspace = tmp_path / "elsewhere"
    shutil.copytree(complete, workspace / "data")
    shutil.copytree(project / "workspace" / "additional_files", workspace / "additional_files")
    (workspace / "parameters.yaml").write_text("seed: 1\n")
    mlcube("infer", f"--workspace={workspace}")
    found = voxels(workspace / "predictions")
    assert list(found) == list(filled)
    assert any((found[name] != filled[name]).any() for name in filled)  # another seed


def test_the_papers_procedure_is_one_argument_away(mlcube, project, data, tmp_path):
    """Two slices, and two of the thousand steps: whole slices are replaced, filtered and rescaled."""
    case = tmp_path / "data" / IDS[0]
    shutil.copytree(data / IDS[0], case)
    path = case / f"{IDS[0]}-mask.nii.gz"
    mask = nib.load(path)
    mask_XYZ = np.asanyarray(mask.dataobj).copy()
    mask_XYZ[:, :, mask_XYZ.sum(axis=(0, 1)).argsort()[:-2]] = 0
    nib.save(nib.Nifti1Image(mask_XYZ, mask.affine, mask.header), path)
    with (project / "workspace" / "parameters" / "infer-paper.yaml").open("a") as file:
        file.write("steps: 2\n")
    mlcube("infer", f"data_path={case.parent}", "parameters_file=parameters/infer-paper.yaml")
    found = voxels(project / "workspace" / "predictions")[f"{IDS[0]}-t1n-inference.nii.gz"]

    inpainter = Inpainter.load("small-2", preset="paper", steps=2, device="cpu")
    assert (inpainter.sampling.sampler, inpainter.sampling.noise) == ("ddpm", "independent")
    scan = volume.prepare(cases.load(cases.find(case.parent)[0]))
    stack = inpainter.stack(scan)
    assert [type(window.place[0]) for window in stack.windows] == [int, int]
    next(inpainter.fill([stack]))
    stacked_LPS = scan.frame.undo(stack.mean_SHW, scan.mask_XYZ.shape)
    smoothed_LPS = ndimage.gaussian_filter(stacked_LPS, 1.075).clip(0, 1)
    low, high = np.percentile(scan.voided_XYZ, (0.5, 99.5))
    expected_LPS = low + (high - low) * (smoothed_LPS - smoothed_LPS.min()) / np.ptp(smoothed_LPS)
    np.testing.assert_allclose(found, expected_LPS, atol=1e-3 * (high - low))  # what batch sizes may differ by


def test_what_train_writes_is_what_infer_uses(mlcube, project, complete, data, filled):
    workspace = project / "workspace"
    shutil.copytree(complete, workspace / "data")
    mlcube("train", "parameters_file=parameters/smoke.yaml")
    assert (workspace / "model" / "weights.safetensors").stat().st_uid == os.getuid()
    said = mlcube("infer", f"data_path={data}", "additional_files_path=model")
    assert "weights weights.safetensors" in said
    found = voxels(workspace / "predictions")
    assert list(found) == list(filled)
    assert all((found[name] != filled[name]).any() for name in filled)


@pytest.fixture
def wheels():
    """Serve the wheelhouse as make image does, so that the builder's cache knows the long layers."""
    command = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", WHEELHOUSE, "8765")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        yield "--network host --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=http://127.0.0.1:8765/"
        server.terminate()


def test_configure_builds_the_image(project, wheels):
    manifest = project / "mlcube" / "mlcube.yaml"
    settings = yaml.safe_load(manifest.read_text())
    base = f"--build-arg BASE_IMAGE={os.environ['BASE_IMAGE']} --build-arg TORCH=+cpu"
    settings["docker"] |= {"image": "brats-inpainting:configured", "build_args": f"{base} {wheels}"}
    manifest.write_text(yaml.safe_dump(settings))
    run("mlcube", "configure", f"--mlcube={project / 'mlcube'}", "--platform=docker")
    assert docker_run("brats-inpainting:configured", "--version").stdout.strip() == VERSION
    run("docker", "image", "rm", "brats-inpainting:configured")


def test_a_failing_task_shows_its_reason_and_fails(project, out, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = (f"data_path={tmp_path / 'empty'}", f"output_path={out}")
    done = call("mlcube", "run", f"--mlcube={project / 'mlcube'}", "--task=infer", *paths)
    assert done.returncode != 0
    assert "no case" in done.stdout + done.stderr
