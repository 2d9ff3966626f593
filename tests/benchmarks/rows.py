"""A CSV table that grows row by row, so that a long measurement can be stopped and go on."""

import csv


def read(table):
    """Return the rows so far, all values as text."""
    if not table.exists():
        return []
    with table.open() as file:
        return list(csv.DictReader(file))


def has(table, wanted):
    """Tell whether a row holds all of these values."""
    return any(all(row[key] == str(value) for key, value in wanted.items()) for row in read(table))


def append(table, rows):
    """Add rows of the same columns at once; floats get five decimals."""
    rows = [{k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    begun = table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if not begun:
            writer.writeheader()
        writer.writerows(rows)
