"""The real BraTS orchestrator against the image: both of its conventions, and the paper's own entry."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from .conftest import (
    AS_USER,
    CLIENTS,
    IDS,
    IMAGE,
    OWNER,
    ROOT,
    assert_same,
    call,
    given_to_the_user,
    one_slice,
    run,
    tagged,
    voxels,
)

ORCHESTRATE = (CLIENTS / "python", ROOT / "tests/container/orchestrate.py")


pytestmark = pytest.mark.usefixtures("downloads")


@pytest.mark.parametrize(("year", "cases"), [(2023, IDS[:1]), (2025, IDS)])
def test_single_and_batch_give_the_voxels_of_the_command_line(year, cases, one, data, out, filled):
    run(*AS_USER, *ORCHESTRATE, year, IMAGE, one if len(cases) == 1 else data, out)
    single = np.asanyarray(nib.load(out / "single.nii.gz").dataobj)
    np.testing.assert_array_equal(single, filled[f"{IDS[0]}-t1n-inference.nii.gz"])
    batch = voxels(out / "batch")
    assert_same(batch, {f"{case_id}.nii.gz": filled[f"{case_id}-t1n-inference.nii.gz"] for case_id in cases})


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


@pytest.fixture
def stand_in():
    """The image by the name of the paper's entry, which tells the package its parameters file, under a name of ours."""
    name = f"{IMAGE.replace(':', '-')}/brats23_inpainting_domaso:test"
    with tagged(IMAGE, name):
        yield name


@pytest.fixture
def one_slice_of_a_case(data, tmp_path):
    """A folder of one case with one slice to fill, because each pass of the paper's network takes seconds on a CPU."""
    one = tmp_path / "data" / IDS[0]
    shutil.copytree(data / IDS[0], one)
    path = one / f"{IDS[0]}-mask.nii.gz"
    mask = nib.load(path)
    nib.save(nib.Nifti1Image(one_slice(np.asanyarray(mask.dataobj)), mask.affine, mask.header), path)
    return given_to_the_user(tmp_path / "data")


def papers_file():
    """The parameters file that the package has for the paper's entry."""
    return next(CLIENTS.parent.rglob("brats23_inpainting_domaso.yml"))


def as_an_mlcube(data, weights, out, recipe):
    """The volumes and the command with which the package calls the paper's entry."""
    mounts = (data, weights.parent, out, recipe.parent)
    return (
        *(f"--volume={folder}:/mlcube_io{number}" for number, folder in enumerate(mounts)),
        *(IMAGE, "infer", "--data_path=/mlcube_io0", "--output_path=/mlcube_io2"),
        *(f"--weights=/mlcube_io1/{weights.name}", f"--parameters_file=/mlcube_io3/{recipe.name}"),
    )


@pytest.mark.usefixtures("downloaded")
def test_the_image_stands_in_for_the_papers_submission(one_slice_of_a_case, out, tmp_path, stand_in):
    (tmp_path / "parameters").mkdir()
    recipe = tmp_path / "parameters" / "brats23_inpainting_domaso.yml"
    quick = {"timestep_respacing: ''": "timestep_respacing: '2'", "slices_per_sampling: 32": "slices_per_sampling: 1"}
    text = papers_file().read_text()
    for words, others in quick.items():
        assert words in text
        text = text.replace(words, others)
    recipe.write_text(text)
    given_to_the_user(recipe.parent)
    run(*AS_USER, *ORCHESTRATE, "BraTS23_2", stand_in, one_slice_of_a_case, out, recipe.parent)
    said = (out / "single.log").read_text()
    assert "savedmodel2850000.pt: raw weights, no moving average in the file name, 113,672,066 parameters" in said
    assert "2 steps of ddpm" in said
    filled = np.asanyarray(nib.load(out / "single.nii.gz").dataobj)
    mask = nib.load(one_slice_of_a_case / IDS[0] / f"{IDS[0]}-mask.nii.gz")
    filled_share = (filled[np.asanyarray(mask.dataobj) > 0] != 0).mean()
    assert filled_share > 0.3  # what random weights draw is clipped to background in places


def test_the_papers_own_file_means_its_procedure_and_the_time_is_told_first(one_slice_of_a_case, out, paper_weights):
    """All 1000 steps of a slice take half an hour on a CPU, so the container is ended when it has said what it does."""
    name = IMAGE.replace(":", "-")
    command = (*as_an_mlcube(one_slice_of_a_case, paper_weights, out, papers_file()), "--batch-size=1")
    started = ("timeout", "900", "docker", "run", "--rm", "--name", name, "--network", "none", *OWNER, *command)
    said = []
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True) as container:
        for line in container.stderr:
            said.append(line)
            if "on this CPU about" in line:
                call("docker", "kill", name)
    told = "".join(said)
    assert "preset paper: 1000 steps of ddpm, 1 sample(s), independent noise, filter 1.075" in told, told
    assert f"{IDS[0]} takes 1,000 network passes, on this CPU about" in told
