"""What the documents say of the bundled weights is what the files beside them say."""

import csv
import statistics
from pathlib import Path

import numpy as np
import pytest

from brats_inpainting.config import BUNDLED, BUNDLED_WEIGHTS, PRESETS, TrainConfig
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.parameters import read_recipe
from studies import rows

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
CARD, SLICES_CARD, EVALUATION, TRAINING, CHOICE = (
    (DOCS / f"{name}.md").read_text()
    for name in ("model_card", "model_card_small-2", "evaluation", "training", "presets")
)
COLUMNS = {"ssim": ".3f", "psnr": ".2f", "mse": ".4f", "mae": ".3f", "stripe_index": ".2f", "boundary_contrast": ".2f"}
COARSE = {"ssim": ".3f", "psnr": ".2f", "mse": ".4f"}
SOURCES = {"90101": "ds000011", "90203": "coreg_qa"}
MORE = ("sharpness", "stripes")


def table(name):
    with (DOCS / name).open() as file:
        return list(csv.DictReader(file))


SCORES = table("validation/scores.csv")


def cells(found, formats, *, spread=False):
    """Return the means of some columns as a table tells them, with the standard deviation if asked."""
    values = {key: [float(row[key]) for row in found] for key in formats}
    means = [f"{statistics.mean(values[key]):{f}}" for key, f in formats.items()]
    if not spread:
        return means
    return [
        f"{mean} ± {statistics.stdev(values[key]):{f}}" for mean, (key, f) in zip(means, formats.items(), strict=True)
    ]


@pytest.mark.parametrize("model", dict.fromkeys(row["model"] for row in SCORES))
def test_the_tables_of_scores_are_those_of_the_csv(model):
    found = [row for row in SCORES if row["model"] == model]
    assert len(found) == 16
    told = cells(found, COLUMNS, spread=True)
    assert f"| {' | '.join(told)} |" in EVALUATION
    assert f"| {' | '.join(told[:3])} |" in README or model == "mean"


def test_the_default_reaches_what_it_was_bundled_for():
    found = rows.matching(SCORES, {"model": BUNDLED_WEIGHTS.stem})
    ssim, psnr, mse = (statistics.mean(float(row[key]) for row in found) for key in COARSE)
    assert ssim >= 0.69
    assert psnr >= 19.45
    assert mse <= 0.0116
    assert 0.95 <= statistics.mean(float(row["boundary_contrast"]) for row in found) <= 1.05
    assert {row["changed_outside"] for row in found} == {"0"}


def test_the_presets_are_what_the_tables_call_them():
    for document in (README, CHOICE):
        told = {line.split("`")[1]: line for line in document.splitlines() if line.startswith(("| `", "| **`"))}
        for name, ways in PRESETS.items():
            how = ways.get(3, ways[2])
            assert f"| {how.passes * how.samples} " in told[name]


def test_the_page_of_presets_tells_every_setting_of_all_cases():
    found = rows.matching(table("surface.csv"), {"finish": "none"})
    for setting, of in rows.grouped(found, "sampler", "spacing", "steps", "samples", "flip").items():
        sampler, spacing, steps, samples, flip = setting
        name = f"{sampler}, {spacing}" if int(steps) > 1 and sampler == "ddim" else sampler
        flips = "yes" if flip == "True" else "no"
        assert len(of) in (3, 16)
        if len(of) == 3:  # measured on three cases to choose among steps, not in the table
            continue
        columns = cells(of, {"passes": ".0f"} | COARSE | dict.fromkeys(MORE, ".2f"))
        assert f"| {' | '.join([name, steps, samples, flips, *columns])} |" in CHOICE


def test_the_card_tells_how_the_scores_vary_over_cases_and_sources():
    scored = {row["case"].split("-", 2)[2]: row for row in SCORES if row["model"] == BUNDLED_WEIGHTS.stem}
    ordered = sorted(scored, key=lambda case: float(scored[case]["ssim"]))
    assert (ordered[0], ordered[-1]) == ("90101-001", "90052-001")  # 142,602 and 6,821 voxels scored
    best, worst = (cells([scored[case]], {"ssim": ".3f"})[0] for case in (ordered[-1], ordered[0]))
    card = " ".join(CARD.split())
    assert f"SSIM is between {best} (7 ml) and {worst} (143 ml)" in card
    one, *others = (
        cells([row for case, row in scored.items() if SOURCES.get(case[:5], "ds002748") == source], {"ssim": ".3f"})[0]
        for source in ("ds002748", "ds000011", "coreg_qa")
    )
    assert f"SSIM is {one} for that site, {' and '.join(others)} for two others" in card


def test_the_card_tells_what_changed_scans_cost():
    by_weights = rows.grouped(table("validation/robustness.csv"), "weights")
    dims = {"volume-2": 3, "small-2": 2}
    sampled = {checkpoint.sha256(path)[:8]: str(PRESETS["fast"][dims[name]]) for name, path in BUNDLED.items()}
    assert {key: {row["sampling"] for row in found} for (key,), found in by_weights.items()} == {
        key: {sampling} for key, sampling in sampled.items()
    }
    by_scans = [rows.grouped(by_weights[key,], "scans") for key in sampled]
    for (scans,) in by_scans[0]:
        told = [scans]
        for found in by_scans:
            lost = np.mean([float(row["psnr"]) for row in found["as they are",]]) - np.mean(
                [float(row["psnr"]) for row in found[scans,]]
            )
            told += [*cells(found[scans,], {"ssim": ".3f", "psnr": ".2f"}), f"{lost + 0.0:+.2f}"]
        assert f"| {' | '.join(told)} |" in CARD


@pytest.mark.parametrize(("name", "card"), [("volume-2", CARD), ("small-2", SLICES_CARD)])
def test_the_cards_name_the_weights(name, card):
    weights = checkpoint.load(BUNDLED[name])
    parameters = sum(p.numel() for p in weights.network.parameters())
    assert weights.sha256 in card
    assert weights.sha256 in (ROOT / "CHANGELOG.md").read_text()
    assert f"{parameters:,} parameters" in card
    assert f"{BUNDLED[name].stat().st_size / 1e6:.1f} MB" in card


def test_what_the_wheel_carries_stays_below_45_mb():
    package = ROOT / "project" / "brats_inpainting"
    assert sum(path.stat().st_size for folder in ("weights", "scans") for path in (package / folder).iterdir()) < 45e6


def test_the_bundled_recipe_is_that_of_the_weights_last_run():
    notes = checkpoint.load(BUNDLED["small-2"]).notes["training"]
    trained = TrainConfig.model_validate(notes).model_dump(mode="json")  # settings of later are at their defaults
    recipe = read_recipe(ROOT / "workspace" / "parameters" / "small.yaml").model_dump(mode="json")
    told = {"max_steps", "validate_every", "compile", "ema"}  # in its comment
    assert {key for key in notes if recipe[key] != trained[key]} == told


def test_training_tells_every_recipe():
    assert not [row for row in table("recipes.csv") if f"{float(row['psnr']):.2f}" not in TRAINING]
