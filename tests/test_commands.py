"""Every command of every page runs here on tiny inputs; of programs that cannot run here, the arguments are checked."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path
from shutil import which

import nibabel as nib
import numpy as np
import pytest
import typer
import yaml

from brats_inpainting.cli.app import VERBOSITY, _normalised, app
from brats_inpainting.data.example import CASE
from brats_inpainting.data.nifti import LPS

from .conftest import brain, lesion, write_case
from .typed import ELSEWHERE

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"brats-inpainting:{PROJECT['version']}"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
TYPED = Path(__file__).with_name("typed.py")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.stem: found for path in DOCUMENTS if (found := BLOCK.findall(path.read_text()))}
OF_THE_SYSTEM = ("bash", "cat", "cp", "env", "find", "gzip", "id", "ln", "mkdir", "mv", "rm", "sed", "tar", "which")
USAGE_ERROR = typer.BadParameter.__base__
PARTS = ("docs", "mlcube", "studies", "tests", "workspace")
SHAPE = (48, 48, 12)


def parses(argv):
    """Check a command of ours without running it: its name, its options and their values."""
    group = typer.main.get_group(app)
    name, *options = [arg for arg in _normalised(argv) if arg not in VERBOSITY]
    context = typer.Context(group, info_name="brats-inpainting", **group.context_settings)
    group.commands[name].make_context(name, options, parent=context)


def after(argv, *words):
    """Return what follows a sequence of words."""
    at = next(at for at in range(len(argv)) if tuple(argv[at : at + len(words)]) == words)
    return argv[at + len(words) :]


def make(argv):
    makefile = (ROOT / "Makefile").read_text()
    for word in argv:
        name, is_setting, _ = word.partition("=")
        assert re.search(rf"\b{name}\b" if is_setting else rf"^{name}:", makefile, re.MULTILINE), word


def pip(argv):
    names = re.findall(r"^[\w.-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert argv[0] == "install"
    for word in argv[1:]:
        if word.startswith(".["):
            assert set(word[2:-1].split(",")) <= PROJECT["optional-dependencies"].keys()
        elif not word.startswith(("-", "http")) and word != ".":
            assert word in names or Path(word).is_file(), word


def docker(argv):
    if argv[0] == "save":
        assert argv[-1] == IMAGE
        return
    assert argv[0] == "run"
    mounts = [re.fullmatch(r"(/[^:]+):(/[^:]+)(:r[ow])?", word) for word in argv]
    there = {mount[2]: mount[1] for mount in mounts if mount}
    assert all(Path(folder).exists() for folder in there.values())
    parses([there.get(word, word) for word in after(argv, IMAGE)] or ["infer"])


def mlcube(argv):
    options = dict(word.lstrip("-").split("=", 1) for word in argv if "=" in word and not word.startswith("-P"))
    manifest = Path(options["mlcube"])
    manifest = manifest / "mlcube.yaml" if manifest.is_dir() else manifest
    task = yaml.safe_load(manifest.read_text())["tasks"][options["task"]]["parameters"]
    given = {word.split("=")[0] for word in argv if "=" in word and not word.startswith("-")}
    assert "run" in argv
    assert given <= {*task["inputs"], *task["outputs"]}


def batch_job(argv):
    """Check a job of SLURM or PBS that runs one of our recipes."""
    at, script = next((at, Path(word)) for at, word in enumerate(argv) if word.endswith(".sh"))
    assert os.access(script, os.X_OK)
    given = argv[at + 1 :]
    if script.name == "array_job.sh":
        cases, out, shares, *options = given
        assert int(shares) > 0
        given = ["--data-path", cases, "--output-path", out, *options]
    parses(["infer", *given])


def python(argv):
    """Check a script: it exists, and its text has every option."""
    own, _, of_infer = " ".join(argv).partition(" -- ")
    place = argv[1].replace(".", "/") if argv[0] == "-m" else argv[0]
    if argv[:2] == ["-m", "venv"]:
        return
    sources = [path for path in (Path(f"{place}.py"), *Path(place).glob("*.py"), Path(place)) if path.is_file()]
    text = "".join(path.read_text() for path in sources)
    assert sources, place
    assert all(f'"{option}"' in text for option in re.findall(r"--[\w-]+", own))
    if of_infer:
        parses(["infer", *of_infer.split()])


def files_exist(argv):
    named = [word.rpartition("=")[2] for word in argv if "/" in word]
    assert named
    assert all(Path(name).exists() for name in named)


# Not run here: they change the machine, or need an engine, a cluster, several processes, or minutes.
CHECKED = {
    "accelerate": lambda argv: parses(after(argv, "-m", "brats_inpainting")),
    "apptainer": lambda argv: None if argv[0] in ("build", "run") else pytest.fail(argv[0]),
    "bids-validator-deno": files_exist,
    "bosh": files_exist,
    "brats-inpainting": parses,
    "docker": docker,
    "kubectl": files_exist,
    "make": make,
    "mlcube": mlcube,
    "pip": pip,
    "python": python,
    "python3": python,
    "qsub": batch_job,
    "sbatch": batch_job,
    "torchrun": lambda argv: parses(after(argv, "-m", "brats_inpainting")),
}


def save(path, volume):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, LPS), path)


def write_complete_case(folder, case_id, seed):
    """Write a case with its truth and both of its masks, as the challenge's training data."""
    whole, healthy, tumour = brain(SHAPE, seed), lesion(SHAPE), lesion(SHAPE, (0.4, 0.6, 0.5), 0.1)
    case = write_case(folder, case_id, shape=SHAPE, mask=healthy | tumour, seed=seed)
    for name, volume in (("t1n", whole), ("mask-healthy", healthy), ("mask-unhealthy", tumour)):
        save(case / f"{case_id}-{name}.nii.gz", volume.astype(np.float32))


@pytest.fixture
def place(tmp_path):
    """A folder with everything that the pages speak of."""
    whole = brain(SHAPE)
    for name, volume in {"T1": whole, "mask": lesion(SHAPE), "brain-mask": whole > 0}.items():
        save(tmp_path / f"{name}.nii.gz", volume.astype(np.float32))
    for seed, case_id in enumerate((CASE, "BraTS-GLI-00001-000")):
        write_complete_case(tmp_path / "cases", case_id, seed)
        save(tmp_path / "out" / "filled" / f"{seed}-of-2" / f"{case_id}-t1n-inference.nii.gz", whole)
    for name in ("held-out", "training", "truth"):
        (tmp_path / name).symlink_to("cases")
    for subject in ("sub-01", "sub-02"):
        anat = tmp_path / "bids" / subject / "anat"
        save(anat / f"{subject}_T1w.nii.gz", whole)
        save(anat / f"{subject}_label-lesion_mask.nii.gz", lesion(SHAPE).astype(np.uint8))
    described = {"Name": "test", "BIDSVersion": "1.10.0"}
    (tmp_path / "bids" / "dataset_description.json").write_text(json.dumps(described))
    (tmp_path / "dist").mkdir()
    tarfile.open(tmp_path / "dist" / "submission.tar.gz", "w:gz").close()  # of make submission
    for part in PARTS:
        (tmp_path / part).symlink_to(ROOT / part)
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that runs commands of ours without importing everything again; the address of its socket."""
    address = tmp_path_factory.mktemp("server") / "socket"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "project")}
    process = subprocess.Popen([sys.executable, TYPED, "--serve", address], env=environment)
    while not address.exists():
        assert process.poll() is None
        time.sleep(0.1)
    yield address
    process.kill()
    process.wait()


@pytest.fixture
def typed(place, server, tiny_weights):
    """Run blocks of a page in the folder; return the commands that were called: program and arguments."""
    programs = place / "bin"
    programs.mkdir()
    for name in OF_THE_SYSTEM:
        (programs / name).symlink_to(which(name))
    for name in CHECKED:
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -SE {TYPED} {name} "$@"\n')
        (programs / name).chmod(0o755)
    (place / ".venv-clients" / "bin").mkdir(parents=True)
    (place / ".venv-clients" / "bin" / "pip").symlink_to(programs / "pip")
    notes = place / "notes"
    settings = {"PATH": str(programs), "PYTHONPATH": str(ROOT / "project"), "NOTES": str(notes)}
    settings |= {"SERVER": str(server), "TINY": str(tiny_weights), "BRATS_INPAINTING_OVERWRITE": "1"}
    kept = {name: value for name, value in os.environ.items() if name in ("OMP_NUM_THREADS", "TMPDIR", "HOME")}

    def run(block):
        notes.write_text("")
        command = ("bash", "-euo", "pipefail", "-c", block)
        done = subprocess.run(command, cwd=place, env=kept | settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return [json.loads(line) for line in notes.read_text().splitlines()]

    return run


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_run_or_are_right(page, typed, place, monkeypatch):
    monkeypatch.chdir(place)
    for block in PAGES[page]:
        for program, argv in typed(block):
            if program != "brats-inpainting" or ELSEWHERE & {*argv}:
                CHECKED[program](argv)


@pytest.mark.parametrize(
    "command",
    [
        "brats-inpainting infer --data-path cases --output-path filled --no-such-option",
        "curl https://example.org",
        "cd nowhere",
    ],
)
def test_a_command_that_fails_or_is_not_known_is_found(command, typed):
    with pytest.raises(AssertionError):
        typed(command)


@pytest.mark.parametrize(
    "command",
    [
        f"docker run {IMAGE} evaluate --prediction=/x",
        "make imaeg",
        "pip install '.[reports]'",
        "sbatch docs/recipes-hpc/array_job.sh cases out 100 --prest fast",
        "sbatch docs/recipes-hpc/arrayjob.sh cases out 100",
        "mlcube run --mlcube=mlcube --task=infer data=cases",
        "python -m studies.gpu --outptu x",
        "torchrun -m brats_inpainting train --data cases",
        "kubectl apply --filename docs/recipes-hpc/job.yaml",
        "brats-inpainting infer --data-path cases --cluster",
    ],
)
def test_a_wrong_argument_of_a_program_that_is_not_run_is_found(command, typed, place, monkeypatch):
    monkeypatch.chdir(place)
    ((program, argv),) = typed(command)
    with pytest.raises((AssertionError, USAGE_ERROR, KeyError)):
        CHECKED[program](argv)
