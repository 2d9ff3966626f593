"""Batches one by one, on all threads of a CPU, against as many side by side as it has threads: seconds of a fill.

usage: GOMP_SPINCOUNT=1000 python -m tests.benchmarks.workers --data-path VAL [--preset fast] [--cases 4] [--rounds 3]

Like the command line it waits without spinning and keeps freed memory. Both ways fill the same cases in turns; the
ratio is taken turn by turn, and the largest difference of the fills is told.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from brats_inpainting import host
from brats_inpainting.data import cases, volume
from brats_inpainting.infer import Inpainter


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    several = Inpainter.load(preset=args.preset, device="cpu")
    scans = [volume.prepare(cases.load(case)) for case in cases.find(args.data_path)[: args.cases]]
    turns = [(fill(replace(several, workers=1), scans), fill(several, scans)) for _ in range(args.rounds)]
    one_by_one, side_by_side = ([seconds for seconds, _ in way] for way in zip(*turns, strict=True))
    ratios = [one / other for one, other in zip(one_by_one, side_by_side, strict=True)]
    (_, one_fills), (_, fills) = turns[0]
    largest = max(np.abs(one - other).max() for one, other in zip(one_fills, fills, strict=True))
    print(f"{torch.get_num_threads()} threads, {len(scans)} cases, {args.preset}, batches of {several.batch_size}")
    print(f"one by one    {statistics.median(one_by_one):7.2f} s")
    print(f"{several.workers} side by side {statistics.median(side_by_side):7.2f} s")
    print(f"ratio         {statistics.median(ratios):7.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"largest difference, of the range {largest:.1e}")


def fill(inpainter, scans):
    """Return the seconds that these scans take, and their fills in [0, 1]."""
    started = time.perf_counter()
    fills = [stack.mean_HWS for stack in inpainter.fill(scans)]
    return time.perf_counter() - started, fills


if __name__ == "__main__":
    host.keep_memory()
    main()
