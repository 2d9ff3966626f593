"""Tools for healthy brains on filled scans: one table per part.

usage: python -m studies.downstream --part PART --data-path VAL --work-path FOLDER [--evidence-path docs/evidence]

The data are validation cases; for ``--part real`` scans with lesions, for ``extraction`` whole heads. Fills are made
once, in the work folder. Rows in the table are skipped, so a run can be interrupted; the first mask of every subject
comes first. ``--part tables`` prints the tables of docs/evidence.md, ``--part picture`` draws its picture.
"""

import argparse
from importlib import import_module
from pathlib import Path

from brats_inpainting import runtime
from studies import rows

MEASURED = (
    "segmentation",
    "registration",
    "finer_segmentation",
    "finer_registration",
    "bias",
    "real",
    "uncertainty",
    "realism",
    "extraction",
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=(*MEASURED, "tables", "picture"), required=True)
    parser.add_argument("--data-path", type=Path)
    parser.add_argument("--work-path", type=Path)
    parser.add_argument("--evidence-path", type=Path, default=Path("docs/evidence"))
    parser.add_argument("--cases", type=int, default=16, help="how many, the first mask of every subject first")
    parser.add_argument("--fills", nargs="*", help="only these; all by default")
    args = parser.parse_args()
    runtime.settle()
    part = import_module(f"studies.downstream.{args.part}")
    if args.part == "tables":
        for name, table in part.TABLES.items():
            print("\n".join([name, "", *table(args.evidence_path), ""]))
        return
    from studies.downstream import fills

    find = getattr(part, "subjects", fills.subjects)
    subjects = find(args.data_path, args.work_path)[: args.cases]
    if args.part == "picture":
        part.draw(subjects, args.evidence_path.with_suffix(".png"))
        return
    table = args.evidence_path / f"{args.part}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    for wanted, measured in work(part, subjects, args.fills or part.NAMES):
        if not rows.read(table, wanted):
            rows.append(table, list(measured()))
            print(args.part, *wanted.values(), flush=True)


def work(part, subjects, names):
    """Yield what identifies the rows in the table, and the function that measures them."""
    for name in names if hasattr(part, "measured_together") else ():
        yield {"fill": name}, lambda name=name: part.measured_together(subjects, name)
    for subject in subjects if hasattr(part, "measured") else ():
        for name in names:
            yield {"case": subject.id, "fill": name}, lambda subject=subject, name=name: part.measured(subject, name)


if __name__ == "__main__":
    main()
