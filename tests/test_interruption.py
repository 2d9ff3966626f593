"""Nothing is lost when a run is killed, the disk is full, or the output folder is taken away."""

import json
import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager

import nibabel as nib
import pytest

from brats_inpainting import files
from brats_inpainting.errors import ConfigError

from .conftest import write_case, write_cases
from .reliability import kills

SHAPE = (48, 48, 8)


@contextmanager
def mounted(folder, options):
    """Mount a small file system of its own in memory, or skip where that is not allowed."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here ({made.stderr.decode().strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def root(tmp_path, tiny_weights):
    return write_cases(tmp_path, tiny_weights, 3)


def infer(root, out, *args, **settings):
    told = subprocess.run(
        kills.command(root, out, *args), capture_output=True, text=True, timeout=120, check=False, **settings
    )
    return told.returncode, told.stderr


def whole(out):
    """Every file of a folder; each can be read to its end."""
    found = sorted(path.name for path in out.iterdir())
    for name in found:
        nib.load(out / name).get_fdata()
    return found


@pytest.mark.slow
def test_a_run_killed_in_the_middle_is_resumed_to_the_same_bytes(tmp_path):
    complete, seconds = kills.prepare(tmp_path)
    kills.kill(tmp_path, complete, 0.5 * seconds)


def test_sigterm_ends_a_run_cleanly_with_the_finished_cases_kept(root):
    process = kills.start(root, root / "out", "--samples", "8", "--batch-size", "1")
    while b"written to" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"interrupted; finished cases are kept, --resume continues" in told
    assert b"Traceback" not in told
    record = json.loads((root / "out-report" / "run.json").read_text())
    assert record["cases"]
    assert {case["output"] for case in record["cases"].values()} <= set(whole(root / "out"))
    assert not list(root.glob("out*/.*"))


def test_on_a_full_disk_the_case_errs_no_partial_file_stays_and_the_rest_goes_on(root):
    write_case(root / "data", "case-1-large", shape=(96, 96, 64))  # 0.3 MB filled; each of the others takes 10 kB
    with mounted(root / "out", "size=256k") as out:
        code, told = infer(root, out)
        assert code == 3
        assert "case-1-large-t1n-inference.nii.gz: cannot be written to" in told
        assert "(No space left on device)" in told
        assert whole(out) == [f"case-{n}-t1n-inference.nii.gz" for n in range(3)]
        assert not list(out.glob(".*"))


def test_over_a_quota_the_case_errs_and_the_rest_goes_on(root):
    """A limit on the size of a file stands for a quota: writing fails half-way."""
    write_case(root / "data", "case-1-large", shape=(96, 96, 64))
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))}
    code, told = infer(root, root / "out", **limit)
    assert code == 3
    assert "case-1-large-t1n-inference.nii.gz: cannot be written to" in told
    assert "(File too large)" in told
    assert whole(root / "out") == [f"case-{n}-t1n-inference.nii.gz" for n in range(3)]
    assert not list((root / "out").glob(".*"))


def test_a_read_only_output_folder_is_refused_before_any_work(root):
    with mounted(root / "out", "size=1m,ro") as out:
        code, told = infer(root, out)
        assert code == 2
        assert f"{out}: no folder that can be written (Read-only file system)" in told
        assert "voxels changed" not in told


def test_an_output_folder_of_somebody_else_is_refused_with_the_advice_for_a_container(tmp_path):
    if os.getuid():
        pytest.skip("only root can become somebody else")
    os.seteuid(65534)
    try:
        with pytest.raises(
            ConfigError, match=r"no folder that can be written \(Permission denied\)[^$]*--user \$\(id -u\)"
        ):
            files.make_writable(tmp_path / "out")
    finally:
        os.seteuid(0)


def test_an_output_folder_that_is_taken_away_fails_its_cases_and_never_the_run(root):
    process = kills.start(root, root / "out", "--samples", "8", "--batch-size", "1")
    while b"written to" not in process.stderr.readline():
        assert process.poll() is None
    (root / "out").rename(root / "taken")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 3
    assert b"Traceback" not in told
    assert b"case-2-t1n-inference.nii.gz: cannot be written to" in told
    kept = whole(root / "taken")
    assert kept
    (root / "taken").rename(root / "out")
    code, told = infer(root, root / "out", "--resume", "--samples", "8", "--batch-size", "1")
    assert code == 0, told
    assert whole(root / "out") == [f"case-{n}-t1n-inference.nii.gz" for n in range(3)]


def test_a_case_that_vanishes_during_the_run_fails_alone(root):
    for number in range(3, 16):
        write_case(root / "data", f"case-{number}", shape=SHAPE, seed=number)
    process = kills.start(root, root / "out", "--samples", "8")
    kills.wait_until_filling(process)
    shutil.rmtree(root / "data" / "case-9")  # the last one in the order of names
    _, told = process.communicate(timeout=60)
    assert process.returncode == 3
    assert b"case-9" in told.partition(b"1 failed:")[2]
    assert b"Traceback" not in told
    assert set(whole(root / "out")) == {f"case-{number}-t1n-inference.nii.gz" for number in range(16) if number != 9}
