"""The real BraTS orchestrator against the image: both of its conventions, and the paper's own entry."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from .conftest import (
    AS_USER,
    CLIENTS,
    IDS,
    IMAGE,
    ROOT,
    assert_same,
    call,
    docker_run,
    given_to_the_user,
    one_slice,
    run,
    voxels,
)

ORCHESTRATE = (CLIENTS / "python", ROOT / "tests/container/orchestrate.py")


@pytest.fixture(scope="module", autouse=True)
def downloads():
    """The folder in the package that its user must be able to write."""
    where = run(CLIENTS / "python", "-c", "from brats import constants; print(constants.ADDITIONAL_FILES_FOLDER)")
    folder = Path(where.strip())
    folder.mkdir(exist_ok=True)
    return given_to_the_user(folder)


@pytest.mark.parametrize("year", [2023, 2025])
def test_single_and_batch_give_the_voxels_of_the_command_line(year, data, out, filled):
    run(*AS_USER, *ORCHESTRATE, year, IMAGE, data, out)
    single = np.asanyarray(nib.load(out / "single.nii.gz").dataobj)
    np.testing.assert_array_equal(single, filled[f"{IDS[0]}-t1n-inference.nii.gz"])
    batch = voxels(out / "batch")
    assert_same(batch, {f"{case_id}.nii.gz": filled[f"{case_id}-t1n-inference.nii.gz"] for case_id in IDS})


def test_a_failing_case_is_shown_by_the_client(data, out, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    scan = tmp_path / "data" / IDS[0] / f"{IDS[0]}-t1n-voided.nii.gz"
    scan.write_bytes(scan.read_bytes()[:5000])  # truncated
    done = call(*AS_USER, *ORCHESTRATE, 2023, IMAGE, tmp_path / "data", out)
    assert done.returncode != 0
    assert "Container finished with an error" in done.stderr
    assert "BraTS-GLI-00000-000-t1n-voided.nii.gz" in done.stderr


@pytest.fixture
def downloaded(downloads, paper_weights):
    """Put the weights where the package keeps what it downloads, in place of what is there meanwhile."""
    cache = downloads / "13383452_v1.0.0" / "savedmodel2850000.pt"
    cache.parent.mkdir(parents=True, exist_ok=True)
    kept = cache.with_suffix(".kept")
    if cache.exists():
        cache.rename(kept)
    shutil.copy(paper_weights, cache)
    yield
    kept.rename(cache) if kept.exists() else cache.unlink()


@pytest.mark.usefixtures("downloaded")
def test_the_image_stands_in_for_the_papers_submission(data, out, tmp_path, paper_weights):
    """One slice of one case, because each pass of the paper's network takes seconds on a CPU."""
    one = tmp_path / "data" / IDS[0]
    shutil.copytree(data / IDS[0], one)
    path = one / f"{IDS[0]}-mask.nii.gz"
    mask = nib.load(path)
    mask_XYZ = one_slice(np.asanyarray(mask.dataobj))
    nib.save(nib.Nifti1Image(mask_XYZ, mask.affine, mask.header), path)

    run(*AS_USER, *ORCHESTRATE, "BraTS23_2", IMAGE, tmp_path / "data", out)
    assert (
        "savedmodel2850000.pt: raw weights, no moving average by their name, 113,672,066 parameters"
        in (out / "single.log").read_text()
    )
    assert "2 steps of dpmpp_2m" in (out / "single.log").read_text()  # the slice-wise way, not the default's
    single = np.asanyarray(nib.load(out / "single.nii.gz").dataobj)

    recipe = next(CLIENTS.parent.rglob("brats23_inpainting_domaso.yml"))
    (tmp_path / "plain").mkdir()
    given_to_the_user(tmp_path / "plain")
    mounts = {"data": "/mlcube_io0", "weights": "/mlcube_io1", "plain": "/mlcube_io2", "recipe": "/mlcube_io3"}
    folders = {"weights": paper_weights.parent, "recipe": recipe.parent}
    volumes = [f"--volume={folders.get(name, tmp_path / name)}:{where}" for name, where in mounts.items()]
    command = (
        *("infer", "--data_path=/mlcube_io0", "--output_path=/mlcube_io2"),
        *("--weights=/mlcube_io1/savedmodel2850000.pt", f"--parameters_file=/mlcube_io3/{recipe.name}"),
    )
    done = docker_run(*volumes, IMAGE, *command)
    assert done.returncode == 0, done.stderr
    plain = voxels(tmp_path / "plain")[f"{IDS[0]}-t1n-inference.nii.gz"]
    np.testing.assert_array_equal(single, plain)
    assert (plain[mask_XYZ > 0] != 0).any()
