"""The recipes for clusters: they parse, they speak of this version, and every case falls to exactly one task."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "docs" / "recipes-hpc"
ARRAY = RECIPES / "array_job.sh"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SCHEDULERS = ("SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "JOB_COMPLETION_INDEX")


def task(command, number, tmp_path, *, variable=SCHEDULERS[0], **settings):
    """Run a recipe as one task of an array job, with nothing of a job that this test may run in."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PBS_", "JOB_"))}
    (tmp_path / "tmp").mkdir(exist_ok=True)
    env = clean | {variable: str(number), "TMPDIR": str(tmp_path / "tmp")} | settings
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def echo(tmp_path):
    """A command that notes its arguments, and the cases that it finds as any program would."""
    script = tmp_path / "note.py"
    script.write_text(
        "import json, os, sys\nfrom pathlib import Path\n"
        "given = dict(zip(sys.argv[2:-1], sys.argv[3:]))\n"
        "files = sorted(p.parent.name + '/' + p.name for p in Path(given['--data-path']).glob('*/*'))\n"
        "print(json.dumps([sys.argv[1:], given, files, os.environ.get('OMP_NUM_THREADS')]))\n"
    )
    return f"{sys.executable} {script}"


def cases(folder, number):
    for index in range(number):
        (folder / f"case {index}").mkdir(parents=True)
        (folder / f"case {index}" / "scan").touch()
    return folder


@pytest.mark.parametrize("variable", SCHEDULERS)
@pytest.mark.parametrize(("number", "shares"), [(7, 3), (4, 4), (2, 3)])
def test_every_case_falls_to_exactly_one_task(number, shares, variable, echo, tmp_path):
    data = cases(tmp_path / "data", number)
    found, folders = [], set()
    for index in range(shares):
        command = [ARRAY, data, tmp_path / "out", str(shares), "--preset", "paper"]
        done = task(command, index, tmp_path, variable=variable, INPAINTING=echo)
        assert done.returncode == 0, done.stderr
        if len(lines := done.stdout.splitlines()) == 1:
            assert index >= number
            continue
        said, given, files, _ = json.loads(lines[1])
        assert (said[0], said[-3:]) == ("infer", ["--resume", "--preset", "paper"])
        folders |= {given["--output-path"], given["--report-path"]}
        found += files
    assert sorted(found) == sorted(f"case {index}/scan" for index in range(number))
    assert len(folders) == 2 * min(number, shares)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_task_keeps_to_its_cores(echo, tmp_path):
    command = [ARRAY, cases(tmp_path / "data", 1), tmp_path / "out", "1"]
    done = task(command, 0, tmp_path, INPAINTING=echo, SLURM_CPUS_PER_TASK="3")
    assert json.loads(done.stdout.splitlines()[1])[-1] == "3"


def test_the_exit_code_is_that_of_infer(tmp_path):
    command = [ARRAY, cases(tmp_path / "data", 1), tmp_path / "out", "1"]
    assert task(command, 0, tmp_path, INPAINTING="false").returncode == 1


def test_a_task_beyond_the_shares_and_files_beside_the_cases_are_refused(tmp_path):
    data = cases(tmp_path / "data", 1)
    assert task([ARRAY, data, tmp_path / "out", "3"], 3, tmp_path).returncode == 2
    (data / "a-mask.nii.gz").touch()
    done = task([ARRAY, data, tmp_path / "out", "1"], 0, tmp_path)
    assert done.returncode == 2
    assert "a-mask.nii.gz" in done.stderr


@pytest.mark.parametrize("script", sorted(RECIPES.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse_and_can_be_started(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


def test_options_of_infer_in_the_recipes_exist():
    asked = [sys.executable, "-m", "brats_inpainting", "infer", "--help"]
    known = subprocess.run(
        asked, env=os.environ | {"COLUMNS": "300"}, capture_output=True, text=True, check=True
    ).stdout
    for option in ("--data-path", "--output-path", "--report-path", "--resume", "--cluster", "--participant-label"):
        assert option in known


def test_the_script_of_dask_jobs_says_how_it_is_called():
    if not all(importlib.util.find_spec(name) for name in ("distributed", "dask_jobqueue")):
        compile((RECIPES / "dask_jobs.py").read_text(), "dask_jobs.py", "exec")
        pytest.skip("dask-jobqueue is not installed: compiled only")
    command = [sys.executable, RECIPES / "dask_jobs.py", "--show", "--cores", "3", "--directive=--gres=gpu:1"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--cpus-per-task=3" in shown
    assert "--gres=gpu:1" in shown
    assert "--nthreads 3" in shown


def test_the_manifest_starts_this_version_and_as_many_pods_as_shares():
    job = yaml.safe_load((RECIPES / "kubernetes.yaml").read_text())
    spec, (container,) = job["spec"], job["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith(f"/brats-inpainting:{VERSION}")
    bash, script, _, _, shares = container["command"]
    assert (bash, Path(script).name) == ("bash", ARRAY.name)
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["maxFailedIndexes"] == int(shares)
