"""Fill the tables of README.md and docs/*.md from the measured values beside them.

A table lies between the lines ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is one of ``TABLES`` here and in
``studies.downstream.tables``, or ``csv:PATH`` for a CSV file as it is.

usage: python -m studies.figures [--check]
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

from studies import licences, tables
from studies.downstream import tables as evidence

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REGION = re.compile(r"^<!-- table (?P<name>.+?) -->\n(?P<rows>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^<!-- (table|end)\b", re.MULTILINE)


def of(path):
    """Return the rows of a CSV file below docs/."""
    with (DOCS / path).open() as file:
        return list(csv.DictReader(file))


def as_it_is(path):
    """Return a CSV file as a table."""
    header, *body = csv.reader((ROOT / path).read_text().splitlines())
    return tables.markdown(header, body)


TABLES = {
    "scores": lambda: tables.scores(of("validation/scores.csv")),
    "scores-readme": lambda: tables.challenge_scores(of("validation/scores.csv")),
    "robustness": lambda: tables.robustness(of("validation/robustness.csv")),
    "presets": lambda: tables.presets(of("surface.csv")),
    "discussion": lambda: tables.discussion(of("validation/discussion.csv")),
    "sequence": lambda: tables.sequence(of("validation/sequence.csv")),
    "recipes": lambda: tables.recipes(of("recipes.csv")),
    "gpu-training": lambda: tables.gpu_training(json.loads((DOCS / "validation" / "gpu.json").read_text())["rows"]),
    "licences": licences.table,
}


def table(name):
    """Return a table as Markdown lines; raise KeyError for an unknown name."""
    kind, _, path = name.partition(":")
    if kind == "csv":
        return as_it_is(path)
    if name in evidence.TABLES:
        return evidence.TABLES[name](DOCS / "evidence")
    if name not in TABLES:
        raise KeyError(f"no table is called {name}. Known: csv:PATH, {', '.join([*TABLES, *evidence.TABLES])}")
    return TABLES[name]()


def pages():
    """Return the documents that may have tables."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def names(text):
    """Return the names of the tables of a page; raise ValueError if a marker has no partner."""
    found = [match["name"] for match in REGION.finditer(text)]
    if len(MARKER.findall(text)) != 2 * len(found):
        raise ValueError("every <!-- table NAME --> needs its own <!-- end -->")
    return found


def filled(text):
    """Return the text of a page with its tables made again."""
    names(text)
    return REGION.sub(
        lambda match: "\n".join([f"<!-- table {match['name']} -->", *table(match["name"]), "<!-- end -->"]), text
    )


def outdated(page):
    """Return the names of the tables of a page that are not those of the measured values."""
    text = page.read_text()
    now = REGION.finditer(filled(text))
    return [was["name"] for was, new in zip(REGION.finditer(text), now, strict=True) if was["rows"] != new["rows"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; list the tables that are not current")
    check = parser.parse_args().check
    found = {page: old for page in pages() if (old := outdated(page))}
    for page, old in found.items():
        print(f"{page.relative_to(ROOT)}: {', '.join(old)}")
        if not check:
            page.write_text(filled(page.read_text()))
    return bool(found) and check


if __name__ == "__main__":
    sys.exit(main())
