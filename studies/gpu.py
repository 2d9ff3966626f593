"""One GPU in four minutes: passes in 2D and 3D, the training step, and a case at every preset.

usage: python -m studies.gpu [--output FOLDER] [--part limits paper volume training cases] [--tiny]

Compares with guided-diffusion's steps, diffusers and MONAI where these are installed. Cases have the bundled weights,
everything else random ones. Passes and steps are medians of synchronised turns after a warm-up; a case is its second
run; limits and single convolutions are the best of five. Writes gpu.json and gpu.md to --output after every row.
--tiny tests passes and training with small sizes on any device.
"""

import argparse
import json
import statistics
import time
import traceback
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from brats_inpainting.config import PRECISIONS, PRESETS, sampling
from brats_inpainting.data import volume
from brats_inpainting.data.example import write_example
from brats_inpainting.device import autocast
from brats_inpainting.diffusion.replay import Replay
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.parameters import read_recipe
from brats_inpainting.plan import Plan
from studies import training
from studies.speed import ceilings, peers
from studies.speed.ceilings import without_kernels
from studies.speed.reference import Reference
from studies.speed.subject import Subject, seconds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPES = Path(__file__).parents[1] / "workspace" / "parameters"
PRECISION = "bf16" if DEVICE == "cuda" else "fp32"
TURNS = 7
TINY = {"width": 32, "multipliers": (1, 1), "blocks": 1, "attention_at": (2,)}
PAPER_SLICES = 80  # of a case, at the preset paper


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu"))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    table = Table(args.output)
    for part in args.part:
        PARTS[part](table, tiny=args.tiny)
    print(table.markdown())


class Table:
    """Rows of results; one that fails is reported and does not stop the others."""

    def __init__(self, folder):
        self.folder, self.started = folder, time.perf_counter()
        name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
        self.content = {"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "rows": []}

    def add(self, part, name, measure):
        """Run ``measure``, which returns a dict of figures, and append its row."""
        row = {"part": part, "name": name}
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            row |= measure()
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else 0.0
        except Exception as error:  # noqa: BLE001 - the other rows are wanted
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        self.content["rows"].append(row)
        elapsed = time.perf_counter() - self.started
        print(f"{elapsed:6.1f} s  {row}", flush=True)
        (self.folder / "gpu.json").write_text(json.dumps(self.content | {"seconds": elapsed}, indent=1))
        (self.folder / "gpu.md").write_text(self.markdown())

    def markdown(self):
        about = f"{self.content['device']}, torch {self.content['torch']}, {self.content['date']}"
        lines = [about, "", "| | | figure | peak |", "|---|---|---|---|"]
        for row in self.content["rows"]:
            known = {"part", "name", "peak_gb"}
            figures = ", ".join(f"{_number(v)} {k}" for k, v in row.items() if k not in known)
            lines.append(f"| {row['part']} | {row['name']} | {figures} | {row.get('peak_gb', 0):.1f} GB |")
        return "\n".join(lines) + "\n"


def _number(value):
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def median(work, turns=TURNS):
    """Return the median milliseconds of ``turns`` synchronised turns after three to warm up."""
    for _ in range(3):  # compile, choose kernels and record graphs
        seconds(work, DEVICE)
    return 1000 * statistics.median(seconds(work, DEVICE) for _ in range(turns))


def limits(table, *, tiny):
    if not tiny:
        table.add(
            "limits", "matrix product 8192³, bf16", lambda: {"TFLOP/s": ceilings.matrix_product("bf16", DEVICE) / 1e12}
        )
        table.add("limits", "copy, read and written", lambda: {"TB/s": ceilings.copy(DEVICE) / 1e12})


def paper(table, *, tiny):
    """The paper's network, 32 slices of 224 × 224."""
    subject = Subject.of("paper", 32, DEVICE, PRECISION)
    if tiny:
        subject = replace(subject, unet=subject.unet.model_copy(update=TINY), side=32, batch=2)
    _passes(table, "paper", subject)
    exact = replace(subject, precision="fp32")
    table.add("paper", "ours, float32 (TF32 convolutions)", lambda: one_pass(exact, exact.network()))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        table.add("paper", "eager reference, float32", lambda: one_pass(exact, Reference(exact.network())))
    for name, build in (("diffusers", peers._diffusers), ("monai", peers._monai)):
        if find_spec(name) and not tiny:
            table.add("paper", name, lambda build=build: one_pass(subject, build(subject).eval().to(DEVICE)))


def volumes(table, *, tiny):
    """The bundled 3D network, windows of 96³; and the bundled 2D network."""
    for batch in (1,) if tiny else (1, 4):
        subject = Subject.of("volume-2", batch, DEVICE, PRECISION)
        if tiny:
            subject = replace(subject, unet=subject.unet.model_copy(update=TINY), side=16)
        _passes(table, f"volume-2, {batch} × {subject.side}³", subject)
    for batch, precision in () if tiny else ((64, "bf16"), (64, "fp32")):
        subject = Subject.of("small-2", batch, DEVICE, precision)
        name = f"{precision}, CUDA graph"
        table.add(f"small-2, {batch} slices", name, lambda s=subject: one_pass(s, s.network(), wrap=Replay))


def _passes(table, name, subject):
    """Add a row for each way of running a network, and one for its convolutions alone."""
    table.add(name, "ours", lambda: one_pass(subject, subject.network()))
    if DEVICE == "cuda":
        table.add(name, "ours, CUDA graph", lambda: one_pass(subject, subject.network(), wrap=Replay))
    with without_kernels():
        table.add(name, "PyTorch's norms", lambda: one_pass(subject, subject.network()))
    if subject.unet.dims == 2:
        table.add(name, "eager reference", lambda: one_pass(subject, Reference(subject.network())))
    table.add(name, "its convolutions alone", lambda: convolutions(subject))


def one_pass(subject, network, *, wrap=lambda run: run):
    network = network.eval().requires_grad_(False)
    ours = not isinstance(network, Reference) and hasattr(network, "config") and hasattr(network, "checkpointing")
    x_NCV = subject.input_NCV() if ours else subject.input_NCV().contiguous()
    t_N = torch.full((1 if ours else subject.batch,), 500, device=DEVICE)

    def run(x, t):
        with autocast(DEVICE, subject.precision):
            return network(x, t)

    run = wrap(run)
    with torch.inference_mode():
        return {"ms": median(lambda: run(x_NCV, t_N))}


def convolutions(subject):
    flops, alone = ceilings.convolutions(subject.network(), subject)
    milliseconds = 1000 * sum(found.times * found.seconds for found in alone)
    return {"ms": milliseconds, "GFLOP": flops / 1e9}


def train(table, *, tiny):
    """Training steps of the bundled 3D network: loss, gradients, Muon and the moving average."""
    recipe = read_recipe(RECIPES / "volume.yaml").model_copy(update={"compile": False})
    if tiny:
        small = recipe.diffusion.model_copy(update={"window": 16})
        unet = recipe.unet.model_copy(update=TINY)
        recipe = recipe.model_copy(update={"batch_size": 2, "diffusion": small, "unet": unet})
    name = f"training, {recipe.batch_size} × {recipe.diffusion.window}³"
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # as train
        table.add(name, "ours", lambda: training_step(recipe))
        with without_kernels():
            table.add(name, "PyTorch's norms", lambda: training_step(recipe))


def training_step(recipe):
    step, batch = training.ours(recipe, getattr(torch, PRECISIONS[PRECISION])), training.random_batch(recipe)
    steps = 4  # of a turn: training does not wait for the GPU after each
    return {"windows/s": 1000 * steps * recipe.batch_size / median(lambda: [step(batch) for _ in range(steps)])}


def cases(table, *, tiny):
    """The example case at every preset; the paper's network with random weights."""
    for weights, dims in (("volume-2", 3), ("small-2", 2)):
        for preset in () if tiny else PRESETS:
            if dims in PRESETS[preset] and preset != "paper":
                table.add(f"a case, {weights}", preset, lambda w=weights, p=preset: filled(table.folder, w, p))
    if not tiny:
        table.add("a case, paper's network", f"paper, {PAPER_SLICES} slices, scaled", lambda: papers(table.folder))


def filled(folder, weights, preset):
    inpainter = Inpainter.load(weights, preset=preset, device=DEVICE)
    first, second = (inpaint(inpainter, folder) for _ in range(2))
    return {"s": sum(second.values()), "s of it the network's": second["fill"], "s the first time": sum(first.values())}


def papers(folder):
    """Return the seconds of 1000 steps, from 25 steps of the example case."""
    subject, steps = Subject.of("paper", 1, DEVICE, "bf16"), 25
    loaded = Inpainter.load("small-2", device=DEVICE).weights
    weights = replace(loaded, network=subject.network(), diffusion=subject.diffusion)
    plan = Plan.make(subject.unet, torch.device(DEVICE))
    inpainter = Inpainter(weights, sampling("paper", 2, steps=steps), plan)
    inpaint(inpainter, folder)
    slices = int(volume.read(example(folder)[1]).any((0, 1)).sum())
    a_pass = inpaint(inpainter, folder)["fill"] / steps / -(-slices // plan.batch_size)
    return {"s": a_pass * 1000 * -(-PAPER_SLICES // plan.batch_size), "ms a pass": 1000 * a_pass}


def inpaint(inpainter, folder):
    image, mask = example(folder)
    return inpainter.inpaint(image, mask).timings


def example(folder):
    found = folder / "example"
    return [
        next((found if found.exists() else write_example(found)).rglob(f"*-{n}.nii.gz")) for n in ("t1n-voided", "mask")
    ]


PARTS = {"limits": limits, "paper": paper, "volume": volumes, "training": train, "cases": cases}

if __name__ == "__main__":
    main()
