"""Comparison of training recipes, one factor at a time, scored on held-out subjects.

usage: python -m studies.recipes --data TRAIN --validation VAL --work FOLDER [--table docs/recipes.csv]
           [--seed 0] [--factor NAME …]

Every run is small-1.yaml with Muon, one change and 3200 windows of 4.65 to 5.0 GFLOP a pass: about seven minutes on two
cores. Windows of 96 take 3.6; whole slices get the same total of FLOPs, so a quarter of the windows. Budgets this short
favour fast learning; benefits that need many epochs, such as those of augmentation, require a long training. Fills of
the healthy mask alone are scored, as in validation during training. The seeds differ by up to 0.5 dB, but order the
changes almost equally; the common learning rate is 0.4 dB below the best one, which may favour changes that learn fast.
Runs in the table are skipped, and interrupted ones resumed.
"""

import argparse
import json
import re
import subprocess
import time
from pathlib import Path

from brats_inpainting import runtime
from brats_inpainting.config import TrainConfig
from brats_inpainting.parameters import read_recipe
from brats_inpainting.train import train
from studies import rows

BASELINE = Path(__file__).parents[1] / "workspace" / "parameters" / "small-1.yaml"
BUDGET = {
    "compile": True,
    "optimiser": "muon",
    "lr": 1.2e-3,
    "max_steps": 400,
    "warmup": 50,
    "decay": 150,
    "ema": [0.99],
    "save_every": 100,
    "validate_every": 400,
    "validation_cases": 16,
}
VARIANTS = {
    "baseline": {"muon, 1.2e-3": {}},
    "optimiser": {
        "muon, 4e-4": {"lr": 4e-4},
        "muon, 3e-3": {"lr": 3e-3},
        "muon, 8e-3": {"lr": 8e-3},
        "adamw, 4e-4": {"optimiser": "adamw", "lr": 4e-4},
        "adamw, 1e-3": {"optimiser": "adamw", "lr": 1e-3},
    },
    "batch": {
        "4, twice the steps": {
            "batch_size": 4,
            "max_steps": 800,
            "warmup": 100,
            "decay": 300,
            "ema": [0.995],
            "validate_every": 800,
        }
    },
    "prediction": {
        "v": {"diffusion": {"prediction": "v"}},
        "eps, 10 steps": {"diffusion": {"prediction": "eps"}, "validation": {"steps": 10}},
    },
    "weight outside": {"1": {"weight_outside": 1.0}, "0": {"weight_outside": 0.0}},
    "masks": {"files": {"masks": "files"}, "both": {"masks": "both"}},
    "image range": {"[0, 1]": {"diffusion": {"image_range": [0, 1], "clamp": [0, 1]}}},
    "window": {
        "96": {"diffusion": {"window": 96}},
        "224, batch 2": {"diffusion": {"window": 224}, "batch_size": 2},
    },
    "schedule": {"cosine": {"diffusion": {"schedule": "cosine"}}},
    "augmentation": {
        "none": {"augmentation": {"flip": False, "gamma": 0.0}},
        "strong": {"augmentation": {"affine": 10.0, "bias": 0.1, "noise": 0.02}},
    },
    "shape": {  # 4.9 GFLOP a window each
        "four wider levels": {"unet": {"multipliers": [1, 1, 2, 4], "attention_at": [8]}},
        "two narrower blocks a level": {"unet": {"multipliers": [1, 1, 1, 2, 3], "blocks": 2}},
    },
}


def main():
    parser = argparse.ArgumentParser()
    for name in ("data", "validation", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/recipes.csv"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--factor", nargs="*", default=list(VARIANTS))
    args = parser.parse_args()
    runtime.settle()
    for factor in args.factor:
        for variant, change in VARIANTS[factor].items():
            run = {"factor": factor, "variant": variant, "seed": args.seed}
            if not rows.read(args.table, run):
                folder = args.work / re.sub(r"\W+", "-", "-".join(map(str, run.values())))
                found = run | scores(change, folder, args)
                rows.append(args.table, [found])
                print(found, flush=True)


def scores(change, folder, args):
    """Train with a change to the recipe; return the last scores, and the minutes unless the run was resumed."""
    recipe = changed(read_recipe(BASELINE).model_dump(), BUDGET | change | {"seed": args.seed})
    started, resumed, commit = time.monotonic(), folder.exists(), head()
    train(
        args.data,
        folder,
        TrainConfig.model_validate(recipe),
        resume=resumed,
        cache_path=args.work / "cache",
        validation_path=args.validation,
    )
    reports = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [report for report in reports if "ssim" in report][-1]
    return {name: last[name] for name in ("ssim", "psnr", "mse")} | {
        "minutes": None if resumed else round((time.monotonic() - started) / 60),
        "commit": commit,
    }


def head():
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=BASELINE.parent, capture_output=True, text=True, check=False).stdout.strip()


def changed(recipe, change):
    """Return a recipe with the given values replaced, at any depth."""
    merged = {key: changed(recipe[key], value) if isinstance(value, dict) else value for key, value in change.items()}
    return recipe | merged


if __name__ == "__main__":
    main()
