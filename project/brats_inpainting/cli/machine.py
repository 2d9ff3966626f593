"""Commands about the installation and the machine: info, benchmark."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from brats_inpainting.cli.app import PrecisionName, WeightsFile, app, folder, log, option, out, wide
from brats_inpainting.config import PRESETS, sampling, weights_path
from brats_inpainting.progress import duration


@app.command()
def info() -> None:
    """Show the version, presets, bundled weights and devices."""
    from brats_inpainting import about

    for name, text in about.facts().items():
        out.print(f"{name:10} {text}")


@app.command()
def benchmark(
    data_path: Annotated[
        Path | None, folder("data-path", "Folder of cases; the first is used. Default: the example case.")
    ] = None,
    report_path: Annotated[Path | None, folder("report-path", "Folder for benchmark.json and benchmark.md.")] = None,
    preset: Annotated[
        list[str] | None,
        option("preset", f"{', '.join(PRESETS)}; repeatable. Default: all but paper.", metavar="<str>"),
    ] = None,
    weights: WeightsFile = None,
    rounds: Annotated[int, option("rounds", "Number of repetitions; the median is reported.", min=1)] = 1,
    device: Annotated[str, option("device", "auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: PrecisionName = "auto",
) -> None:
    """Measure time and memory for one case at each preset."""
    from brats_inpainting import benchmark as bench
    from brats_inpainting import files
    from brats_inpainting.data import cases, example
    from brats_inpainting.device import choose_device

    presets = preset or [name for name in PRESETS if name != "paper"]
    for name in presets:
        sampling(name, 2)  # reject unknown presets before measuring
    if report_path:
        files.make_writable(report_path)
    facts, costs = bench.machine(choose_device(device)), []
    with tempfile.TemporaryDirectory() as folder:
        if not data_path:
            data_path = example.write_example(Path(folder)).parent
        case = cases.find(data_path)[0]
        cases.load(case)  # likewise unusable cases
        for name in presets:
            log.info("preset %s …", name)
            loading = {"weights": weights_path(weights, name), "device": device, "precision": precision}
            cost = bench.measure(name, case, rounds=rounds, **loading)
            log.info("preset %s: %s", name, ", ".join(map(duration, cost.seconds)))
            costs.append(cost)
    for grid in bench.grids(facts, costs):
        wide.print(grid.rich())
    for path in bench.write(facts, costs, report_path) if report_path else ():
        out.print(f"written: {path}")
