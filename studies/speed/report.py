"""Tables, JSON and a roofline plot of the measurements."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from brats_inpainting import pictures
from brats_inpainting.config import Settings
from brats_inpainting.files import atomic_write
from brats_inpainting.progress import duration
from brats_inpainting.tables import Grid
from studies.speed.case import NETWORK, SAMPLER, Phases
from studies.speed.passes import Pass
from studies.speed.peers import Peer

CASE_HEADER = ("in all", "not the network", "peak")
PHASES = ("load", "prepare", NETWORK, SAMPLER, "undo", "save")


@dataclass
class Results:
    """All measurements: FLOP/s and bytes per second of the machine, passes, peers by network, phases of cases."""

    machine: dict[str, str]
    ceilings: dict[str, float] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    peers: dict[str, list[Peer]] = field(default_factory=dict)
    phases: list[Phases] = field(default_factory=list)


def grids(results: Results) -> list[Grid]:
    """Return the tables of all measurements."""
    found = [Grid("The machine", ("", ""), list(results.machine.items()))]
    if results.ceilings:
        found.append(_ceilings(results.ceilings))
    if results.passes:
        found.append(_passes(results.passes, results.ceilings))
    found += [_peers(network, peers) for network, peers in results.peers.items()]
    if results.phases:
        found.append(_cases(results.phases))
    return found


def write(results: Results, folder: Path) -> list[Path]:
    """Write speed.json, speed.md and, where there are passes and ceilings, roofline.png."""
    written = [folder / "speed.json", folder / "speed.md"]
    numbers = json.dumps(asdict(results), indent=1, default=Settings.model_dump)
    tables = "\n\n".join(grid.markdown() for grid in grids(results))
    for path, text in zip(written, (numbers, tables), strict=True):
        with atomic_write(path) as unfinished:
            unfinished.write_text(text + "\n")
    if results.passes and results.ceilings and pictures.can_draw():
        roofline(results, folder / "roofline.png")
        written.append(folder / "roofline.png")
    return written


def roofline(results: Results, path: Path) -> None:
    """Draw every convolution and every pass under the machine's limits: FLOP/s against FLOPs a byte."""
    figure = pictures.figure((8, 5), layout="constrained")
    axes = figure.subplots()
    gpu, processor = results.machine["GPU"], results.machine["processor"]
    precision, bandwidth = results.machine["precision"], results.ceilings["copy"]
    peak = results.ceilings[precision if precision in results.ceilings else "bf16"]
    reach = [0.5, peak / bandwidth, 5000]
    axes.plot(reach, [min(peak, bandwidth * x) / 1e9 for x in reach], color="black", label="copy, matrix product")
    for number, network in enumerate(dict.fromkeys(found.subject.name for found in results.passes)):
        largest = [found for found in results.passes if found.subject.name == network][-1]
        alone, colour = largest.convolutions, f"C{number}"
        rates = [conv.flops / conv.seconds / 1e9 for conv in alone]
        label = f"{network}: convolutions alone, {largest.subject.batch} slices"
        axes.scatter([conv.flops / conv.bytes for conv in alone], rates, s=14, color=colour, alpha=0.5, label=label)
        moved = sum(conv.times * conv.bytes for conv in alone)
        place = (largest.flops / moved, largest.flops / largest.seconds / 1e9)
        axes.scatter(*place, s=130, marker="*", color=colour, edgecolor="black", label=f"{network}: a whole pass")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte that convolutions read and write", ylabel="GFLOP/s")
    axes.set_title(f"{processor if gpu == 'none' else gpu}, {precision}", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _ceilings(found: dict[str, float]) -> Grid:
    names = {"fp32": "matrix product, float32", "bf16": "matrix product, bfloat16"}
    lines = [(names[key], f"{found[key] / 1e9:,.0f} GFLOP/s") for key in names]
    return Grid("What it can do", ("", ""), [*lines, ("copy, read and written", f"{found['copy'] / 1e9:,.1f} GB/s")])


def _passes(passes: list[Pass], ceilings: dict[str, float]) -> Grid:
    def of_product(found: Pass) -> str:
        limit = ceilings.get(found.subject.precision)
        return f"{found.flops / found.seconds / limit:.0%}" if limit else "–"

    limits = ("of a matrix product", "of the convolutions alone")
    return Grid(
        "One denoising step",
        ("network", "slices", "seconds", "ms a slice", "GFLOP/s", *limits, "peak", "operators"),
        [
            (
                found.subject.name,
                str(found.subject.batch),
                f"{found.seconds:.3f}",
                f"{1000 * found.seconds / found.subject.batch:.1f}",
                f"{found.flops / found.seconds / 1e9:,.0f}",
                of_product(found),
                f"{found.ceiling / found.seconds:.0%}",
                f"{found.peak / 1e9:.2f} GB",
                ", ".join(f"{name} {share:.0%}" for name, share in found.operators.items()),
            )
            for found in passes
        ],
        "The convolutions alone: the sum of the best times of its convolutions run separately. Operators above 5 %.",
    )


def _peers(network: str, peers: list[Peer]) -> Grid:
    def lines() -> Iterator[tuple[str, ...]]:
        for peer in peers:
            yield (
                peer.name,
                f"{statistics.median(peer.seconds):.3f}",
                f"{peer.flops / 1e9:,.0f}",
                f"{peer.ratio(peers[0]):.2f}×",
                f"{peer.peak / 1e9:.2f} GB",
                "other weights" if peer.distance is None else f"{peer.distance:.0e}",
            )

    return Grid(
        f"One pass of the {network} network, compared with others",
        ("", "seconds", "GFLOP", "time per FLOP, ours = 1", "peak", "distance"),
        list(lines()),
        f"Medians of {len(peers[0].seconds)} turns, each peer in a separate process; ratios per turn.",
    )


def _cases(phases: list[Phases]) -> Grid:
    return Grid(
        "A whole case",
        ("network", "preset", "windows", *(f"{name}, s" for name in PHASES), *CASE_HEADER),
        [
            (
                f"{found.network}{'' if found.measured == found.passes else ' (scaled)'}",
                found.preset,
                str(found.windows),
                *(f"{found.seconds[name]:,.2f}" for name in PHASES),
                duration(sum(found.seconds.values())),
                f"{found.other_share:.1%}",
                f"{found.peak / 1e9:.2f} GB",
            )
            for found in phases
        ],
        "Scaled: network and sampler were timed on some of the windows and steps.",
    )
