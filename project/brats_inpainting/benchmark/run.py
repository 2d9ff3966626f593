"""Everything that ``benchmark`` measures, one thing at a time."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Collection
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from brats_inpainting.benchmark import case, ceilings, passes, peers
from brats_inpainting.benchmark.case import Phases, Row
from brats_inpainting.benchmark.passes import Pass
from brats_inpainting.benchmark.peers import Peer
from brats_inpainting.benchmark.subject import Subject, apart
from brats_inpainting.config import BUNDLED
from brats_inpainting.data import cases
from brats_inpainting.data.example import write_example
from brats_inpainting.device import Precision, best_precision, choose_device
from brats_inpainting.errors import ConfigError
from brats_inpainting.host import cpus

log = logging.getLogger(__name__)

PARTS = ("ceilings", "passes", "peers", "cases")
NETWORKS = {"paper": ("fast", "paper"), "small-2": ("fast", "paper"), "volume-1": ("fast", "realistic")}  # and presets
BATCHES = (1, 2, 4, 8, 16, 32, 64)
COMPARED_AT = {"cpu": 4, "cuda": 32}  # slices a batch, as infer takes them of a wide network
PATIENCE = 20.0  # seconds: no batch is doubled whose pass would take longer
LIMITS = {  # windows and steps that are really done
    "cpu": {"paper": (8, 2)} | dict.fromkeys(BUNDLED, (1000, 8)),
    "cuda": {"paper": (1000, 20)} | dict.fromkeys(BUNDLED, (1000, 100)),
}


@dataclass
class Results:
    """What was measured: FLOP/s and bytes a second of the machine, then passes, peers by network, cases."""

    machine: dict[str, str]
    ceilings: dict[str, float] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    peers: dict[str, list[Peer]] = field(default_factory=dict)
    phases: list[Phases] = field(default_factory=list)
    row: Row | None = None


def run(
    *,
    device: str = "auto",
    precision: Precision | Literal["auto"] = "auto",
    networks: Collection[str] = tuple(NETWORKS),
    parts: Collection[str] = PARTS,
    rounds: int = 5,
    data_path: Path | None = None,
) -> Results:
    """Measure.

    Args:
        device: as for ``infer``.
        precision: of the network; ``auto`` is the one that ``infer`` takes of a wide network on this device.
        networks: of ``NETWORKS``.
        parts: of ``PARTS``.
        rounds: how often the peers take turns.
        data_path: cases to be filled; the example case if not given.

    Raises:
        ConfigError: when there is no such device, or no case.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines say nothing that a reader needs
    where = _device(device)
    exact = best_precision(torch.device(where)) if precision == "auto" else precision
    results = Results(_machine(where, exact))
    if "ceilings" in parts:
        log.info("what the machine can do")
        results.ceilings |= {name: apart(ceilings.matrix_product, name, where) for name in ("fp32", "bf16")}
        results.ceilings["copy"] = apart(ceilings.copy, where)
    for network in networks:
        subject = Subject.of(network, COMPARED_AT[where], where, exact)
        if "passes" in parts:
            results.passes += _passes(subject)
        if "peers" in parts and subject.unet.dims == 2:
            log.info("%s network, beside others, %d turns each", network, rounds)
            results.peers[network] = peers.compare(subject, rounds=rounds)
    if "cases" in parts:
        with tempfile.TemporaryDirectory() as folder:
            if not data_path:
                data_path = Path(folder)
                write_example(data_path)
            _cases(results, data_path, where, exact, networks)
    return results


def _device(name: str) -> str:
    chosen = str(choose_device(name))
    if chosen not in COMPARED_AT:
        raise ConfigError(
            f"{chosen}: only cpu and cuda are measured\n  CUDA_VISIBLE_DEVICES chooses one GPU of several."
        )
    return chosen


def _passes(subject: Subject) -> list[Pass]:
    """Measure a denoising step of ever larger batches, while there is memory and patience."""
    found: list[Pass] = []
    for batch in BATCHES:
        if found and 2 * found[-1].seconds > PATIENCE:
            break
        log.info("%s network, a pass of %d", subject.name, batch)
        try:
            found.append(apart(passes.measure, replace(subject, batch=batch)))
        except (BrokenProcessPool, RuntimeError) as error:  # killed for its memory, or refused it
            log.warning("%s network, a pass of %d: %s", subject.name, batch, error or "not enough memory")
            break
    return found


def _cases(results: Results, data_path: Path, device: str, precision: Precision, networks: Collection[str]) -> None:
    for network in networks:
        for preset in NETWORKS[network]:
            log.info("a whole case, %s network, preset %s", network, preset)
            limits = LIMITS[device][network]
            results.phases.append(apart(case.measure, network, preset, data_path, device, precision, limits))
    if len(cases.find(data_path)) > 1:
        log.info("all cases in a row")
        results.row = apart(case.in_a_row, data_path, device, precision)


def _machine(device: str, precision: str) -> dict[str, str]:
    """Say what was measured on."""
    names = {line.partition(":")[2].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")} or {
        platform.processor() or platform.machine()
    }
    return {
        "processor": ", ".join(sorted(names)),
        "cpus": str(cpus()),
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "precision": precision,
        "load": f"{os.getloadavg()[0]:.2f} at the start",
        "versions": f"python {platform.python_version()}, torch {version('torch')}",
    }


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
