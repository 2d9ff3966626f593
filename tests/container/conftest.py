"""Two cases, the image, and what it makes of them when it is called in the plainest way."""

import os
import pwd
import shutil
import subprocess
import tomllib
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_inpainting.config import UNetConfig
from brats_inpainting.data.example import CASE, write_example
from brats_inpainting.diffusion.unet import UNet

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
RELEASE = f"brats-inpainting:{VERSION}"
BUILT = os.environ.get("IMAGE", RELEASE)
IMAGE = f"brats-inpainting:test-{token_hex(4)}"  # what the tests call it: all that goes by this name is theirs
WHEELHOUSE = ROOT / "wheelhouse" / "cpu"
CLIENTS = ROOT / ".venv-clients" / "bin"
os.environ["PATH"] = f"{CLIENTS}:{os.environ['PATH']}"
IDS = [CASE, "BraTS-GLI-00001-001"]

# Clients run as an ordinary user, who may read what root may, as Python's and pytest's folders are root's, and talk to
# the engine. Where root has not the right to give that right, they run as root.
NOBODY = pwd.getpwnam("nobody")
SOCKET = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
AS_USER = (
    *("setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    f"--groups={SOCKET.stat().st_gid if SOCKET.exists() else NOBODY.pw_gid}",
)
if os.getuid() or subprocess.run([*AS_USER, "true"], check=False).returncode:
    AS_USER = ()
UID, GID = (NOBODY.pw_uid, NOBODY.pw_gid) if AS_USER else (os.getuid(), os.getgid())
OWNER = ("--user", f"{UID}:{GID}")


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


def given_to_the_user(folder):
    """Make a folder and everything in it the ordinary user's, and return it."""
    folder.chmod(0o755)  # pytest's folders are private, but a stranger must be able to read this one
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, GID, follow_symlinks=False)
    return folder


def docker_run(*args, restrictions=OWNER):
    """Run a container without a network; ``args`` are volumes, the image and its arguments."""
    return call("docker", "run", "--rm", "--network", "none", *restrictions, *args)


def copy_of_the_project(folder):
    """Copy the files that git knows, with an empty workspace, for the user and with the tests' name of the image."""
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    for path in (folder / "mlcube").glob("*.yaml"):
        path.write_text(path.read_text().replace(RELEASE, IMAGE))
    return given_to_the_user(folder)


def voxels(folder):
    """Return name → voxels of everything in a folder, each of which must be a NIfTI."""
    return {path.name: np.asanyarray(nib.load(path).dataobj) for path in sorted(folder.iterdir())}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, volume in expected.items():
        np.testing.assert_array_equal(found[name], volume)


@contextmanager
def tagged(image, name):
    """Give an image another name for a while; take it away at the end, with the containers that were started by it."""
    run("docker", "tag", image, name)
    yield
    containers = [line.split() for line in run("docker", "ps", "--all", "--format", "{{.ID}} {{.Image}}").splitlines()]
    call("docker", "rm", "--force", *(container for container, started_by in containers if started_by == name))
    run("docker", "image", "rm", name)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_in_the_engine():
    """Give the image a name for the tests."""
    with tagged(BUILT, IMAGE):
        yield


@pytest.fixture(scope="session")
def downloads():
    """The folder that the package brats creates in itself: root installed the package here, its user must own that."""
    where = run(CLIENTS / "python", "-c", "from brats import constants; print(constants.ADDITIONAL_FILES_FOLDER)")
    folder = Path(where.strip())
    folder.mkdir(exist_ok=True)
    os.chown(folder, UID, GID)  # not the files in it, which tests of another process may be moving
    return folder


@pytest.fixture
def tmp_path(tmp_path):
    """A folder of the ordinary user's."""
    return given_to_the_user(tmp_path)


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
    return given_to_the_user(folder)


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
    return given_to_the_user(folder)


@pytest.fixture(scope="session")
def one(data, tmp_path_factory):
    """The first of these cases alone, for tests of what does not depend on their number."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(data / IDS[0], folder / IDS[0])
    return given_to_the_user(folder)


@pytest.fixture
def out(tmp_path):
    """A folder of the caller's for results."""
    folder = tmp_path / "out"
    folder.mkdir()
    return given_to_the_user(folder)


@pytest.fixture(scope="session")
def predictions(data, tmp_path_factory):
    """The folder of what the command line in the image makes of the cases."""
    folder = given_to_the_user(tmp_path_factory.mktemp("filled"))
    mounts = ("-v", f"{data}:/cases:ro", "-v", f"{folder}:/filled")
    done = docker_run(*mounts, IMAGE, "infer", "--data-path", "/cases", "--output-path", "/filled")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def filled(predictions):
    """The voxels of these files: what every client must get."""
    return voxels(predictions)


@pytest.fixture(scope="session")
def filled_one(filled):
    """The voxels of the first case alone, which has the same ones in any company."""
    return dict([next(iter(filled.items()))])


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
    given_to_the_user(path.parent)
    return path
