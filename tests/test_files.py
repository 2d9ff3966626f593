"""Files appear whole or not at all, and what a killed writer left goes without harm to live ones."""

import re
import signal
import subprocess
import sys

import pytest

from brats_inpainting import files

HOLD = """
import sys, time
from pathlib import Path
from brats_inpainting.files import atomic_write
with atomic_write(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """Another process in the middle of a write."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "result.nii.gz")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_a_file_that_fails_in_the_middle_leaves_nothing_and_the_earlier_one(tmp_path):
    path = tmp_path / "x.nii.gz"
    path.write_text("before")

    def fail():
        with files.atomic_write(path) as unfinished:
            unfinished.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_file_systems_allow_can_be_written(tmp_path):
    path = tmp_path / ("é" * 119 + "-t1n-inf.nii.gz")
    with files.atomic_write(path) as unfinished:
        unfinished.touch()
    assert list(tmp_path.iterdir()) == [path]


def test_an_unfinished_file_is_not_taken_for_a_result(tmp_path):
    with files.atomic_write(tmp_path / "case-t1n-inference.nii.gz") as unfinished:
        unfinished.touch()
        assert not re.search(r"\.nii(\.gz)?$", unfinished.name)
        assert unfinished.parent.name.startswith(".")


def test_the_unfinished_file_of_a_live_writer_stays(tmp_path, writer):
    files.make_writable(tmp_path)
    writer.communicate("")
    assert writer.returncode == 0
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("result.nii.gz", "half")]


def test_what_a_killed_writer_left_is_removed(tmp_path, writer):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (tmp_path / f"{files.TEMPORARY}empty").mkdir()  # killed before it could lock
    assert len(list(tmp_path.iterdir())) == 2
    files.make_writable(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made, make = [], files.mkdtemp

    def taken_away(**where):
        made.append(make(**where))
        if len(made) == 1:
            files.remove_leftovers(tmp_path)
        return made[-1]

    monkeypatch.setattr(files, "mkdtemp", taken_away)
    with files.atomic_write(tmp_path / "x") as unfinished:
        unfinished.touch()
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")
