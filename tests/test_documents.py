"""What the documents say of the bundled weights is what the files beside them say; every measurement can be asked."""

import csv
import importlib
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

from brats_inpainting.config import BUNDLED_WEIGHTS, PRESETS
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.parameters import read_recipe
from tests.benchmarks import rows
from tests.benchmarks.presets import TOLD, WAYS
from tests.benchmarks.surface import NOISE
from tests.benchmarks.uncertainty import CORRELATIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
CARD, EVALUATION, TRAINING, CHOICE = (
    (DOCS / f"{name}.md").read_text() for name in ("model_card", "evaluation", "training", "presets")
)
COLUMNS = {"ssim": ".3f", "psnr": ".2f", "mse": ".4f", "mae": ".3f", "stripe_index": ".2f", "boundary_contrast": ".2f"}
SOURCES = {"90101": "ds000011", "90203": "coreg_qa"}
FACTORS = {"smoothing", "images clamped to", "intensities", "slices between the anchors of slerp", "two samples", "EMA"}
FILES = sorted((ROOT / "tests" / "benchmarks").glob("*.py"))


def table(name):
    with (DOCS / name).open() as file:
        return list(csv.DictReader(file))


SCORES = table("validation/scores.csv")
FINE = {"ssim": ".4f", "psnr": ".2f", "mse": ".5f"}
COARSE = {"ssim": ".3f", "psnr": ".2f", "mse": ".4f", "stripes": ".2f"}


def cells(found, formats, *, spread=False):
    """Return the means of some columns as a table tells them, with the standard deviation if asked."""
    values = {key: [float(row[key]) for row in found] for key in formats}
    means = [f"{statistics.mean(values[key]):{f}}" for key, f in formats.items()]
    if not spread:
        return means
    return [
        f"{mean} ± {statistics.stdev(values[key]):{f}}" for mean, (key, f) in zip(means, formats.items(), strict=True)
    ]


def mean(key, found):
    return statistics.mean(float(row[key]) for row in found)


def panel(sampler, steps, samples, finish):
    """Return the panel's four rows of one setting, with the noise that the documents tell it with."""
    noise = "independent" if sampler == "ddpm" else "slerp"
    wanted = {"sampler": sampler, "steps": steps, "samples": samples, "finish": finish, "noise": noise}
    found = rows.read(DOCS / "surface.csv", wanted)
    assert len(found) == 4
    return found


@pytest.mark.parametrize("model", dict.fromkeys(row["model"] for row in SCORES))
def test_the_tables_of_scores_are_those_of_the_csv(model):
    found = [row for row in SCORES if row["model"] == model]
    assert len(found) == 16
    line = f"| {' | '.join(cells(found, COLUMNS, spread=True))} |"
    assert line in README
    assert line in EVALUATION
    sources = {row["case"]: SOURCES.get(row["case"].split("-")[2], "ds002748") for row in found}
    by_source = [[row for row in found if sources[row["case"]] == s] for s in ("ds002748", "ds000011", "coreg_qa")]
    assert f"| {' | '.join(' / '.join(cells(part, FINE)) for part in by_source)} |" in EVALUATION


@pytest.mark.parametrize(("sampler", "steps", "finish"), [("dpmpp_2m", "2", "along z"), ("ddpm", "1000", "paper's")])
def test_the_panel_compares_paper_with_fast(sampler, steps, finish):
    found = panel(sampler, steps, "1", finish)
    assert f"| {steps} | {' | '.join(cells(found, COARSE, spread=True))} |" in EVALUATION
    assert all(cell in README for cell in cells(found, COARSE)[:2])


def test_the_page_of_presets_tells_every_case():
    by_preset = rows.grouped(table("presets.csv"), "preset", "sampling")
    assert {*WAYS} == {name for name, _ in by_preset}
    for (preset, sampling), found in by_preset.items():
        assert sampling == str(WAYS[preset])
        assert len({row["case"] for row in found}) == len(found) == (8 if preset == "paper" else 16)
        assert f"| {preset} | {len(found)} | {rows.means(found, *TOLD)}" in CHOICE


def test_the_page_of_presets_tells_the_panel():
    table_rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in CHOICE.splitlines()]
    settings = [row for row in table_rows if len(row) == 9 and row[0] in ("dpmpp_2m", "ddim", "heun", "ddpm")]
    measured = rows.grouped(table("surface.csv"), "sampler", "steps", "samples", "finish", "noise")
    interpolated = {key[:4] for key in measured if key[2] != "4" and key[3:] == ("filtered", "slerp")}
    assert interpolated <= {tuple(row[:4]) for row in settings}
    for sampler, steps, samples, finish, *told in settings:
        assert told == cells(panel(sampler, steps, samples, finish), {"passes": ".0f"} | COARSE)


def test_the_page_of_presets_tells_what_noise_does():
    wanted = {"sampler": "dpmpp_2m", "samples": 1, "finish": "raw"}
    by_steps = rows.grouped(rows.matching(table("surface.csv"), wanted), "steps")
    complete = {steps: rows.grouped(found, "noise") for (steps,), found in by_steps.items() if len(found) == 12}
    assert len(complete) >= 6
    for steps, found in complete.items():
        told = (" / ".join(cells(found[noise,], {"stripes": ".2f", "ssim": ".3f"})) for noise in NOISE)
        assert f"| {steps} | {' | '.join(told)} |" in CHOICE


def test_the_page_of_presets_tells_one_factor_at_a_time():
    by_change = rows.grouped(table("choices.csv"), "preset", "factor", "variant")
    assert {factor for _, factor, _ in by_change} == FACTORS
    for change, found in by_change.items():
        assert f"| {' | '.join([*change, *cells(found, COARSE | {'texture': '.2f'})])} |" in CHOICE


def test_the_page_of_presets_tells_how_spread_and_error_go_together():
    for (fills,), found in rows.grouped(rows.matching(table("uncertainty.csv"), {"tenth": 0}), "fills").items():
        assert len(found) == 16
        correlations = cells(found, dict.fromkeys(CORRELATIONS, ".2f"), spread=True)
        assert f"| {fills} | {' | '.join(correlations)} |" in CHOICE
    of_tenths = rows.grouped(rows.matching(table("uncertainty.csv"), {"fills": "accurate"}), "tenth")
    times = [mean("rmse", found) / mean("spread", found) for found in of_tenths.values()]
    assert (
        f"{times[-1]:.0f} times the spread where that is largest, {times[0]:.0f} times where it is smallest" in CHOICE
    )


def test_the_presets_are_what_the_tables_call_them():
    for document in (README, CHOICE):
        told = {line.split("`")[1]: line for line in document.splitlines() if line.startswith("| `")}
        for name, how in PRESETS.items():
            assert f"| {how.passes * how.samples} |" in told[name]
            along_z = isinstance(how.smoothing, tuple)
            assert f"σ = {how.smoothing[2] if along_z else how.smoothing}" in told[name]
            assert ("along z alone" in told[name]) == along_z


def test_the_presets_reach_their_goals():
    fast, paper = panel("dpmpp_2m", "2", "1", "along z"), panel("ddpm", "1000", "1", "paper's")
    assert mean("passes", paper) >= 40 * mean("passes", fast)
    assert mean("ssim", fast) >= mean("ssim", paper)
    assert mean("mse", fast) <= mean("mse", paper)
    assert mean("psnr", fast) >= mean("psnr", paper)
    assert mean("psnr", panel("dpmpp_2m", "2", "10", "along z")) >= mean("psnr", paper) + 1
    realistic = rows.read(DOCS / "presets.csv", {"preset": "realistic", "sampling": PRESETS["realistic"]})
    assert mean("stripe_index", realistic) <= 1.1 * mean("stripe_index_truth", realistic)
    assert mean("rho", rows.matching(table("uncertainty.csv"), {"fills": "accurate"})) > 0.3


@pytest.mark.parametrize(("papers", "number"), [("paper", 8), ("paper-in-100", 16)])
def test_fast_is_better_than_the_papers_in_every_case(papers, number):
    gained = {ours: gains(ours, papers) for ours in ("fast", "accurate")}
    assert len(gained["fast"]) == number
    assert all(ssim > 0 and psnr > 0 and mse < 0 for ssim, psnr, mse in gained["fast"])
    ssim, psnr, _ = gained["fast"].mean(axis=0)
    accurate = gained["accurate"].mean(axis=0)[1]
    assert accurate >= 1
    assert f"by {ssim:.3f} and {psnr:.2f} dB" in CHOICE
    assert f"`accurate` by {accurate:.2f} dB" in CHOICE
    if papers == "paper":
        assert f"{psnr:.2f} dB behind `fast`, in each of the eight" in README


def test_what_a_thousand_steps_gain_over_a_hundred_is_told():
    ssim, psnr, _ = gains("paper", "paper-in-100").mean(axis=0)
    assert f"have {psnr:.2f} dB more than the hundred and {-ssim:.3f} less of SSIM" in CHOICE


def gains(ours, theirs):
    """Return by how much one preset is above another in SSIM, PSNR and MSE, of the cases that have both."""
    by_case = rows.grouped([row for row in table("presets.csv") if row["preset"] in (ours, theirs)], "case").values()
    scores = [
        {row["preset"]: np.array([float(row[key]) for key in ("ssim", "psnr", "mse")]) for row in found}
        for found in by_case
    ]
    return np.array([found[ours] - found[theirs] for found in scores if len(found) == 2])


def test_the_card_tells_every_case_of_the_bundled_weights():
    told = {line.split("|")[1].strip(): line for line in CARD.splitlines() if line.startswith("| 90")}
    scored = {row["case"].removeprefix("BraTS-GLI-"): row for row in SCORES if row["model"] == BUNDLED_WEIGHTS.stem}
    assert [*told] == sorted(scored, key=lambda case: float(scored[case]["ssim"]))
    for case, row in scored.items():
        stripes = " / ".join(cells([row], {"stripe_index": ".2f", "stripe_index_truth": ".2f"}))
        assert f"| {' | '.join([*cells([row], FINE), stripes])} |" in told[case]


def test_what_fast_gains_is_told():
    by_preset = {name: found for (name,), found in rows.grouped(table("presets.csv"), "preset").items()}
    scores = {name: {key: mean(key, found) for key in ("ssim", "psnr")} for name, found in by_preset.items()}
    gains = {name: {key: scores["fast"][key] - told[key] for key in told} for name, told in scores.items()}
    filtered, one_step = gains["fast-all-directions"], gains["one-step"]
    assert f"`fast` has {filtered['ssim']:.4f} of SSIM and\n  {filtered['psnr']:.2f} dB more" in CHOICE
    assert f"({one_step['ssim']:.3f} more, p = 0.05; {one_step['psnr']:.2f} dB" in CHOICE
    assert f"(`accurate`: {-gains['accurate']['psnr']:.2f} dB" in CHOICE
    assert f"{scores['fast']['ssim']:.3f} and {scores['fast']['psnr']:.2f} dB with today's" in TRAINING


def test_two_measurements_of_fast_agree():
    ours = {row["case"]: row for row in rows.matching(table("presets.csv"), {"preset": "fast"})}
    for row in rows.matching(SCORES, {"model": BUNDLED_WEIGHTS.stem}):
        for key in ("ssim", "psnr", "mse"):
            assert float(row[key]) == pytest.approx(float(ours[row["case"]][key]), rel=1e-4)


def test_the_card_tells_what_changed_scans_cost():
    assert {row["sampling"] for row in table("validation/robustness.csv")} == {str(PRESETS["fast"])}
    by_scans = rows.grouped(table("validation/robustness.csv"), "scans")
    for (scans,), found in by_scans.items():
        means = cells(found, {"ssim": ".3f", "psnr": ".2f", "mse": ".4f"})
        same = by_scans["as they are",]
        lost = [mean(key, same) - mean(key, found) for key in ("ssim", "psnr", "mse")] * np.array([1, 1, -1]) + 0.0
        costs = [f"{cost:{f}} ± " for cost, f in zip(lost, ("+.3f", "+.2f", "+.4f"), strict=True)]
        line = next(line for line in CARD.splitlines() if line.startswith(f"| {scans} | {' | '.join(means)} |"))
        assert all(cost in line for cost in costs)


def test_the_card_names_the_weights():
    weights = checkpoint.load(BUNDLED_WEIGHTS)
    parameters = sum(p.numel() for p in weights.network.parameters())
    assert weights.sha256 in CARD
    assert weights.sha256 in (ROOT / "CHANGELOG.md").read_text()
    assert f"{parameters:,} parameters" in CARD
    assert f"{BUNDLED_WEIGHTS.stat().st_size / 1e6:.1f} MB" in CARD
    assert BUNDLED_WEIGHTS.stat().st_size < 30e6


def test_the_bundled_recipe_is_that_of_the_weights_last_run():
    trained = checkpoint.load(BUNDLED_WEIGHTS).notes["training"]
    recipe = read_recipe(ROOT / "workspace" / "parameters" / "small.yaml").model_dump(mode="json")
    told = {"max_steps", "validate_every", "compile", "ema"}  # in the card
    assert {key for key, value in trained.items() if recipe[key] != value} == told


def test_training_tells_every_recipe():
    assert not [row for row in table("recipes.csv") if f"{float(row['psnr']):.2f}" not in TRAINING]


@pytest.mark.parametrize("name", [path.stem for path in FILES if "def main" in path.read_text()])
def test_every_measurement_says_how_it_is_asked(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"tests.benchmarks.{name}").main()
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out
