"""Tables of scores, as in the paper (tables 1 and 2): for the terminal, CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table
from scipy import stats

from brats_inpainting.evaluate import ScoreRow
from brats_inpainting.files import atomic_write


class Metric(NamedTuple):
    """Title and number format of a column."""

    title: str
    format: str

    def text(self, value: float) -> str:
        """Format a number; NaN is a dash."""
        return f"{value:{self.format}}" if math.isfinite(value) else "–" if math.isnan(value) else "∞"


METRICS = {
    "ssim": Metric("SSIM", ".4f"),
    "psnr": Metric("PSNR", ".2f"),
    "mse": Metric("MSE", ".5f"),
    "mae": Metric("MAE", ".4f"),
    "stripe_index": Metric("stripes", ".2f"),
    "stripe_index_truth": Metric("in truth", ".2f"),
    "boundary_contrast": Metric("boundary", ".2f"),
    "changed_inside": Metric("changed inside", ",.0f"),
    "changed_outside": Metric("outside", ",.0f"),
}
COMPARED = ("ssim", "psnr", "mse", "mae")
PUBLISHED = {  # mean and standard deviation of SSIM, PSNR and MSE in the paper
    "paper, table 1: cross-validation": {
        "ssim": (0.7884, 0.1187),
        "psnr": (18.7441, 1.6935),
        "mse": (0.0144, 0.0056),
    },
    "paper, table 2: challenge's validation": {
        "ssim": (0.7804, 0.1264),
        "psnr": (20.3525, 2.7963),
        "mse": (0.0113, 0.0075),
    },
}


# Not tabulate: it does not escape | in Markdown or ±, ∞ and − in LaTeX, has no captions, and would be a dependency.
@dataclass(frozen=True)
class Grid:
    """A table of text."""

    title: str
    header: tuple[str, ...]
    body: Sequence[tuple[str, ...]]
    note: str = ""

    def rich(self) -> Table:
        """Return the table for the terminal."""
        table = Table(*self.header, box=None, title=self.title, title_justify="left", caption=self.note or None)
        table.caption_justify = "left"
        table.columns[0].no_wrap = True
        for line in self.body:
            table.add_row(*line)
        return table

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [[cell.replace("|", r"\|") for cell in line] for line in (self.header, *self.body)]
        lines.insert(1, ["---"] * len(self.header))
        return "\n".join(
            [f"**{self.title}**\n", *(f"| {' | '.join(line)} |" for line in lines), f"\n{self.note}"]
        ).strip()

    def latex(self) -> str:
        """Return the table as LaTeX with booktabs."""
        head, *body = (" & ".join(map(_escaped, line)) + r" \\" for line in (self.header, *self.body))
        return "\n".join(
            [
                rf"\begin{{table}}\caption{{{_escaped(f'{self.title}. {self.note}'.strip())}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}\toprule",
                *(head, r"\midrule", *body, r"\bottomrule"),
                r"\end{tabular}\end{table}",
            ]
        )


def known_metrics(rows: Sequence[ScoreRow]) -> dict[str, Metric]:
    """Return the metrics that are finite in at least one row."""
    return {name: m for name, m in METRICS.items() if any(np.isfinite(getattr(row, name)) for row in rows)}


def grids(rows: Sequence[ScoreRow], *, pooled: bool = False, published: bool = False) -> list[Grid]:
    """Return the tables of all scores.

    Args:
        rows: scores, NaN if unknown.
        pooled: add a summary over the rows of all models, as the paper does for its folds.
        published: add the paper's scores, marked as being on other data.

    Returns:
        All cases; for two or more cases also a summary by model and, for two or more models, paired differences.
    """
    shown = known_metrics(rows)
    models = list(dict.fromkeys(row.model for row in rows))
    several = len(models) > 1
    header = (*(("case", "model") if several else ("case",)), *(metric.title for metric in shown.values()))
    body = [
        (*((row.case, row.model) if several else (row.case,)), *(m.text(getattr(row, n)) for n, m in shown.items()))
        for row in rows
    ]
    made = [Grid("Cases", header, body)] if rows else []
    many = len({row.case for row in rows}) > 1  # the summary of a single case would repeat it
    if many or (rows and published):
        made.append(_summary(rows, models, shown, pooled=pooled, published=published))
    if many and several and not pooled:
        made.append(_paired(rows, models))
    return made


def _summary(
    rows: Sequence[ScoreRow], models: Sequence[str], shown: dict[str, Metric], *, pooled: bool, published: bool
) -> Grid:
    groups = {model: [row for row in rows if row.model == model] for model in models}
    if pooled:
        groups["pooled"] = list(rows)
    columns = {name: metric for name, metric in shown.items() if name != "changed_inside"}
    body: list[tuple[str, ...]] = []
    for model, group in groups.items():
        known = {name: np.array([getattr(row, name) for row in group], float) for name in columns}
        known = {name: values[~np.isnan(values)] for name, values in known.items()}
        means = (_mean_and_std(known[name], metric) for name, metric in columns.items())
        medians = (metric.text(np.median(known[name])) if known[name].size else "–" for name, metric in columns.items())
        body += [(model, str(len(group)), *means), (f"{model}, median", "", *medians)]
    if published:
        for name, pairs in PUBLISHED.items():
            texts = (_plus_minus(*pairs[n], metric) if n in pairs else "–" for n, metric in columns.items())
            body.append((name, "", *texts))
    note = "The paper's scores are on other data and cannot be compared case by case." if published else ""
    header = ("model", "cases", *(metric.title for metric in columns.values()))
    return Grid("Mean ± standard deviation; median", header, body, note)


def _mean_and_std(values: np.ndarray, metric: Metric) -> str:
    """Format mean and standard deviation; an infinite PSNR (perfect fill) has neither."""
    if not np.isfinite(values).all() or not values.size:
        return "∞" if values.size else "–"
    return _plus_minus(values.mean(), values.std(ddof=1), metric) if len(values) > 1 else metric.text(values[0])


def _plus_minus(mean: float, std: float, metric: Metric) -> str:
    return f"{metric.text(mean)} ± {metric.text(std)}"


def _paired(rows: Sequence[ScoreRow], models: Sequence[str]) -> Grid:
    """Compare every model with the first one, on the cases filled by both."""
    first, *others = ({row.case: row for row in rows if row.model == model} for model in models)
    body = []
    for model, theirs in zip(models[1:], others, strict=True):
        common = [case for case in first if case in theirs]
        for name in COMPARED:
            difference = np.array([getattr(theirs[c], name) - getattr(first[c], name) for c in common])
            mean = f"{difference.mean():+{METRICS[name].format}}" if np.isfinite(difference).all() and common else "–"
            body.append((model, METRICS[name].title, str(len(common)), mean, _p(difference)))
    note = "Positive: larger than that of the first model. Two-sided Wilcoxon signed-rank test, not corrected."
    return Grid(f"Paired differences from {models[0]}", ("model", "score", "cases", "mean difference", "p"), body, note)


def _p(difference: np.ndarray) -> str:
    """Return the p-value; it cannot be below 0.05 for five cases or fewer."""
    if len(difference) < 2 or not np.isfinite(difference).all() or not difference.any():
        return "–"
    return f"{stats.wilcoxon(difference).pvalue:.2g}"


def write(rows: Sequence[ScoreRow], made: Sequence[Grid], folder: Path) -> None:
    """Write scores.csv (every score of every case), scores.json, scores.md and scores.tex."""
    cases = [{k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in asdict(row).items()} for row in rows]
    texts = {
        "json": json.dumps({"cases": cases, "tables": [asdict(grid) for grid in made]}, indent=1, allow_nan=False),
        "md": "\n\n".join(grid.markdown() for grid in made),
        "tex": "\n\n".join(grid.latex() for grid in made),
    }
    for kind, text in texts.items():
        with atomic_write(folder / f"scores.{kind}") as unfinished:
            unfinished.write_text(text + "\n")
    with atomic_write(folder / "scores.csv") as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(ScoreRow)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _escaped(text: str) -> str:
    """Escape text for LaTeX."""
    special = {letter: rf"\{letter}" for letter in "&%_#${}"} | {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"}
    special |= {"±": r"$\pm$", "–": "--", "−": "$-$", "∞": r"$\infty$"}
    return "".join(special.get(letter, letter) for letter in text)
