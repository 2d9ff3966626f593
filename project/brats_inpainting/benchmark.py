"""How long one case takes on this machine, and how much memory, for each preset."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from brats_inpainting import files, host, memory, runtime
from brats_inpainting.data import cases
from brats_inpainting.errors import InpaintingError
from brats_inpainting.fill import Options, fill_case
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.tables import Grid


@dataclass(frozen=True)
class Cost:
    """The cost of one case at a preset: seconds from its files to the filled file, for each round, and bytes.

    ``passes`` counts the windows that went through the network, once for each step and sample. ``memory`` is the
    largest resident memory of a process that does nothing else, PyTorch included; ``gpu_memory`` what PyTorch reserved.
    """

    preset: str
    weights: str
    precision: str
    windows: int
    passes: int
    load: float
    seconds: list[float]
    memory: int
    gpu_memory: int | None


def measure(preset: str, case: cases.Case, *, rounds: int = 1, **loading: Any) -> Cost:
    """Load a network and fill a case ``rounds`` times, in a new process; ``loading`` is for ``Inpainter.load``.

    Raises:
        InpaintingError: when the case or the settings cannot be used, or the process is killed.
    """
    try:
        return apart(_measure, preset, case, rounds, loading)
    except BrokenProcessPool as error:
        raise InpaintingError(
            f"preset {preset}: the process was killed, probably because memory ran out\n"
            "  Give the machine more memory, or choose other presets with --preset."
        ) from error


def _measure(preset: str, case: cases.Case, rounds: int, loading: dict[str, Any]) -> Cost:
    started = time.perf_counter()
    inpainter = Inpainter.load(preset=preset, **loading)
    load, seconds = time.perf_counter() - started, []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            started = time.perf_counter()
            windows = fill_case(inpainter, case, Path(folder) / cases.output_name(case.id), Options())["windows"]
            seconds.append(time.perf_counter() - started)
    device, weights = inpainter.plan.device, inpainter.weights.path.stem
    passes = windows * inpainter.sampling.samples * inpainter.sampling.passes
    gpu_memory = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    return Cost(preset, weights, inpainter.plan.precision, windows, passes, load, seconds, memory.peak(), gpu_memory)


def machine(device: torch.device) -> dict[str, str]:
    """Describe the processor, the GPU if ``device`` is one, and the versions."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "CPUs": str(host.cpus()),
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "GPU": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "load": f"{os.getloadavg()[0]:.2f} at the start",
        "versions": f"Python {platform.python_version()}, torch {version('torch')}",
    }


def grids(facts: dict[str, str], costs: Sequence[Cost]) -> list[Grid]:
    """Return the tables: the machine, and one case at each preset."""
    header = ("preset", "weights", "precision", "windows", "network passes", "load", "a case", "memory", "GPU memory")
    body = []
    for cost in costs:
        seconds = (f"{cost.load:.1f} s", f"{statistics.median(cost.seconds):.1f} s")
        memory = (f"{cost.memory / 1e9:.2f} GB", f"{cost.gpu_memory / 1e9:.2f} GB" if cost.gpu_memory else "–")
        counts = (str(cost.windows), f"{cost.passes:,}")
        body.append((cost.preset, cost.weights, cost.precision, *counts, *seconds, *memory))
    return [Grid("The machine", ("", ""), list(facts.items())), Grid("One case", header, body)]


def write(facts: dict[str, str], costs: Sequence[Cost], folder: Path) -> list[Path]:
    """Write benchmark.json and benchmark.md, and return their paths."""
    texts = {
        "json": json.dumps({"machine": facts, "presets": [asdict(cost) for cost in costs]}, indent=2),
        "md": "\n\n".join(grid.markdown() for grid in grids(facts, costs)),
    }
    for kind, text in texts.items():
        with files.atomic_write(folder / f"benchmark.{kind}") as unfinished:
            unfinished.write_text(text + "\n")
    return [folder / f"benchmark.{kind}" for kind in texts]


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process, set up as the command line sets up its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=runtime.settle) as alone:
        return alone.submit(function, *args).result()
