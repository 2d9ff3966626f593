"""A CSV table that grows row by row, so that a long measurement can be stopped and go on."""

import csv

import numpy as np


def read(table, wanted):
    """Return the rows so far that hold all of these values; all values are text."""
    if not table.exists():
        return []
    with table.open() as file:
        return matching(csv.DictReader(file), wanted)


def matching(rows, wanted):
    """Return those rows that hold all of these values."""
    return [row for row in rows if all(row[key] == str(value) for key, value in wanted.items())]


def append(table, rows):
    """Add rows of the same columns at once, those that the table has; floats get six digits."""
    rows = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    begun = read(table, {})[:1]
    if not rows:
        return
    with table.open("a" if begun else "w", newline="") as file:
        writer = csv.DictWriter(file, list((begun or rows)[0]))
        if not begun:
            writer.writeheader()
        writer.writerows(rows)


def drop(table, unwanted):
    """Take out the rows that hold all of these values."""
    kept = [row for row in read(table, {}) if not matching([row], unwanted)]
    beside = table.with_suffix(".new")
    beside.unlink(missing_ok=True)  # a killed run's
    append(beside, kept)
    if kept:
        beside.replace(table)
    else:
        table.unlink(missing_ok=True)


def of(inpainter):
    """Return the columns that tell one network's rows from another's."""
    return {"weights": inpainter.weights.sha256[:8], "precision": inpainter.precision}


def grouped(rows, *keys):
    """Return rows by their values of these columns, in their order."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def means(found, *scores):
    """Return the means of some columns as the cells of a Markdown table."""
    return " | ".join(f"{np.mean([float(row[score]) for row in found]):.4g}" for score in scores) + " |"
