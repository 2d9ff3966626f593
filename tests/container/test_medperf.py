"""The command lines of three generations of MedPerf, word for word, and what its grader asks of the output."""

import os
import shlex
import shutil

import pytest
import yaml

from .conftest import IMAGE, ROOT, assert_same, call, copy_of_the_project, run, voxels

PARTS = ["additional_files.tar.gz", "mlcube.yaml", "parameters.yaml"]
AS_CALLER = "-u $(id -u):$(id -g)"


@pytest.fixture
def cube(tmp_path):
    """What MedPerf's client downloads of a submission: the manifest, the parameters, the additional files."""
    folder, project = tmp_path / "cube", copy_of_the_project(tmp_path / "project")
    run("make", "submission", f"IMAGE={IMAGE}", cwd=project)
    (folder / "workspace" / "additional_files").mkdir(parents=True)
    shutil.unpack_archive(project / "dist" / "submission.tar.gz", folder / "unpacked")
    assert sorted(path.name for path in (folder / "unpacked").iterdir()) == PARTS
    shutil.copy(folder / "unpacked" / "mlcube.yaml", folder)
    shutil.copy(folder / "unpacked" / "parameters.yaml", folder / "workspace")
    shutil.unpack_archive(folder / "unpacked" / "additional_files.tar.gz", folder / "workspace" / "additional_files")
    shutil.rmtree(folder / "unpacked")
    return folder


@pytest.mark.parametrize("generation", [2023, 2024])
def test_the_clients_that_call_mlcube_get_their_predictions(generation, cube, data, out, filled, tmp_path):
    manifest = cube / "mlcube.yaml"
    docker = yaml.safe_load(manifest.read_text())["docker"]
    given = {f"docker.{name}": f"{docker[name]} {AS_CALLER}" for name in ("cpu_args", "gpu_args")}
    command = (
        f'mlcube {"--log-level debug " if generation == 2024 else ""}run --mlcube="{manifest}" --task=infer'
        f' --platform=docker --network=none --mount=ro data_path="{data}" output_path="{out}"'
        + "".join(f' -P{name}="{value}"' for name, value in given.items())
        + (" -Pplatform.accelerator_count=0" if generation == 2024 else "")
    )
    settings = os.environ | {"MLCUBE_SYSTEM_SETTINGS": str(tmp_path / "mlcube-settings.yaml")}
    run(*shlex.split(command), env=settings)
    assert_same(voxels(out), filled)
    assert {path.stat().st_uid for path in out.iterdir()} == {os.getuid()}


def test_a_submission_depends_on_its_contents_alone(tmp_path):
    packed = set()
    for mask in (0o022, 0o077):
        project = tmp_path / str(mask)
        before = os.umask(mask)
        copy_of_the_project(project)
        call("touch", project / "workspace" / "parameters.yaml")
        weights = "project/brats_inpainting/weights/small-2.safetensors"
        run("make", "submission", "IMAGE=docker.io/you/it:1", f"WEIGHTS={weights}", cwd=project)
        os.umask(before)
        packed.add((project / "dist" / "submission.tar.gz").read_bytes())
    assert len(packed) == 1


def test_the_client_that_calls_docker_itself_gets_its_predictions(data, out, filled, tmp_path):
    config = yaml.safe_load((ROOT / "mlcube" / "container_config.yaml").read_text())
    assert config["container_type"] == "DockerImage"
    task = config["tasks"]["infer"]
    assert set(task["run_args"]) <= {"command", "entrypoint", "shm_size", "gpus", "environment"}
    (tmp_path / "additional_files").mkdir()
    (tmp_path / "parameters_file.yaml").write_text("{}\n")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    host = {
        "data_path": data,
        "parameters_file": tmp_path / "parameters_file.yaml",
        "additional_files": tmp_path / "additional_files",
        "output_path": out,
    }
    volumes = [
        f"--volume={host[name]}:{volume['mount_path']}:{mode}"
        for kind, mode in (("input_volumes", "ro"), ("output_volumes", "rw"))
        for name, volume in task[kind].items()
    ]
    run(
        *("docker", "run", "--rm", "-u", f"{os.getuid()}:{os.getgid()}", *volumes),
        *(f"--volume={tmp_path / 'tmp'}:/tmp:rw", "--network", "none"),
        *(IMAGE, *shlex.split(task["run_args"]["command"])),
    )
    assert_same(voxels(out), filled)


def test_the_manifest_keeps_to_medperfs_rules():
    manifest = yaml.safe_load((ROOT / "mlcube" / "mlcube.yaml").read_text())
    infer = manifest["tasks"]["infer"]["parameters"]
    assert infer["inputs"].pop("parameters_file")["default"] == "parameters.yaml"
    assert infer["inputs"].pop("data_path")
    assert all(extra["default"].startswith("additional_files/") for extra in infer["inputs"].values())
    assert list(infer["outputs"]) == ["output_path"]
    assert list(manifest["tasks"]) == ["infer", "train", "evaluate"]
    for name in ("cpu_args", "gpu_args"):
        assert "h" not in manifest["docker"][name]  # mlcube's -P takes it for --help
        assert "--network" not in manifest["docker"][name]  # MedPerf says it, and docker refuses to hear it twice
