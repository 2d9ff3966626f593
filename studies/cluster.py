"""Overhead of a Dask cluster: time per case, and memory of scheduler and client, against the number of tiny cases.

usage: python -m studies.cluster WORK [--cases 250 500 1000 2000] [--workers 2] [--picture docs/cluster.png]

A case takes some hundredths of a second, to make the overhead visible: the workers' time per case minus the time of
one single-threaded process. Writes a table to stdout and a plot.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HOST = ("--host", "127.0.0.1", "--no-dashboard")
MAKE = """
import sys
from pathlib import Path
from brats_inpainting.config import DiffusionConfig
from brats_inpainting.diffusion import checkpoint
from tests.conftest import TINY, tiny_network, write_case
root, number = Path(sys.argv[1]), int(sys.argv[2])
meaning = {"unet": TINY, "diffusion": DiffusionConfig(prediction="x0", window=32), "ema": True, "notes": {}}
checkpoint.save(root / "tiny.safetensors", tiny_network().state_dict(), **meaning)
for index in range(number):
    write_case(root / "all", f"case-{index:05d}", shape=(48, 48, 8), seed=index)
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--cases", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--picture", type=Path, default=Path("docs/cluster.png"))
    args = parser.parse_args()
    work = args.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", MAKE, work, str(max(args.cases))], check=True)
    for number in args.cases:
        (work / str(number)).mkdir()
        for index in range(number):
            (work / str(number) / f"case-{index:05d}").symlink_to(work / "all" / f"case-{index:05d}")
    rows = [measured(work, number, args.workers) for number in args.cases]
    print("| cases | one process, s | workers, s | scheduler, MB | client, MB |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(f"{value:g}" for value in row) + " |")
    alone, shared = (slope([row[0] for row in rows], [row[column] for row in rows]) for column in (1, 2))
    print(
        f"one process: {1000 * alone:.1f} ms a case; {args.workers} workers: {1000 * shared * args.workers:.1f} ms each"
    )
    print(f"overhead: {1000 * (shared * args.workers - alone):.1f} ms a case and worker")
    draw(rows, args.workers, args.picture)


def measured(work, number, workers):
    """Seconds in one process and on running workers; peak memory of scheduler and client in MB."""
    alone, _ = fill(work, number, "alone")
    file = work / "scheduler.json"
    file.unlink(missing_ok=True)
    kinds = [("scheduler", "--port", "0")] + [("worker", "--nthreads", "1")] * workers
    started = []
    try:
        for kind, *more in kinds:
            words = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(file), *HOST, *more]
            started.append(subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True))
            while not file.exists():
                time.sleep(0.1)
        time.sleep(10)  # until the workers are ready
        shared, client = fill(work, number, "shared", "--cluster", str(file))
        scheduler = peak(started[0].pid)
    finally:
        for process in started:
            os.killpg(process.pid, 9)
            process.wait()
    return number, round(alone, 1), round(shared, 1), round(scheduler), round(client)


def fill(work, number, name, *args):
    """Seconds and peak memory in MB of a run."""
    out = work / f"{name}-{number}"
    places = ["--data-path", work / str(number), "--output-path", out, "--report-path", f"{out}-report"]
    words = [
        sys.executable,
        "-m",
        "brats_inpainting",
        "-q",
        "infer",
        "--batch-size",
        "2",
        *places,
        "--weights",
        work / "tiny.safetensors",
    ]
    started, most = time.monotonic(), 0.0
    run = subprocess.Popen([*map(str, words), "--no-images", *args], env=os.environ | {"OMP_NUM_THREADS": "1"})
    while run.poll() is None:
        most = max(most, peak(run.pid))
        time.sleep(0.2)
    assert run.returncode == 0
    seconds = time.monotonic() - started
    assert len(list(out.iterdir())) == number
    return seconds, most


def peak(pid):
    """Peak resident memory of a process in MB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in text.splitlines() if line.startswith("VmHWM")), 0.0)


def slope(numbers, seconds):
    """Seconds per additional case, by linear regression."""
    import numpy as np

    return np.polyfit(numbers, seconds, 1)[0]


def draw(rows, workers, path):
    """Plot time and memory against the number of cases."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    numbers, alone, shared, scheduler, client = zip(*rows, strict=True)
    left.plot(numbers, alone, "o-", label="one process, one thread")
    left.plot(numbers, shared, "s-", label=f"{workers} workers, one thread each")
    left.set(xlabel="cases", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    right.plot(numbers, scheduler, "o-", label="scheduler")
    right.plot(numbers, client, "s-", label="client, with the network")
    right.set(xlabel="cases", ylabel="peak memory, MB", xlim=(0, None), ylim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
