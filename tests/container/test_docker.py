"""The image under docker run: every way of calling it, every restriction at once, and what it says when it fails."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting.config import BUNDLED_WEIGHTS
from brats_inpainting.evaluate import evaluate, find

from .conftest import IDS, IMAGE, ROOT, VERSION, assert_same, call, docker_run, given_to_the_user, run, voxels

STYLES = {
    "a task, underscores": ("infer", "--data_path=/input", "--output_path=/output"),
    "options alone": ("--input-dir", "/input", "--output-dir", "/output"),
    "an option that names no folder": ("--seed", "0"),
}
TASKS = {
    "infer",
    "check",
    "example",
    "evaluate",
    "report",
    "picture",
    "baseline",
    "train",
    "export",
    "info",
    "benchmark",
}
WHY_THE_CPU = r"(torch .* is built without CUDA|no NVIDIA GPU found)\n"
MANIFESTS = ("mlcube/mlcube.yaml", "mlcube/container_config.yaml", "mlcube/boutiques.json")
STRANGER = (
    *("--user", "12345:12345", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--shm-size", "64m", "--tmpfs", "/tmp"),
)


@pytest.fixture
def mounts(one, out):
    return ("-v", f"{one}:/input:ro", "-v", f"{out}:/output")


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_calling_replaces_an_earlier_fill_by_the_same_voxels(style, mounts, out, filled_one):
    (out / next(iter(filled_one))).write_bytes(b"from an earlier run")
    done = docker_run(*mounts, IMAGE, *STYLES[style])
    assert done.returncode == 0, done.stderr
    assert re.match(f"on the CPU: {WHY_THE_CPU}", done.stderr)
    assert_same(voxels(out), filled_one)


def test_the_image_is_a_bids_app(one, out, filled_one, tmp_path):
    (case,) = one.iterdir()
    anat = tmp_path / "bids" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "One", "BIDSVersion": "1.11.1"}')
    shutil.copy(case / f"{case.name}-t1n-voided.nii.gz", anat / "sub-01_T1w.nii.gz")
    shutil.copy(case / f"{case.name}-mask.nii.gz", anat / "sub-01_T1w_label-lesion_roi.nii.gz")
    mounts = ("-v", f"{given_to_the_user(tmp_path / 'bids')}:/bids:ro", "-v", f"{out}:/out")
    done = docker_run(*mounts, IMAGE, "/bids", "/out", "participant", "--participant_label", "01")
    assert done.returncode == 0, done.stderr
    fill = nib.load(out / "sub-01" / "anat" / "sub-01_desc-inpainted_T1w.nii.gz")
    np.testing.assert_array_equal(fill.dataobj, next(iter(filled_one.values())))
    assert docker_run(*mounts, IMAGE, "/bids", "/out", "group").returncode == 2


def test_a_stranger_with_no_rights_at_all_who_gives_no_arguments_gets_his_own_files(mounts, out, filled_one):
    out.chmod(0o777)
    done = docker_run(*mounts, IMAGE, restrictions=STRANGER)
    assert done.returncode == 0, done.stderr
    assert_same(voxels(out), filled_one)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in out.iterdir()} == {(12345, 12345)}


def test_the_fills_are_good_and_change_nothing_outside_the_mask(complete, predictions):
    rows, failed = evaluate(find({"filled": predictions}, complete), quiet=True)
    assert not failed
    assert len(rows) == len(IDS)
    assert all(row.changed_outside == 0 for row in rows)
    assert all(row.ssim > 0.6 for row in rows), rows  # tissue, not noise; a mean fill has 0.49 and 0.53 here


def test_the_image_makes_the_example_without_a_network(complete, out):
    done = docker_run("-v", f"{out}:/output", IMAGE, "example", "--output-path", "/output")
    assert done.returncode == 0, done.stderr
    assert "in the container only" not in done.stderr
    made, ours = voxels(out / IDS[0]), voxels(complete / IDS[0])
    for kind in ("t1n", "mask-healthy"):
        np.testing.assert_array_equal(made[f"{IDS[0]}-{kind}.nii.gz"], ours[f"{IDS[0]}-{kind}.nii.gz"])


def test_without_a_gpu_the_device_cuda_is_refused_with_the_reason(mounts):
    refused = docker_run(*mounts, IMAGE, "--device", "cuda")
    assert refused.returncode == 2
    assert re.match(f"device cuda: {WHY_THE_CPU}  Use --device cpu", refused.stderr)


def test_a_failing_case_is_named_last_with_its_reason_and_the_others_are_written(data, out, tmp_path, filled):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / IDS[0] / f"{IDS[0]}-mask.nii.gz").unlink()
    done = docker_run("-v", f"{tmp_path / 'data'}:/input:ro", "-v", f"{out}:/output", IMAGE)
    assert done.returncode == 3
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0].startswith(f"{IDS[0]}: ")
    assert "mask" in last[0] + last[1]
    assert list(voxels(out)) == list(filled)[1:]


def test_an_output_folder_of_somebody_else_is_refused_with_what_to_do(mounts, out):
    out.chmod(0o755)
    done = docker_run(*mounts, IMAGE, restrictions=("--user", "12345:12345"))
    assert done.returncode == 2
    assert "--user $(id -u):$(id -g)" in done.stderr
    assert not list(out.iterdir())


def test_an_empty_input_folder_is_refused(out, tmp_path):
    (tmp_path / "empty").mkdir()
    done = docker_run("-v", f"{tmp_path / 'empty'}:/input:ro", "-v", f"{out}:/output", IMAGE)
    assert done.returncode == 2
    assert "/input" in done.stderr


def test_the_version_is_the_same_wherever_it_stands():
    for name in ("Dockerfile", *MANIFESTS, "README.md", "docs/containers.md"):
        said = re.findall(r"(?:brats-inpainting:|image.version=\")(\d[\w.]*)", (ROOT / name).read_text())
        assert {*said} == {VERSION}, name


def test_all_tasks_are_there():
    helped = docker_run(IMAGE, "--help").stdout.partition("Commands")[2]
    assert {*re.findall(r"^  (\w+)  ", helped, re.M)} == TASKS
    assert docker_run(IMAGE, "--version").stdout.strip() == VERSION


@pytest.mark.parametrize("task", sorted(TASKS))
def test_help_lists_no_option_whose_package_is_not_in_the_image(task):
    helped = docker_run(IMAGE, task, "--help").stdout
    assert "--help" in helped
    assert not re.search("--viewer|--template|--cluster|biharmonic|telea", helped)


def test_a_fill_that_the_image_cannot_make_says_what_to_install_and_another_is_made(mounts, out, filled_one):
    for method in ("biharmonic", "telea"):
        done = docker_run(*mounts, IMAGE, "baseline", "--method", method, "--data-path=/input", "--output-path=/output")
        assert done.returncode == 2
        assert "Outside the container, run pip install 'brats-inpainting[baselines]'" in done.stderr
    done = docker_run(*mounts, IMAGE, "baseline", "--method", "mirror", "--data-path=/input", "--output-path=/output")
    assert done.returncode == 0, done.stderr
    assert list(voxels(out)) == list(filled_one)


ONE_STEP = ("infer", "--weights=small-2", "--steps=1")


@pytest.mark.parametrize(
    ("task", "mounted"), [(ONE_STEP, False), (ONE_STEP, True), (("example", "--output-path=/output"), False)]
)
def test_root_is_warned_when_results_would_be_lost_with_the_container(one, out, task, mounted):
    volumes = ("-v", f"{one}:/input:ro", *(("-v", f"{out}:/output") if mounted else ()))
    done = docker_run(*volumes, IMAGE, *task, restrictions=("--user", "0"))
    assert done.returncode == 0, done.stderr
    assert ("in the container only" in done.stderr) == (not mounted), done.stderr


def test_the_image_says_what_it_is_and_keeps_nothing_of_its_builder():
    image = json.loads(run("docker", "image", "inspect", IMAGE))[0]["Config"]
    labels = {name.rpartition(".")[2]: text for name, text in image["Labels"].items()}
    assert labels["version"] == VERSION
    assert labels["licenses"] == "MIT"
    assert labels["revision"] != "unknown"
    assert image["User"] not in ("", "0", "root")
    assert not [name for name in image["Env"] if name.startswith("PIP_")]


def test_neither_compilers_nor_wheels_are_left_in_the_image():
    wheels = "find / -xdev -name '*.whl' -not -path '/usr/share/python-wheels/*' -not -path '*/ensurepip/*'"
    look = f"for tool in gcc cc g++ make; do command -v $tool; done; {wheels}; echo looked"
    done = call("docker", "run", "--rm", "--entrypoint", "sh", "--user", "0", IMAGE, "-c", look)
    assert done.stdout == "looked\n", done.stderr


def test_the_bundled_weights_are_in_the_image():
    where = "import brats_inpainting.config as c; print(c.BUNDLED_WEIGHTS.name, c.BUNDLED_WEIGHTS.stat().st_size)"
    said = run("docker", "run", "--rm", "--entrypoint", "python3", IMAGE, "-c", where)
    assert said.split() == [BUNDLED_WEIGHTS.name, str(BUNDLED_WEIGHTS.stat().st_size)]


def test_the_geometry_is_what_the_organisers_ask_for(data, predictions):
    """Names, count, shape and qform as the challenge's validator reads them."""
    paths = list(predictions.iterdir())
    assert all(re.fullmatch(r".*(\d{5}-\d{3})-t1n-inference\.nii\.gz", path.name) for path in paths)
    assert len(paths) == len(list(data.iterdir()))
    for path in paths:
        image = nib.load(path)
        assert image.shape == (240, 240, 155)
        np.testing.assert_array_equal(image.get_qform(), [[-1, 0, 0, -0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
        assert image.get_data_dtype() == np.float32
        assert np.isfinite(image.get_fdata()).all()
