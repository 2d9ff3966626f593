"""Where a run stands and how long it will take: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import os
import pty
import re
import subprocess
import sys

import pytest

from brats_inpainting import progress
from brats_inpainting.progress import ProgressBar, duration

WORK = """
from brats_inpainting.progress import ProgressBar
with ProgressBar(2) as bar:
    for case in range(2):
        bar.open(100)
        for _ in range(10):
            bar.advance(10)
        bar.close()
"""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")]
)
def test_times_are_written_for_people(seconds, text):
    assert duration(seconds) == text


def test_plain_lines_say_how_far_and_how_long(monkeypatch, capfd):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with ProgressBar(2) as bar:
        bar.open(40)
        bar.advance(20)
        bar.advance(20)
        bar.close()
        bar.open(40)
        bar.advance(40)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "case 1 of 2; all: 25% done, 30 s left"
    assert lines[1] == "case 1 of 2; all: 50% done, 20 s left"
    assert lines[2] == "case 2 of 2; all: 100% done, 0 s left"


def test_quiet_means_quiet(monkeypatch, capfd):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    with ProgressBar(1, quiet=True) as bar:
        bar.open(1)
        bar.advance(1)
    assert capfd.readouterr().err == ""


def test_a_terminal_shows_a_bar():
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", WORK], stderr=theirs, stdout=theirs, check=True, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how a pseudo-terminal says that it is over
        pass
    assert re.search("case 2 of 2 .*100%", shown.decode())
    assert "left" in shown.decode()
