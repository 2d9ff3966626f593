"""The tables of docs/evidence.md, from a folder of CSV files; ``TABLES`` has their names.

Means are over subjects; a subject's value is the mean of its masks. Two fills are compared on the masks that both have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from studies import rows
from studies.downstream.regions import REGIONS, area

Row = dict[str, str]
OURS, VOIDED, AGAIN, MASKED, LESION = "3D fast", "voided", "truth again", "cost-function masking", "lesion"
MIRRORED = "untouched, mirrored"  # of brain extraction
SUMMARY = (AGAIN, VOIDED, MASKED, "mean", "biharmonic", "mirror", "2D fast", OURS, "3D realistic")
COMPARED = (VOIDED, MASKED, "biharmonic", "2D fast", OURS, "3D realistic")
README = (VOIDED, MASKED, "biharmonic", "2D fast", OURS)
PLACES = ("inside", "within 10 mm", "elsewhere")
NAMES = {
    AGAIN: "*truth, another seed*",
    MASKED: "voided, cost-function masking",
    "2D fast": "2D `fast`",
    OURS: "**3D `fast`**",
    "3D realistic": "3D `realistic`",
    MIRRORED: "*untouched, mirrored*",
    LESION: "not filled",
}


def summary(folder: Path) -> list[str]:
    """Dice coefficients of Atropos in the mask, and displacement differences of SyN, in mm."""
    segmented, registered = atropos(folder), syn(folder)
    lines = heading(["method", "white, Dice", "grey, Dice", *(f"{place}, mm" for place in PLACES), "masks"])
    for fill in SUMMARY:
        its, classes = (rows.matching(read, {"fill": fill}) for read in (registered, segmented))
        cells = [tissue(classes, "white"), tissue(classes, "grey"), *(shown(its, f"{r}_mean") for r in REGIONS)]
        masks = dict.fromkeys(str(len({row["case"] for row in found})) for found in (classes, its) if found)
        lines.append(line(NAMES.get(fill, fill), [*cells, " / ".join(masks)]))
    return lines


def readme(folder: Path) -> list[str]:
    """The columns and rows of ``summary`` by which a reader of the README decides."""
    lines = heading(["method", "white matter, Dice", "error inside, mm", "within 10 mm, mm"])
    for fill in README:
        its, classes = (rows.matching(read, {"fill": fill}) for read in (syn(folder), atropos(folder)))
        lines.append(line(fill, [tissue(classes, "white"), shown(its, "inside_mean"), shown(its, "shell_mean")]))
    return lines


def excess(folder: Path) -> list[str]:
    """How much error is left beyond that of the truth with another seed, and the share of the voided scan's."""
    measures = {
        "Atropos, within 10 mm, 1 − Dice": (atropos(folder), "shell", -1),
        "SyN, elsewhere, mm": (syn(folder), "elsewhere_mean", 1),
        "SyN, within 10 mm, mm": (syn(folder), "shell_mean", 1),
    }
    lines = heading(["excess error", *(NAMES.get(name, name) for name in README), "3D `fast` / voided"])
    for measure, (read, column, sign) in measures.items():
        found = {}
        for fill in README:
            one, floor = common(read, fill, AGAIN)
            found[fill] = sign * (mean(one, column) - mean(floor, column)) if one else float("nan")
        cells = [f"{value:.3f}" if np.isfinite(value) else "–" for value in found.values()]
        lines.append(f"| {measure} | {' | '.join(cells)} | {found[OURS] / found[VOIDED]:.2f} |")
    return lines


def tests(folder: Path) -> list[str]:
    """Return p of 3D ``fast`` against the other fills, for Dice inside and the displacement by region."""
    columns = [(atropos(folder), "inside"), *((syn(folder), f"{region}_mean") for region in REGIONS)]
    lines = heading(["3D `fast` against", "Dice inside", *PLACES])
    for fill in COMPARED:
        cells = [probability(read, fill, column) for read, column in columns]
        if fill != OURS and set(cells) != {"–"}:
            lines.append(line(fill, cells))
    return lines


def checks(folder: Path) -> list[str]:
    """Dice coefficients inside by another tool, and at 1 mm beside those of the same masks at 1.5 mm."""
    hmrf = rows.read(folder / "segmentation.csv", {"tool": "HMRF"})
    fine = rows.read(folder / "finer_segmentation.csv", {"tool": "Atropos"})
    ours = {row["case"] for row in rows.matching(fine, {"fill": OURS})}
    lines = heading(
        ["method", "HMRF, white", "grey", "Atropos, white, 1.5 mm", "1 mm", "grey, 1.5 mm", "1 mm", "cases"]
    )
    for fill in COMPARED:
        cells = [tissue(rows.matching(hmrf, {"fill": fill}), name) for name in ("white", "grey")]
        its = [row for row in rows.matching(fine, {"fill": fill}) if row["case"] in ours]
        for name in ("white", "grey"):
            cells += [tissue(same(atropos(folder), its), name), tissue(its, name)]
        if set(cells) != {"–"}:
            lines.append(line(fill, [*cells, people(its)]))
    return lines


def finer(folder: Path) -> list[str]:
    """Displacement differences of SyN, beside those after ten more iterations at full resolution."""
    fine = syn(folder, "finer_registration")
    lines = heading(["mm", *(f"{place}{how}" for place in PLACES[:2] for how in ("", ", finer")), "cases"])
    for fill in (AGAIN, *COMPARED):
        if its := rows.matching(fine, {"fill": fill}):
            both = same(syn(folder), its), its
            cells = [shown(found, f"{region}_mean") for region in ("inside", "shell") for found in both]
            lines.append(line(fill, [*cells, people(its)]))
    return lines


def realism(folder: Path) -> list[str]:
    """Area under the ROC curve of every classifier of real and filled patches."""
    read = rows.read(folder / "realism.csv", {})
    classifiers = [*dict.fromkeys(row["classifier"] for row in read)]
    lines = heading(["AUC", *classifiers, "patches"])
    for (fill,), of in rows.grouped(read, "fill").items():
        found = [its for (_,), its in rows.grouped(of, "classifier").items()]
        lines.append(line(fill, [*(f"{telling(its):.2f}" for its in found), f"2 × {len(found[0])}"]))
    return lines


def telling(read: Sequence[Row]) -> float:
    """Return the area under the ROC curve of the scores of filled patches against those of the real ones."""
    score = np.array([float(row[kind]) for kind in ("real", "filled") for row in read])
    return area(score, np.arange(score.size) >= len(read))


def bias(folder: Path) -> list[str]:
    """Difference of N4's bias field from the truth's in per cent, and p of 3D ``fast`` against the fill."""
    read = rows.read(folder / "bias.csv", {})
    lines = heading(["N4, %", *PLACES, "p, within 10 mm", "subjects"])
    for (fill,), its in rows.grouped(read, "fill").items():
        p = "–" if fill == OURS else probability(read, fill, "shell_mean")
        lines.append(line(fill, [*(shown(its, f"{region}_mean") for region in REGIONS), p, people(its)]))
    return lines


def uncertainty(folder: Path) -> list[str]:
    """One line for each case, and their mean."""
    read = rows.read(folder / "uncertainty.csv", {})
    columns = {
        "wrong": "wrong class",
        "auc": "AUC, std",
        "auc_depth": "AUC, depth",
        "wrong_lowest_tenth": "wrong, lowest tenth",
        "wrong_highest_tenth": "wrong, highest tenth",
    }
    lines = heading(["case", *columns.values()])
    lines += [line(row["case"], [shown([row], column) for column in columns]) for row in read]
    return [*lines, line("mean", [shown(read, column) for column in columns])]


def extraction(folder: Path) -> list[str]:
    """Dice coefficients of brain masks with those of the untouched heads, one column for each lesion."""
    read = rows.read(folder / "extraction.csv", {})
    lines = heading(["brain mask, Dice", *dict.fromkeys(f"{float(row['lesion']):.0f} ml" for row in read), "mean"])
    for fill in (MIRRORED, *COMPARED):
        dice = [float(row["dice"]) for row in rows.matching(read, {"fill": fill})]
        if dice:
            lines.append(line(fill, [*(f"{value:.3f}" for value in dice), f"{np.mean(dice):.3f}"]))
    return lines


def real(folder: Path) -> list[str]:
    """Two tables: lesions of multiple sclerosis against the patient's white matter, and gliomas."""
    read = rows.read(folder / "real.csv", {})
    sclerosis = {"mean": "intensity", "overlap": "overlap", "white in mask": "share of white"}
    glioma = {"shell_mean": "within 10 mm", "asymmetry of white": "asymmetry"}
    return [*_lesions(read, sclerosis, "overlap"), "", *_lesions(read, glioma, "shell_mean")]


def _lesions(read: list[Row], measures: dict[str, str], needed: str) -> list[str]:
    """Return a table of the cases that have a measure: fills in rows, cases and measures in columns."""
    found = [row for row in read if row["measure"] == needed]
    cases = [*dict.fromkeys(row["case"] for row in found)]
    names = [name if number else f"{case}: {name}" for case in cases for number, name in enumerate(measures.values())]
    values = {(row["case"], row["fill"], row["measure"]): f"{float(row['value']):.2f}" for row in read}
    lines = heading(["method", *names])
    for fill in (LESION, *COMPARED):
        if any(row["fill"] == fill for row in found):
            lines.append(line(fill, [values.get((case, fill, m), "–") for case in cases for m in measures]))
    return lines


def atropos(folder: Path) -> list[Row]:
    """Return the rows of segmentation by ANTs Atropos."""
    return rows.read(folder / "segmentation.csv", {"tool": "Atropos"})


def syn(folder: Path, name: str = "registration") -> list[Row]:
    """Return the rows of the deformable stage of registration."""
    return rows.read(folder / f"{name}.csv", {"stage": "SyN"})


def common(read: Sequence[Row], fill: str, other: str) -> tuple[list[Row], list[Row]]:
    """Return the rows of two fills for the cases that have both."""
    one, two = (rows.matching(read, {"fill": name}) for name in (fill, other))
    both = {row["case"] for row in one} & {row["case"] for row in two}
    return [row for row in one if row["case"] in both], [row for row in two if row["case"] in both]


def same(read: Sequence[Row], its: Sequence[Row]) -> list[Row]:
    """Return the rows that have case and fill of one of these."""
    there = {(row["case"], row["fill"]) for row in its}
    return [row for row in read if (row["case"], row["fill"]) in there]


def by_subject(read: Sequence[Row], column: str) -> dict[str, float]:
    """Return the mean of a column for every subject."""
    found = {row["case"].split("-")[0]: float("nan") for row in read}
    for person in found:
        values = [float(row[column]) for row in read if row["case"].split("-")[0] == person]
        found[person] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    return dict(sorted(found.items()))


def mean(read: Sequence[Row], column: str) -> float:
    """Return the mean over subjects."""
    return float(np.nanmean([*by_subject(read, column).values()]))


def shown(read: Sequence[Row], column: str) -> str:
    """Return the mean over subjects as text, or a dash if nothing was measured."""
    return f"{mean(read, column):.2f}" if read else "–"


def tissue(read: Sequence[Row], name: str) -> str:
    """Return the mean Dice coefficient of a tissue inside the mask."""
    return shown(rows.matching(read, {"tissue": name}), "inside")


def people(read: Sequence[Row]) -> str:
    """Return the number of subjects."""
    return str(len({row["case"].split("-")[0] for row in read}))


def paired(read: Sequence[Row], fill: str, other: str, column: str) -> tuple[float, int]:
    """Return p of the two-sided Wilcoxon signed-rank test over subjects, and their number."""
    one, two = (by_subject(found, column) for found in common(read, fill, other))
    differences = np.array([one[person] - two[person] for person in one])
    different = differences[np.isfinite(differences)]
    return float(stats.wilcoxon(different).pvalue) if different.any() else 1.0, different.size


def probability(read: Sequence[Row], fill: str, column: str) -> str:
    """Return p of 3D ``fast`` against a fill as text, or a dash if it was not measured."""
    p, count = paired(read, OURS, fill, column)
    return f"{p:.3f}" if count else "–"


def heading(names: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def line(fill: str, cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return f"| {NAMES.get(fill, fill)} | {' | '.join(cells)} |"


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "evidence": summary,
    "evidence-readme": readme,
    "evidence-excess": excess,
    "evidence-tests": tests,
    "evidence-checks": checks,
    "evidence-finer": finer,
    "evidence-realism": realism,
    "evidence-bias": bias,
    "evidence-uncertainty": uncertainty,
    "evidence-extraction": extraction,
    "evidence-real": real,
}
