"""Windows per second of our training step, of a guided-diffusion-style step, and of the loader.

usage: python -m studies.training [--data FOLDER] [--recipe small.yaml] [--batch 8] [--rounds 5]

Both steps train the same network on the same inputs in float32, alternately, so that other load affects both. The
other step follows guided-diffusion: contiguous layout, gradients zeroed and norms computed one parameter at a time,
and a moving average in a Python loop.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch

from brats_inpainting import runtime
from brats_inpainting.config import TrainConfig
from brats_inpainting.data import cache, dataset
from brats_inpainting.data.augment import Batch
from brats_inpainting.data.dataset import Epoch
from brats_inpainting.diffusion.process import Schedule
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.loss import terms
from brats_inpainting.parameters import read_recipe
from brats_inpainting.state import State

RECIPES = Path(__file__).parents[1] / "workspace" / "parameters"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SUBJECTS = 1251  # in the challenge's training set


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recipe", default="small.yaml")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    runtime.settle()
    recipe = read_recipe(RECIPES / args.recipe)
    recipe = recipe.model_copy(update={"batch_size": args.batch, "precision": "fp32"})
    print(f"{args.recipe}, batches of {args.batch} on {DEVICE}, {torch.get_num_threads()} threads")
    compare(recipe, args.rounds)
    if args.data:
        loader(recipe, args.data)


def compare(recipe, rounds):
    batch = random_batch(recipe)
    steps = {"guided-diffusion's": theirs(recipe), "ours": ours(recipe), "ours, bf16": ours(recipe, torch.bfloat16)}
    seconds = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step(batch)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - started)
    base = statistics.median(seconds["guided-diffusion's"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"  {name:20} {recipe.batch_size / median:8.2f} windows/s   {base / median:.2f}×")


def random_batch(recipe):
    shape = [recipe.diffusion.window] * recipe.unet.dims
    truth, context, mask, noise = torch.rand(4, recipe.batch_size, 1, *shape, device=DEVICE)
    position = torch.rand(recipe.batch_size, 3, *shape, device=DEVICE)
    t = torch.randint(recipe.diffusion.steps, (recipe.batch_size,), device=DEVICE)
    previous = truth[:, :0]
    return Batch(truth, context, mask, position, previous, noise, t)


def ours(recipe, dtype=torch.float32):
    state = State.start(recipe, fold=0, data="")
    state.network.to(DEVICE)
    state.resume(DEVICE, None)
    schedule = Schedule.of(recipe.diffusion)

    def network(x, t):
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            return state.network(x, t)

    def step(batch):
        terms(network, schedule, recipe, batch).total_N.mean().backward()
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip)
        state.optimiser.step()
        state.optimiser.zero_grad()
        state.advance(0, 0)

    return step


def theirs(recipe: TrainConfig):
    torch.manual_seed(recipe.seed)
    network = UNet(recipe.unet).to(DEVICE)
    averages = copy.deepcopy(list(network.parameters()))
    optimiser = torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=0)
    schedule = Schedule.linear(recipe.diffusion.steps)

    def step(batch):
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.grad.detach_()
                parameter.grad.zero_()
        terms(network, schedule, recipe, batch).total_N.mean().backward()
        for parameter in network.parameters():
            torch.norm(parameter).item()
            torch.norm(parameter.grad).item()
        optimiser.step()
        for average, parameter in zip(averages, network.parameters(), strict=True):
            average.detach().mul_(recipe.ema[0]).add_(parameter.detach(), alpha=1 - recipe.ema[0])

    return step


def loader(recipe, folder):
    files = cache.find(folder)
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        scans = cache.prepare(files, Path(place))
        prepared = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(place).iterdir())
        per_scan = f"{prepared / len(files):.2f} s and {size / len(files) / 1e6:.0f} MB a scan"
        whole = f"{prepared / len(files) * SUBJECTS / 60:.0f} min and {size / len(files) * SUBJECTS / 1e9:.0f} GB"
        print(f"  preparing {len(files)} scans: {per_scan}; {whole} for {SUBJECTS}")
        shapes = dataset.pool(recipe)
        started = time.perf_counter()
        windows = len(Epoch(scans, shapes, recipe, 0))
        drawn = (time.perf_counter() - started) / len(files)
        whole = f"{windows / len(files) * SUBJECTS:,.0f} windows and {drawn * SUBJECTS / 60:.1f} min for {SUBJECTS}"
        print(f"  an epoch: {windows:,} windows, masks drawn in {drawn:.2f} s a scan; {whole}")
        stream = dataset.batches(scans, recipe, epoch=0, batch=0)
        next(stream)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < 10:
            next(stream)
            count += recipe.batch_size
        print(f"  loader, one process {count / (time.perf_counter() - started):8.0f} windows/s")


if __name__ == "__main__":
    main()
