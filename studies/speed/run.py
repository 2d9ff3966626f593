"""Speed of the network: the machine's limits, single passes, other networks, a whole case by phase.

usage: python -m studies.speed [--part ceilings passes peers cases] [--network paper small-2 volume-2] [--rounds 5]
           [--data-path VAL] [--report-path FOLDER] [--device auto] [--precision auto]

Everything takes about 20 minutes on two cores. Writes speed.json, speed.md and roofline.png to --report-path.

docs/validation/peers.csv: two cores of an AMD EPYC (Zen 4, AVX-512), torch 2.13.0, float32; networks of 113,672,066
parameters with random weights. Without runtime.settle ours takes 0.75 of the eager reference's time (with it 0.67).
docs/validation/speed.csv: bundled weights by one infer for all 16 cases on two cores with AVX2; the paper's by --part
cases. Batches side by side of a narrow 2D network: 1.5 times as fast on two cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch

from brats_inpainting import runtime
from brats_inpainting.benchmark import apart, machine
from brats_inpainting.config import BUNDLED, PRECISIONS, Precision
from brats_inpainting.data.example import write_example
from brats_inpainting.device import best_precision, choose_device
from brats_inpainting.errors import ConfigError
from studies.speed import case, ceilings, passes, peers, report
from studies.speed.case import Phases
from studies.speed.passes import Pass
from studies.speed.report import Results
from studies.speed.subject import Subject

log = logging.getLogger(__name__)

PARTS = ("ceilings", "passes", "peers", "cases")
NETWORKS = {"paper": ("fast", "paper"), "small-2": ("fast", "paper"), "volume-2": ("fast", "realistic")}  # and presets
BATCHES = (1, 2, 4, 8, 16, 32, 64)
COMPARED_AT = {"cpu": 4, "cuda": 32}  # slices per batch, as infer chooses for a wide network
LONGEST = 20.0  # seconds: the batch is doubled until a pass would take longer
LIMITS = {  # maximum numbers of windows and steps
    "cpu": {"paper": (8, 2)} | dict.fromkeys(BUNDLED, (1000, 8)),
    "cuda": {"paper": (1000, 20)} | dict.fromkeys(BUNDLED, (1000, 100)),
}


def main() -> None:
    """Run the measurements selected on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-path", type=Path)
    parser.add_argument("--report-path", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto")
    args = parser.parse_args()
    runtime.settle()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.report_path:
        args.report_path.mkdir(parents=True, exist_ok=True)
    results = run(args)
    print("\n\n".join(grid.markdown() for grid in report.grids(results)))
    if args.report_path:
        report.write(results, args.report_path)


def run(args: argparse.Namespace) -> Results:
    """Measure the chosen parts of the chosen networks.

    Raises:
        ConfigError: when the device or the cases do not exist.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's own lines
    where = str(choose_device(args.device))
    if where not in COMPARED_AT:
        raise ConfigError(
            f"{where}: only cpu and cuda are measured\n  CUDA_VISIBLE_DEVICES chooses one GPU of several."
        )
    exact = best_precision(torch.device(where)) if args.precision == "auto" else args.precision
    results = Results(machine(torch.device(where)) | {"precision": exact})
    if "ceilings" in args.part:
        log.info("ceilings of the machine")
        results.ceilings |= {name: apart(ceilings.matrix_product, name, where) for name in ("fp32", "bf16")}
        results.ceilings["copy"] = apart(ceilings.copy, where)
    for network in args.network:
        subject = Subject.of(network, COMPARED_AT[where], where, exact)
        if "passes" in args.part:
            results.passes += _passes(subject)
        if "peers" in args.part and subject.unet.dims == 2:
            log.info("%s network, compared with others, %d turns each", network, args.rounds)
            results.peers[network] = peers.compare(subject, rounds=args.rounds)
    if "cases" in args.part:
        with tempfile.TemporaryDirectory() as folder:
            data_path = args.data_path or write_example(Path(folder)).parent
            results.phases += _cases(data_path, where, exact, args.network)
    return results


def _passes(subject: Subject) -> list[Pass]:
    """Measure a denoising step while doubling the batch, up to the limits of memory and time."""
    found: list[Pass] = []
    for batch in BATCHES:
        if found and 2 * found[-1].seconds > LONGEST:
            break
        log.info("%s network, a pass of %d", subject.name, batch)
        try:
            found.append(apart(passes.measure, replace(subject, batch=batch)))
        except (BrokenProcessPool, RuntimeError) as error:  # out of memory
            log.warning("%s network, a pass of %d: %s", subject.name, batch, error or "not enough memory")
            break
    return found


def _cases(data_path: Path, device: str, precision: Precision, networks: list[str]) -> list[Phases]:
    found = []
    for network in networks:
        for preset in NETWORKS[network]:
            log.info("a whole case, %s network, preset %s", network, preset)
            limits = LIMITS[device][network]
            found.append(apart(case.measure, network, preset, data_path, device, precision, limits))
    return found
