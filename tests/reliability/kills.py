"""Kill a run of several cases at random times; the resumed run must write the bytes of an uninterrupted one.

usage: python -m tests.reliability.kills [COUNT [SEED]]

A run is killed with SIGKILL at COUNT times (default 30). After each kill, every file with its final name in the output
folder must be complete and have the right bytes. Network and cases are tiny, so that kills hit reading, sampling,
writing and reporting.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from brats_inpainting.config import DiffusionConfig
from brats_inpainting.diffusion import checkpoint

from ..conftest import TINY, tiny_network, write_case

CASES = 6


def command(root, out, *args):
    """The command that fills the cases with a fixed batch size, for reproducible bytes."""
    places = {"--data-path": root / "data", "--output-path": out, "--report-path": root / f"{out.name}-report"}
    fixed = [str(word) for pair in places.items() for word in pair]
    settings = ["--weights", str(root / "tiny.safetensors"), "--device", "cpu", "--batch-size", "4", "--no-images"]
    return [sys.executable, "-m", "brats_inpainting", "infer", *fixed, *settings, "--steps", "6", *args]


def start(*args):
    """Start a run in a separate process."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.Popen(command(*args), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)


def wait_until_filling(process):
    """Wait until the network is loaded and the first case is read."""
    while b"at a time" not in process.stderr.readline():
        assert process.poll() is None


def finish(*args):
    """Complete a run without errors; return the seconds it took after loading."""
    process = start(*args)
    wait_until_filling(process)
    began = time.perf_counter()
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr.decode()
    return time.perf_counter() - began


def contents(folder):
    """Bytes of the visible files by name."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
    assert not [name for name in found if name.startswith(".") and name.endswith(".nii.gz")]
    return {name: content for name, content in found.items() if not name.startswith(".partial-")}


def prepare(root):
    """Write cases and weights, and fill the cases without interruption; return the bytes and the seconds."""
    for number in range(CASES):
        write_case(root / "data", f"case-{number}", shape=(48, 48, 8), seed=number)
    checkpoint.save(
        root / "tiny.safetensors",
        tiny_network().state_dict(),
        unet=TINY,
        diffusion=DiffusionConfig(prediction="x0", window=32),
        ema=True,
        notes={},
    )
    seconds = finish(root, root / "uninterrupted")
    return contents(root / "uninterrupted"), seconds


def kill(root, whole, after):
    """Kill a run ``after`` seconds of work, check its files, and resume it.

    Returns the number of finished cases, or ``None`` if the run ended first.
    """
    out = root / "out"
    process = start(root, out)
    wait_until_filling(process)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    killed, kept = process.returncode == -signal.SIGKILL, contents(out)
    assert kept.items() <= whole.items(), "an incomplete file has its final name"
    finish(root, out, "--resume")
    assert contents(out) == whole, "resumed bytes differ"
    assert not list(out.glob(".*")), "temporary files remain"
    for folder in (out, root / "out-report"):
        for path in folder.iterdir():
            path.unlink()
    return len(kept) if killed else None


def main():
    count, seed = (int(arg) for arg in (sys.argv[1:] + ["30", "0"][len(sys.argv) - 1 :]))
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, seconds = prepare(Path(folder))
        kept = []
        while len(kept) < count:
            if (finished := kill(Path(folder), whole, rng.random() * seconds)) is not None:
                kept.append(finished)
    print(f"{count} kills in runs of {CASES} cases and {seconds:.1f} s of work; finished cases that were kept: {kept}")
    print("no partial file under a final name; every resumed run has the bytes of the uninterrupted one")


if __name__ == "__main__":
    main()
