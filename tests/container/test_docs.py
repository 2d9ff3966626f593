"""What docs/containers.md tells people to type is typed here, block by block, in its order."""

import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting.data.example import CASE

from .conftest import (
    AS_USER,
    CLIENTS,
    IMAGE,
    RELEASE,
    ROOT,
    WHEELHOUSE,
    call,
    copy_of_the_project,
    given_to_the_user,
    one_slice,
    run,
)

BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / "docs" / "containers.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def place(complete, tmp_path_factory):
    """A copy of the project, beside it what the page speaks of: a case of one slice, and its truth."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("docs") / "project")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / "wheelhouse").mkdir()
    shutil.copytree(WHEELHOUSE, folder / "wheelhouse" / "cpu")
    (folder / "cases" / CASE).mkdir(parents=True)
    shutil.copytree(complete / CASE, folder / "truth" / CASE)
    scan, mask = (nib.load(complete / CASE / f"{CASE}-{name}.nii.gz") for name in ("t1n", "mask-healthy"))
    mask_XYZ = one_slice(np.asanyarray(mask.dataobj))
    voided_XYZ = np.where(mask_XYZ, 0, np.asanyarray(scan.dataobj))
    for name, like, volume in (("mask", mask, mask_XYZ), ("t1n-voided", scan, voided_XYZ)):
        image = nib.Nifti1Image(volume.astype(like.get_data_dtype()), like.affine, like.header)
        nib.save(image, folder / "cases" / CASE / f"{CASE}-{name}.nii.gz")
    (folder / "home").mkdir()
    return given_to_the_user(folder)


def test_the_page_has_blocks_for_every_client():
    said = "".join(block for _, block in BLOCKS)
    assert all(
        word in said for word in ("docker run", "mlcube run", "-Pdocker", "/mlcommons", "infer_batch", "make image")
    )


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_block_does_what_it_says(number, place):
    language, block = BLOCKS[number][0], BLOCKS[number][1].replace(RELEASE, IMAGE)
    written = {place / folder for folder in re.findall(r'filled[-\w]*(?=:/output|:/mlcommons|")', block)}
    for folder in written:
        for path in folder.glob("*"):
            path.unlink()
    settings = {"REVISION": run("git", "rev-parse", "--short", "HEAD", cwd=ROOT).strip()}
    settings |= {"HOME": str(place / "home"), "IMAGE": IMAGE}
    settings["MLCUBE_SYSTEM_SETTINGS"] = str(place / "mlcube-settings.yaml")
    command = ("bash", "-euo", "pipefail", "-c", block) if language == "bash" else (CLIENTS / "python", "-c", block)
    done = call(*AS_USER, *command, cwd=place, env=os.environ | settings)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    for folder in written:
        names = [path.name.replace("-t1n-inference", "") for path in sorted(folder.iterdir())]
        assert names == [f"{CASE}.nii.gz"]
