"""What the documents say is what the measured values, the bundled files and the code say."""

import statistics
import sys
from pathlib import Path

import pytest

from brats_inpainting.config import BUNDLED, BUNDLED_WEIGHTS, PRESETS, TrainConfig
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.parameters import read_recipe
from studies import figures, rows, tables

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
CARD, SLICES_CARD, CHOICE = (
    (DOCS / f"{name}.md").read_text() for name in ("model_card", "model_card_small-2", "presets")
)
SCORES = figures.of("validation/scores.csv")
PAGES = figures.pages()
SOURCES = {"90101": "ds000011", "90203": "coreg_qa"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_table_of_the_page_is_current(page):
    assert not figures.outdated(page), "run make figures"


def test_every_table_that_can_be_made_is_shown():
    shown = [name for page in PAGES for name in figures.names(page.read_text())]
    assert {*figures.TABLES} <= {*shown}


def test_an_unknown_table_and_a_marker_without_end_are_errors():
    with pytest.raises(KeyError, match="no table is called scors"):
        figures.filled("<!-- table scors -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="needs its own <!-- end -->"):
        figures.filled("<!-- table scores -->\n\n<!-- table presets -->\n<!-- end -->\n")


def test_a_value_typed_into_a_table_is_found_and_replaced(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    now = figures.filled("<!-- table scores-readme -->\n<!-- end -->\n\n0.697\n")
    page.write_text(now.replace("0.697 ±", "0.797 ±"))
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "pages", lambda: [page])
    monkeypatch.setattr(sys, "argv", ["figures", "--check"])
    assert figures.main()
    assert "page.md: scores-readme" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["figures"])
    assert not figures.main()
    assert page.read_text() == now


def test_a_csv_file_is_shown_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "times.csv").write_text('what,seconds\n"a | b",1.20\n')
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert figures.table("csv:times.csv") == ["| what | seconds |", "|---|---|", r"| a \| b | 1.20 |"]


def test_every_model_is_scored_on_the_same_cases():
    cases = {model: sorted(row["case"] for row in of) for (model,), of in rows.grouped(SCORES, "model").items()}
    assert cases.keys() == tables.MODELS.keys()
    assert all(found == cases["volume-2"] for found in cases.values())
    assert len(cases["volume-2"]) == tables.CASES


def test_the_default_reaches_what_it_was_bundled_for():
    found = rows.matching(SCORES, {"model": BUNDLED_WEIGHTS.stem})
    ssim, psnr, mse = (statistics.mean(float(row[key]) for row in found) for key in ("ssim", "psnr", "mse"))
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


def test_every_setting_is_measured_on_all_cases_or_on_three():
    found = rows.matching(figures.of("surface.csv"), {"finish": "none"})
    for setting, of in rows.grouped(found, "sampler", "spacing", "steps", "samples", "flip").items():
        assert len({row["case"] for row in of}) == len(of) in (3, tables.CASES), setting


def test_the_card_tells_how_the_scores_vary_over_cases_and_sources():
    scored = {row["case"].split("-", 2)[2]: row for row in SCORES if row["model"] == BUNDLED_WEIGHTS.stem}
    ordered = sorted(scored, key=lambda case: float(scored[case]["ssim"]))
    assert (ordered[0], ordered[-1]) == ("90101-001", "90052-001")  # 142,602 and 6,821 voxels scored
    best, worst = (f"{float(scored[case]['ssim']):.3f}" for case in (ordered[-1], ordered[0]))
    card = " ".join(CARD.split())
    assert f"SSIM is between {best} (7 ml) and {worst} (143 ml)" in card
    by_source = {}
    for case, row in scored.items():
        by_source.setdefault(SOURCES.get(case[:5], "ds002748"), []).append(row)
    one, *others = (f"{tables.mean(by_source[source], 'ssim'):.3f}" for source in ("ds002748", "ds000011", "coreg_qa"))
    assert f"SSIM is {one} for that site, {' and '.join(others)} for two others" in card


def test_changed_scans_were_filled_as_the_default_fills():
    by_weights = rows.grouped(figures.of("validation/robustness.csv"), "weights")
    dims = {"volume-2": 3, "small-2": 2}
    sampled = {checkpoint.sha256(path)[:8]: str(PRESETS["fast"][dims[name]]) for name, path in BUNDLED.items()}
    assert {key: {row["sampling"] for row in found} for (key,), found in by_weights.items()} == {
        key: {sampling} for key, sampling in sampled.items()
    }


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
    told = {"max_steps", "validate_every", "compile", "ema"}  # in the card
    assert {key for key in notes if recipe[key] != trained[key]} == told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_read_in_a_few_minutes(page):
    words = len(figures.REGION.sub("", page.read_text()).split())
    assert words <= 800
    assert page.stem != "README" or len(page.read_text().splitlines()) <= 120


def test_variants_with_different_cases_are_not_compared():
    read = figures.of("validation/discussion.csv")
    assert len(tables.discussion(read)) == len({row["setting"] for row in read}) + 3
    with pytest.raises(ValueError, match="different cases"):
        tables.discussion(read[1:])
