"""The real mlcube against the image: configure, infer, train, evaluate, with overrides and workspaces."""

import gzip
import json
import os
import re
import shutil
import subprocess
import tarfile
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
import yaml
from scipy import ndimage

from brats_inpainting.data import cases, volume
from brats_inpainting.inpainter import Inpainter

from .conftest import (
    AS_USER,
    IDS,
    IMAGE,
    UID,
    VERSION,
    assert_same,
    call,
    copy_of_the_project,
    docker_run,
    given_to_the_user,
    run,
    voxels,
)

GZIP = b"\x1f\x8b"


@pytest.fixture
def project(tmp_path):
    return copy_of_the_project(tmp_path / "project")


@pytest.fixture
def mlcube(project, tmp_path):
    """Call mlcube on the project, with its settings file kept out of the home folder."""

    def mlcube_(task, *args):
        settings = os.environ | {"MLCUBE_SYSTEM_SETTINGS": str(tmp_path / "mlcube.yaml")}
        command = (*AS_USER, "mlcube", "run", f"--mlcube={project / 'mlcube'}", f"--task={task}", *args)
        return run(*command, env=settings)

    return mlcube_


def test_the_example_is_filled_and_scored_out_of_the_box(mlcube, project, complete, filled_one):
    workspace = project / "workspace"
    shutil.copytree(complete / IDS[0], workspace / "data" / IDS[0])
    mlcube("infer", "--platform=docker")
    assert_same(voxels(workspace / "predictions"), filled_one)
    mlcube("evaluate")
    scores = (workspace / "report" / "scores.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in scores[1:]] == [[IDS[0], "predictions"]]


def test_inputs_outputs_and_resources_can_be_chosen(mlcube, one, out, filled_one):
    mlcube("infer", f"data_path={one}", f"output_path={out}", "--network=none", "--memory=4g")
    assert_same(voxels(out), filled_one)
    assert {path.stat().st_uid for path in out.iterdir()} == {UID}


def test_another_workspace_serves_as_well(mlcube, project, one, tmp_path, filled_one):
    workspace = tmp_path / "elsewhere"
    shutil.copytree(one, workspace / "data")
    shutil.copytree(project / "workspace" / "additional_files", workspace / "additional_files")
    (workspace / "parameters.yaml").write_text("seed: 1\n")
    given_to_the_user(workspace)
    mlcube("infer", f"--workspace={workspace}")
    found = voxels(workspace / "predictions")
    assert list(found) == list(filled_one)
    assert all((found[name] != filled_one[name]).sum() > 1000 for name in filled_one)  # another seed


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
    (stack,) = inpainter.fill([scan])
    assert [type(window.place[0]) for window in stack.windows] == [int, int]
    stacked_LPS = scan.frame.undo(stack.mean_SHW, scan.mask_XYZ.shape)
    smoothed_LPS = ndimage.gaussian_filter(stacked_LPS, 1.075).clip(0, 1)
    low, high = np.percentile(scan.voided_XYZ, (0.5, 99.5))
    expected_LPS = low + (high - low) * (smoothed_LPS - smoothed_LPS.min()) / np.ptp(smoothed_LPS)
    np.testing.assert_allclose(found, expected_LPS, atol=1e-3 * (high - low))  # what batch sizes may differ by


def test_what_train_writes_is_what_infer_uses(mlcube, project, complete, one, filled_one):
    workspace = project / "workspace"
    shutil.copytree(complete / IDS[0], workspace / "data" / IDS[0])
    mlcube("train", "parameters_file=parameters/smoke.yaml")
    assert (workspace / "model" / "weights.safetensors").stat().st_uid == UID
    said = mlcube("infer", f"data_path={one}", "additional_files_path=model")
    assert "weights weights.safetensors" in said
    found = voxels(workspace / "predictions")
    assert list(found) == list(filled_one)
    assert all((found[name] != filled_one[name]).sum() > 1000 for name in filled_one)


@pytest.fixture
def configured():
    """A name for the image that mlcube builds; it is removed."""
    name = f"{IMAGE}-configured"
    yield name
    run("docker", "image", "rm", "--force", name)


def in_layers(image, *words):
    """Return which of the words occur in an image's layers and settings."""
    found = set()
    saving = subprocess.Popen(("docker", "save", image), stdout=subprocess.PIPE)
    with saving, tarfile.open(fileobj=saving.stdout, mode="r|") as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            file = archive.extractfile(member)
            file = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(GZIP) else file  # newer engines compress
            before = b""
            while block := file.read(2**20):
                found |= {word for word in words if word in before + block}
                before = block[-100:]
    return found


def test_configure_builds_the_image_and_nothing_that_pip_was_told_stays_in_it(project, configured, tmp_path):
    """The packages come from the builder's cache: make test-container installed them from the same address."""
    password = urlsplit(os.environ["WHEELS"]).password
    manifest = project / "mlcube" / "mlcube.yaml"
    settings = yaml.safe_load(manifest.read_text())
    given = {
        "BASE_IMAGE": os.environ["BASE_IMAGE"],
        "TORCH": "+cpu",
        "SOURCE": "https://example.org/it",
        "REVISION": "1",
    }
    given |= {"PIP_NO_INDEX": 1, "PIP_FIND_LINKS": os.environ["WHEELS"]}
    said = " ".join(f"--build-arg {name}={value}" for name, value in given.items())
    settings["docker"] |= {"image": configured, "build_args": f"--network host {said}"}
    manifest.write_text(yaml.safe_dump(settings))
    environment = os.environ | {"HOME": str(tmp_path), "MLCUBE_SYSTEM_SETTINGS": str(tmp_path / "mlcube.yaml")}
    run(*AS_USER, "mlcube", "configure", f"--mlcube={project / 'mlcube'}", "--platform=docker", env=environment)
    assert docker_run(configured, "--version").stdout.strip() == VERSION

    labels = json.loads(run("docker", "image", "inspect", "--format", "{{json .Config.Labels}}", configured))
    assert labels["org.opencontainers.image.source"] == given["SOURCE"]
    assert labels["org.opencontainers.image.revision"] == given["REVISION"]
    history = run("docker", "history", "--no-trunc", configured)
    assert "COPY" in history
    assert not re.search(f"{password}|PIP_|127.0.0.1", history)
    known = b"def warn_if_lost(folder"  # it is in the sources: the search works
    assert in_layers(configured, password.encode(), known) == {known}


def test_a_failing_task_shows_its_reason_and_fails(project, out, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = (f"data_path={tmp_path / 'empty'}", f"output_path={out}")
    settings = os.environ | {"MLCUBE_SYSTEM_SETTINGS": str(tmp_path / "mlcube.yaml")}
    command = (*AS_USER, "mlcube", "run", f"--mlcube={project / 'mlcube'}", "--task=infer", *paths)
    done = call(*command, env=settings)
    assert done.returncode != 0
    assert "no case" in done.stdout + done.stderr
