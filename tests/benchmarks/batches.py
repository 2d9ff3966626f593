"""Slices a second by precision and by how many go at a time: DDIM on the panel, after one of its cases to warm up.

usage: python -m tests.benchmarks.batches --data-path VAL [--weights FILE] [--precision bf16 fp32]
           [--batch-size 32 64 96] [--steps 50] [--samples 4]

Told are passes of one slice a second; nothing else should be at work.
"""

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from brats_inpainting.config import sampling
from brats_inpainting.infer import Inpainter
from tests.benchmarks.panel import panel


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--batch-size", nargs="+", type=int, default=[32, 64, 96])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=4)
    args = parser.parse_args()
    loaded, scans = Inpainter.load(args.weights), [slab.scan for slab in panel(args.data_path)]
    how = sampling("fast", sampler="ddim", steps=args.steps, samples=args.samples)
    for precision, size in product(args.precision, args.batch_size):
        inpainter = replace(loaded, sampling=how, precision=precision, batch_size=size)
        list(inpainter.fill([inpainter.stack(scans[0])]))
        slices = []
        started = time.perf_counter()
        list(inpainter.fill(map(inpainter.stack, scans), on_pass=slices.append))
        print(f"{precision}, {size} at a time: {sum(slices) / (time.perf_counter() - started):.0f}", flush=True)


if __name__ == "__main__":
    main()
