"""The command lines of three generations of MedPerf, word for word, and what its grader asks of the output."""

import json
import os
import shlex
import shutil
import tarfile

import pytest
import yaml

from .conftest import (
    AS_USER,
    IMAGE,
    OWNER,
    ROOT,
    UID,
    assert_same,
    call,
    copy_of_the_project,
    given_to_the_user,
    run,
    voxels,
)

PARTS = ["additional_files.tar.gz", "container_config.yaml", "mlcube.yaml", "parameters.yaml"]
AS_CALLER = "-u $(id -u):$(id -g)"


@pytest.fixture
def cube(tmp_path):
    """What MedPerf's client downloads of a submission: the manifest, the parameters, the additional files."""
    folder, project = tmp_path / "cube", copy_of_the_project(tmp_path / "project")
    run("make", "submission", f"IMAGE={IMAGE}", cwd=project)
    (folder / "workspace" / "additional_files").mkdir(parents=True)
    shutil.unpack_archive(project / "dist" / "submission.tar.gz", folder / "unpacked")
    assert sorted(path.name for path in (folder / "unpacked").iterdir()) == PARTS
    for name in ("mlcube.yaml", "container_config.yaml"):
        shutil.copy(folder / "unpacked" / name, folder)
    shutil.copy(folder / "unpacked" / "parameters.yaml", folder / "workspace")
    shutil.unpack_archive(folder / "unpacked" / "additional_files.tar.gz", folder / "workspace" / "additional_files")
    shutil.rmtree(folder / "unpacked")
    return given_to_the_user(folder)


@pytest.mark.parametrize("generation", [2023, 2024])
def test_the_clients_that_call_mlcube_get_their_predictions(generation, cube, one, out, filled_one, tmp_path):
    manifest = cube / "mlcube.yaml"
    docker = yaml.safe_load(manifest.read_text())["docker"]
    given = {f"docker.{name}": f"{docker[name]} {AS_CALLER}" for name in ("cpu_args", "gpu_args")}
    command = (
        f'mlcube {"--log-level debug " if generation == 2024 else ""}run --mlcube="{manifest}" --task=infer'
        f' --platform=docker --network=none --mount=ro data_path="{one}" output_path="{out}"'
        + "".join(f' -P{name}="{value}"' for name, value in given.items())
        + (" -Pplatform.accelerator_count=0" if generation == 2024 else "")
    )
    settings = os.environ | {"MLCUBE_SYSTEM_SETTINGS": str(tmp_path / "mlcube-settings.yaml")}
    run(*AS_USER, *shlex.split(command), env=settings)
    assert_same(voxels(out), filled_one)
    assert {path.stat().st_uid for path in out.iterdir()} == {UID}


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


def predict(config, parameters, data, out, tmp_path):
    """Call docker as MedPerf 0.3 does, with the parameters file and the configuration that are shipped."""
    task = config["tasks"]["infer"]
    assert set(task["run_args"]) <= {"command", "entrypoint", "shm_size", "gpus", "environment"}
    assert yaml.safe_load(parameters.read_text())  # the client passes over a file without keys
    host = {"data_path": data, "parameters_file": parameters, "output_path": out}
    for name in ("additional_files", "tmp"):
        host[name] = tmp_path / name
        host[name].mkdir()
        given_to_the_user(host[name])
    volumes = [
        f"--volume={host[name]}:{volume['mount_path']}:{mode}"
        for kind, mode in (("input_volumes", "ro"), ("output_volumes", "rw"))
        for name, volume in task[kind].items()
    ]
    command = shlex.split(task["run_args"]["command"])
    tmp = f"--volume={host['tmp']}:/tmp:rw"
    run("docker", "run", "--rm", "-u", OWNER[1], *volumes, tmp, "--network", "none", config["image"], *command)


def test_the_client_that_calls_docker_itself_gets_its_predictions(cube, one, out, filled_one, tmp_path):
    config = yaml.safe_load((cube / "container_config.yaml").read_text())
    assert (config.pop("container_type"), config["image"]) == ("DockerImage", IMAGE)
    shipped = yaml.safe_load((ROOT / "mlcube" / "container_config.yaml").read_text())
    assert config["tasks"] == shipped["tasks"]
    predict(config, cube / "workspace" / "parameters.yaml", one, out, tmp_path)
    assert_same(voxels(out), filled_one)


def test_the_client_that_loads_an_archive_gets_its_predictions(one, out, filled_one, tmp_path):
    """The archive is the only thing that is left of its image when the client gets it."""
    project, name, link = (
        copy_of_the_project(tmp_path / "project"),
        f"{IMAGE}-archived",
        "https://example.org/a?b=c&d=e",
    )
    run("docker", "tag", IMAGE, name)
    run("make", "submission", f"IMAGE={name}", f"ARCHIVE={link}", cwd=project)
    run("docker", "image", "rm", name)
    config = yaml.safe_load((project / "dist" / "submission" / "container_config.yaml").read_text())
    assert (config.pop("container_type"), config["image"]) == ("DockerArchive", link)
    with tarfile.open(project / "dist" / "image.tar") as archive:
        (config["image"],) = json.load(archive.extractfile("manifest.json"))[0]["RepoTags"]
    run("docker", "load", "-i", project / "dist" / "image.tar")
    (project / "dist" / "image.tar").unlink()
    try:
        predict(config, project / "dist" / "submission" / "parameters.yaml", one, out, tmp_path)
    finally:
        run("docker", "image", "rm", name)
    assert_same(voxels(out), filled_one)


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
