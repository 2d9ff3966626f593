"""The commands about the software and the machine: info, benchmark."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from brats_inpainting.cli.app import PrecisionName, app, option, out, wide

BenchmarkPart = StrEnum("BenchmarkPart", ["ceilings", "passes", "peers", "cases"])
BenchmarkNetwork = StrEnum("BenchmarkNetwork", ["paper", "small-2", "volume-1"])


@app.command()
def info() -> None:
    """Say which version, presets, weights and devices there are."""
    from brats_inpainting import about

    for name, text in about.facts().items():
        out.print(f"{name:10} {text}")


@app.command()
def benchmark(
    data_path: Annotated[
        Path | None, option("data-path", "Folder of cases to be filled. Default: the example case.")
    ] = None,
    report_path: Annotated[
        Path | None, option("report-path", "Folder for benchmark.json, benchmark.md and roofline.png.")
    ] = None,
    part: Annotated[
        list[BenchmarkPart] | None, option("part", "What to measure; may be given several times. Default: all.")
    ] = None,
    network: Annotated[
        list[BenchmarkNetwork] | None, option("network", "Which; may be given several times. Default: all.")
    ] = None,
    rounds: Annotated[int, option("rounds", "Turns that our network and its peers take.", min=1)] = 5,
    device: Annotated[str, option("device", "auto, cpu, cuda.")] = "auto",
    precision: PrecisionName = "auto",
) -> None:
    """Measure speed and memory: the machine's limits, a pass beside them and beside others, a whole case by phase."""
    from brats_inpainting import files
    from brats_inpainting.benchmark import report as reporting
    from brats_inpainting.benchmark import run
    from brats_inpainting.data import cases

    if data_path:  # what cannot be filled is told now, not after a quarter of an hour
        cases.load(cases.find(data_path)[0])
    if report_path:
        files.make_writable(report_path)
    results = run.run(
        device=device,
        precision=precision,
        networks=network or tuple(run.NETWORKS),
        parts=part or run.PARTS,
        rounds=rounds,
        data_path=data_path,
    )
    for grid in reporting.grids(results):
        wide.print(grid.rich())
    for path in reporting.write(results, report_path) if report_path else ():
        out.print(f"written: {path}")
