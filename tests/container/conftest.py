"""Two cases, the image, and what it makes of them when it is called in the plainest way."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_inpainting.config import UNetConfig
from brats_inpainting.data.example import CASE, write_example
from brats_inpainting.diffusion.unet import UNet

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = os.environ.get("IMAGE", f"brats-inpainting:{VERSION}")
WHEELHOUSE = ROOT / "wheelhouse" / "cpu"
CLIENTS = ROOT / ".venv-clients" / "bin"
PAPER = "brainles/brats23_inpainting_domaso:latest"
os.environ["PATH"] = f"{CLIENTS}:{os.environ['PATH']}"
IDS = [CASE, "BraTS-GLI-00001-001"]
OWNER = ("--user", f"{os.getuid()}:{os.getgid()}")


def pytest_collection_modifyitems(items):
    """Everything here needs a Docker engine and the image: make test-container."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.container)


def call(*command, **options):
    """Run a command and return what came of it, with both streams as text."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)


def run(*command, **options):
    """Run a command that must succeed, and return what it said, standard output first."""
    done = call(*command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def docker_run(*args, restrictions=OWNER):
    """Run a container without a network; ``args`` are volumes, the image and its arguments."""
    return call("docker", "run", "--rm", "--network", "none", *restrictions, *args)


def copy_of_the_project(folder):
    """Copy the files that git knows, so that the workspace in the copy starts empty."""
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def voxels(folder):
    """Return name → voxels of everything in a folder, each of which must be a NIfTI."""
    return {path.name: np.asanyarray(nib.load(path).dataobj) for path in sorted(folder.iterdir())}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, volume in expected.items():
        np.testing.assert_array_equal(found[name], volume)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_in_the_engine():
    """Take away the containers that mlcube leaves, and give the paper's image its name back."""
    before = call("docker", "image", "inspect", "--format", "{{.Id}}", PAPER).stdout.strip()
    yield
    left = run("docker", "ps", "--all", "--quiet", "--filter", f"ancestor={IMAGE}").split()
    call("docker", "rm", "--force", *left)
    call(*("docker", "tag", before) if before else ("docker", "rmi"), PAPER)


@pytest.fixture(scope="session")
def complete(tmp_path_factory):
    """Two complete cases, as a training set has them; only healthy tissue is masked, so one window fills a case."""
    folder = tmp_path_factory.mktemp("complete")
    for seed, case_id in enumerate(IDS):
        made = write_example(folder / "made", seed=seed)
        (folder / case_id).mkdir()
        for path in made.iterdir():
            path.rename(folder / case_id / path.name.replace(CASE, case_id))
        mask_alone(folder / case_id, "mask-healthy")
    shutil.rmtree(folder / "made")
    return folder


def mask_alone(case, kind):
    """Make one of a case's masks its only one."""
    scan, mask = (nib.load(case / f"{case.name}-{name}.nii.gz") for name in ("t1n", kind))
    mask_XYZ, scan_XYZ = np.asanyarray(mask.dataobj), np.asanyarray(scan.dataobj)
    for name, like, volume in (
        ("mask", mask, mask_XYZ),
        ("t1n-voided", scan, np.where(mask_XYZ, 0, scan_XYZ)),
        ("mask-unhealthy", mask, 0 * mask_XYZ),
    ):
        image = nib.Nifti1Image(volume.astype(like.get_data_dtype()), like.affine, like.header)
        nib.save(image, case / f"{case.name}-{name}.nii.gz")


@pytest.fixture(scope="session")
def data(complete, tmp_path_factory):
    """The same cases as infer is given them."""
    folder = tmp_path_factory.mktemp("data")
    for case_id in IDS:
        (folder / case_id).mkdir()
        for name in ("t1n-voided", "mask"):
            shutil.copy(complete / case_id / f"{case_id}-{name}.nii.gz", folder / case_id)
    folder.chmod(0o755)  # pytest's folders are private, but a stranger must be able to read this one
    return folder


@pytest.fixture
def out(tmp_path):
    """A folder of the caller's for results."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def filled(data, tmp_path_factory):
    """What the command line in the image makes of the cases: what every client must get."""
    folder = tmp_path_factory.mktemp("filled")
    mounts = ("-v", f"{data}:/cases:ro", "-v", f"{folder}:/filled")
    done = docker_run(*mounts, IMAGE, "infer", "--data-path", "/cases", "--output-path", "/filled")
    assert done.returncode == 0, done.stderr
    return voxels(folder)


def one_slice(mask_XYZ):
    """Leave only the slice of a mask that has the most voxels."""
    fullest = mask_XYZ.sum(axis=(0, 1)).argmax()
    return mask_XYZ * (np.arange(mask_XYZ.shape[2]) == fullest)


@pytest.fixture(scope="session")
def paper_weights(tmp_path_factory):
    """A file like the authors': the paper's 113,672,066 parameters, bare, with random numbers that do not vanish."""
    torch.manual_seed(0)
    network = UNet(UNetConfig())
    for parameter in network.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    assert sum(parameter.numel() for parameter in network.parameters()) == 113_672_066
    path = tmp_path_factory.mktemp("paper") / "savedmodel2850000.pt"
    torch.save(network.state_dict(), path)
    return path
