"""CSV tables that grow row by row, so that an interrupted measurement can be resumed."""

import csv


def read(table, wanted):
    """Return the rows that have all of these values, as text; none if the file does not exist."""
    if not table.exists():
        return []
    with table.open() as file:
        return matching(csv.DictReader(file), wanted)


def matching(rows, wanted):
    """Return the rows that have all of these values."""
    return [row for row in rows if all(row[key] == str(value) for key, value in wanted.items())]


def append(table, rows):
    """Append rows with the columns of the table; floats get six significant digits."""
    rows = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    existing = read(table, {})[:1]
    with table.open("a" if existing else "w", newline="") as file:
        writer = csv.DictWriter(file, list((existing or rows)[0]))
        if not existing:
            writer.writeheader()
        writer.writerows(rows)


def network_columns(inpainter):
    """Return the columns that identify the network and its precision."""
    return {"weights": inpainter.weights.sha256[:8], "precision": inpainter.plan.precision}


def grouped(rows, *keys):
    """Group rows by the values of these columns, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups
