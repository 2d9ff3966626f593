"""The tables of docs/evidence.md, from the CSV files. Means are over subjects; each is the mean of its masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from studies import rows
from studies.downstream import fills, regions
from studies.downstream.realism import auc

Row = dict[str, str]
PARTS = (
    "segmentation",
    "finer_segmentation",
    "registration",
    "finer_registration",
    "bias",
    "real",
    "uncertainty",
    "realism",
)
OURS, VOIDED, AGAIN, MASKED = "3D fast", "voided", "truth again", "cost-function masking"
NAMES = {
    AGAIN: "*truth, another seed*",
    VOIDED: "voided",
    MASKED: "voided, cost-function masking",
    "2D fast": "2D `fast`",
    "3D fast": "**3D `fast`**",
    "3D realistic": "3D `realistic`",
    "3D fast (volume-1)": "3D `fast`, `volume-1`",
    "3D realistic (volume-1)": "3D `realistic`, `volume-1`",
}


def page(folder: Path, names: Sequence[str] = PARTS) -> str:
    """Return the tables of some CSV files as Markdown, each under its name, after a summary."""
    found = {name: rows.read(folder / f"{name}.csv", {}) for name in names}
    both = found["segmentation"], found["registration"]
    parts = [[f"\n{name}\n", *globals()[name.removeprefix("finer_")](read)] for name, read in found.items() if read]
    return "\n".join(
        [*summary(*both), "", *goals(*both), "", *tested(*both), *(text for part in parts for text in part)]
    )


def summary(segmented: list[Row], registered: list[Row]) -> list[str]:
    """Dice coefficients of Atropos and displacement differences of SyN, means over subjects."""
    measured = {row["fill"] for row in registered}
    names = [name for name in (AGAIN, VOIDED, MASKED, *fills.FILLS, *fills.EARLIER) if name in measured]
    lines = heading(["lesion", "white matter", "grey matter", "inside", "within 10 mm", "elsewhere", "subjects"])
    for name in names:
        its = rows.matching(registered, {"stage": "SyN", "fill": name})
        classes = rows.matching(segmented, {"tool": "Atropos", "fill": name})
        tissues = [rows.matching(classes, {"tissue": tissue}) for tissue in ("white", "grey")]
        cells = [f"{mean(found, 'inside'):.2f}" if found else "–" for found in tissues]
        cells += [f"{mean(its, f'{region}_mean'):.2f}" for region in regions.REGIONS]
        counts = dict.fromkeys([people(classes), people(its)] if classes else [people(its)])
        lines.append(line(name, [*cells, " / ".join(counts)]))
    return lines


def goals(segmented: list[Row], registered: list[Row]) -> list[str]:
    """How much error is left beyond that of the truth with another seed, and the share of the voided scan's."""
    names = (VOIDED, MASKED, "biharmonic", "2D fast", OURS, *fills.EARLIER)
    measures = {
        "Atropos, shell, 1 − Dice": (rows.matching(segmented, {"tool": "Atropos"}), "shell", -1),
        "SyN, elsewhere, mm": (rows.matching(registered, {"stage": "SyN"}), "elsewhere_mean", 1),
        "SyN, shell, mm": (rows.matching(registered, {"stage": "SyN"}), "shell_mean", 1),
    }
    lines = heading(["excess error", *(NAMES.get(name, name) for name in names), "3D `fast` / voided"])
    for measure, (read, column, sign) in measures.items():
        by_fill = {fill: sign * mean(found, column) for (fill,), found in rows.grouped(read, "fill").items()}
        excess = {name: by_fill[name] - by_fill[AGAIN] for name in names if name in by_fill}
        cells = [f"{excess[name]:.3f}" if name in excess else "–" for name in names]
        lines.append(f"| {measure} | {' | '.join(cells)} | {excess[OURS] / excess[VOIDED]:.2f} |")
    return lines


def by_subject(read: Sequence[Row], column: str) -> dict[str, float]:
    """Return the mean of a column for every subject."""
    persons: dict[str, list[float]] = {}
    for row in read:
        persons.setdefault(row["case"].split("-")[0], []).append(float(row[column]))
    return {person: float(np.nanmean(values)) for person, values in sorted(persons.items())}


def mean(read: Sequence[Row], column: str) -> float:
    """Return the mean over subjects."""
    return float(np.nanmean([*by_subject(read, column).values()]))


def people(read: Sequence[Row]) -> str:
    """Return the number of subjects."""
    return str(len({row["case"].split("-")[0] for row in read}))


def paired(read: Sequence[Row], other: Sequence[Row], column: str) -> tuple[float, int]:
    """Return p of the two-sided Wilcoxon signed-rank test over subjects, and their number."""
    one, two = by_subject(read, column), by_subject(other, column)
    both = [(one[person], two[person]) for person in one if person in two]
    different = np.array([a - b for a, b in both if np.isfinite(a - b)])
    return float(stats.wilcoxon(different).pvalue) if different.any() else 1.0, different.size


def tested(segmented: list[Row], registered: list[Row]) -> list[str]:
    """Return p of 3D ``fast`` against the other fills that have all its subjects, for the columns of ``summary``."""
    classes, places = (rows.matching(segmented, {"tool": "Atropos"}), rows.matching(registered, {"stage": "SyN"}))
    columns = [(classes, "inside"), *((places, f"{region}_mean") for region in regions.REGIONS)]
    lines = heading(["3D `fast` against", "Dice inside", "inside", "within 10 mm", "elsewhere"])
    for name in (VOIDED, MASKED, *fills.FILLS, *fills.EARLIER):
        cells = []
        for read, column in columns:
            ours, its = (rows.matching(read, {"fill": fill}) for fill in (OURS, name))
            p, count = paired(ours, its, column)
            cells.append(f"{p:.3f}" if count and people(its) == people(ours) else "–")
        if name != OURS and set(cells[1:]) != {"–"}:
            lines.append(line(name, cells))
    return lines


def segmentation(read: list[Row]) -> list[str]:
    """Dice by tool: three tissues inside, their mean in the shell and elsewhere, and the volume's error."""
    lines = []
    for (tool,), of in rows.grouped(read, "tool").items():
        lines += [
            *heading([tool, *(f"{t}, inside" for t in regions.TISSUES), "shell", "elsewhere", "volume, ml", "subjects"])
        ]
        for (fill,), found in rows.grouped(of, "fill").items():
            inside = [mean(rows.matching(found, {"tissue": tissue}), "inside") for tissue in regions.TISSUES]
            sized = [{**row, "ml": str(abs(float(row["ml"])))} for row in found]
            cells = [*inside, mean(found, "shell"), mean(found, "elsewhere")]
            lines.append(line(fill, [*(f"{v:.3f}" for v in cells), f"{mean(sized, 'ml'):.1f}", people(found)]))
        lines += ["", *compared(of, ("inside", "shell", "elsewhere")), ""]
    return lines


def registration(read: list[Row]) -> list[str]:
    """Difference of the displacement in mm: mean and 95th percentile by region."""
    columns = [f"{region}_{kind}" for region in regions.REGIONS for kind in ("mean", "p95")]
    lines = []
    for (stage,), of in rows.grouped(read, "stage").items():
        lines += heading([stage, *(column.replace("_", ", ") for column in columns), "subjects"])
        for (fill,), found in rows.grouped(of, "fill").items():
            lines.append(line(fill, [*(f"{mean(found, column):.2f}" for column in columns), people(found)]))
        lines += ["", *compared(of, columns[::2]), ""]
    return lines


def bias(read: list[Row]) -> list[str]:
    """Difference of the bias field in per cent."""
    columns = [f"{region}_mean" for region in regions.REGIONS]
    lines = heading(["N4", *regions.REGIONS, "subjects"])
    for (fill,), found in rows.grouped(read, "fill").items():
        lines.append(line(fill, [*(f"{mean(found, column):.2f}" for column in columns), people(found)]))
    return [*lines, "", *compared(read, columns)]


def compared(read: list[Row], columns: Sequence[str]) -> list[str]:
    """Compare every fill with 3D ``fast``, in each column."""
    by_fill = rows.grouped(read, "fill")
    lines = []
    for (fill,), found in by_fill.items():
        if fill != OURS and (OURS,) in by_fill:
            tests = {column: paired(by_fill[OURS,], found, column) for column in columns}
            lines.append(
                f"{OURS} against {fill}: " + ", ".join(f"{c} p = {p:.3f} (n = {n})" for c, (p, n) in tests.items())
            )
    return lines


def real(read: list[Row]) -> list[str]:
    """One table for each lesion: fills in rows, measures in columns."""
    lines = []
    for (case,), of in rows.grouped(read, "case").items():
        found = [row for row in of if np.isfinite(float(row["value"]))]
        measures = [*dict.fromkeys(row["measure"] for row in found)]
        lines += heading([case, *measures])
        for (fill,), its in rows.grouped(found, "fill").items():
            values = {row["measure"]: float(row["value"]) for row in its}
            lines.append(line(fill, [f"{values[m]:.2f}" if m in values else "–" for m in measures]))
        lines.append("")
    return lines


def uncertainty(read: list[Row]) -> list[str]:
    """One line for each case, and their mean."""
    columns = ("wrong", "auc", "auc_depth", "wrong_lowest_tenth", "wrong_highest_tenth")
    lines = heading(["case", *columns])
    lines += [line(row["case"], [f"{float(row[column]):.2f}" for column in columns]) for row in read]
    return [*lines, line("mean", [f"{mean(read, column):.2f}" for column in columns])]


def realism(read: list[Row]) -> list[str]:
    """Area under the ROC curve of two classifiers for every fill."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)),
        "random forest": RandomForestClassifier(100, min_samples_leaf=2, random_state=0),
    }
    by_fill = rows.grouped(read, "fill")
    truth = by_fill.pop((fills.TRUTH,))
    lines = heading(["AUC", *models, "patches"])
    for (fill,), found in by_fill.items():
        there = {(row["case"], row["patch"]) for row in found}
        same = [row for row in truth if (row["case"], row["patch"]) in there]
        cells = [f"{auc(same, found, model):.2f}" for model in models.values()]
        lines.append(line(fill, [*cells, f"2 × {len(found)}"]))
    return lines


def heading(names: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def line(fill: str, cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return f"| {NAMES.get(fill, fill)} | {' | '.join(cells)} |"
