"""The real mlcube against the image: describe, configure, infer, train, evaluate, with overrides and workspaces."""

import os
import shutil

import pytest
import yaml

from .conftest import IDS, ROOT, assert_same, call, run, voxels

# Four steps of a network so small that they take a second.
QUICK = {
    "unet": {"width": 32, "multipliers": [1], "blocks": 1, "attention_at": [], "out_channels": 1},
    "diffusion": {"prediction": "x0", "window": 32},
    "max_steps": 4,
    "batch_size": 2,
    "lr": 1e-3,
}


@pytest.fixture
def project(tmp_path):
    """The files of the project that git knows, so that the workspace starts empty."""
    files = run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]
    for name in files:
        target = tmp_path / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target, follow_symlinks=False)
    return tmp_path / "project"


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


def test_what_train_writes_is_what_infer_uses(mlcube, project, complete, data, filled):
    workspace = project / "workspace"
    shutil.copytree(complete, workspace / "data")
    (workspace / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    mlcube("train", "parameters_file=quick.yaml")
    assert (workspace / "model" / "weights.safetensors").stat().st_uid == os.getuid()
    said = mlcube("infer", f"data_path={data}", "additional_files_path=model")
    assert "weights weights.safetensors" in said
    found = voxels(workspace / "predictions")
    assert list(found) == list(filled)
    assert all((found[name] != filled[name]).any() for name in filled)


def test_configure_builds_the_image_where_it_is_missing(project):
    manifest = project / "mlcube" / "mlcube.yaml"
    settings = yaml.safe_load(manifest.read_text())
    tag = "brats-inpainting:configured"
    settings["docker"] |= {"image": tag, "build_args": f"--build-arg BASE_IMAGE={os.environ['BASE_IMAGE']}"}
    # The long layers come out of the builder's cache only with make image's own arguments, so a few lines will do here:
    # what is shown is that mlcube finds the Dockerfile and the context, and builds.
    docker = project / "Dockerfile"
    head = docker.read_text().split("# Where pip looks")[0]
    docker.write_text(head + "COPY project/mlcube.py requirements.txt /app/\n")
    manifest.write_text(yaml.safe_dump(settings))
    call("docker", "image", "rm", tag)
    run("mlcube", "configure", f"--mlcube={project / 'mlcube'}", "--platform=docker")
    assert run("docker", "run", "--rm", tag, "ls", "/app").split() == ["mlcube.py", "requirements.txt"]
    run("docker", "image", "rm", tag)


def test_a_failing_task_shows_its_reason_and_fails(project, out, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = (f"data_path={tmp_path / 'empty'}", f"output_path={out}")
    done = call("mlcube", "run", f"--mlcube={project / 'mlcube'}", "--task=infer", *paths)
    assert done.returncode != 0
    assert "no case" in done.stdout + done.stderr
