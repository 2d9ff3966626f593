"""Kill a run of several cases at random moments: resumed, it has the bytes of an unbroken one.

usage: python -m tests.reliability.kills [COUNT [SEED]]

At each of COUNT moments (30 if not given) a run is killed with SIGKILL; after each, everything that stands in the
output folder under its final name must be a whole file with the right bytes. Network and cases are tiny, so that
moments fall into reading, sampling, writing and reporting alike.
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
    """Fill the cases, two batches of one size side by side: the same bytes every time."""
    places = {"--data-path": root / "data", "--output-path": out, "--report-path": root / f"{out.name}-report"}
    fixed = [str(word) for pair in places.items() for word in pair]
    settings = ["--weights", str(root / "tiny.safetensors"), "--device", "cpu", "--batch-size", "4", "--no-images"]
    return [sys.executable, "-m", "brats_inpainting", "infer", *fixed, *settings, "--steps", "6", *args]


def start(*args):
    """Begin a run in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.Popen(command(*args), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)


def until_it_works(process):
    """Wait until the network is loaded and the first case is read."""
    while b"at a time" not in process.stderr.readline():
        assert process.poll() is None


def finish(*args):
    """Run to the end, which must be a good one; return how long the work took."""
    process = start(*args)
    until_it_works(process)
    began = time.perf_counter()
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told.decode()
    return time.perf_counter() - began


def contents(folder):
    """Name → bytes of what a grader would see."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
    assert not [name for name in found if name.startswith(".") and name.endswith(".nii.gz")]
    return {name: content for name, content in found.items() if not name.startswith(".partial-")}


def prepare(root):
    """Write cases and weights, and fill the cases without a break; return that run's bytes and its seconds."""
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
    seconds = finish(root, root / "unbroken")
    return contents(root / "unbroken"), seconds


def kill(root, whole, after):
    """Kill a run after so many seconds of work, look, and resume it.

    Returns how many cases it had finished, or ``None`` if it came to its end before.
    """
    out = root / "out"
    process = start(root, out)
    until_it_works(process)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    killed, kept = process.returncode == -signal.SIGKILL, contents(out)
    assert kept.items() <= whole.items(), "a file that is not whole stands under its final name"
    finish(root, out, "--resume")
    assert contents(out) == whole, "resumed bytes differ"
    assert not list(out.glob(".*")), "something was left behind"
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
    print("no partial file under a final name; every resumed run has the bytes of the unbroken one")


if __name__ == "__main__":
    main()
