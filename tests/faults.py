"""Mutation testing: insert listed faults into a copy of the code, one at a time; a test must fail with each.

usage: python -m tests.faults [WORD …]

faults.yaml lists each fault as a text of one file, its replacement, and the test that must fail. With words, only
faults whose name contains one of them are tried. Exits with 1 if a fault survived.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
NEEDED = ("project", "studies", "tests", "workspace", "pyproject.toml")  # files that the tests need
CAUGHT = 1  # pytest's exit status when tests failed; others but 0 mean that they could not run


class Fault(NamedTuple):
    """A text that occurs once in a file of the package, its faulty replacement, and the test that must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str

    def insert(self, package: Path) -> str:
        """Insert the fault into a copy of the package, and return the file's original text."""
        path = package / self.file
        original = path.read_text()
        if (count := original.count(self.old)) != 1:
            raise SystemExit(f"{self.name}: {self.old!r} occurs {count} times in {self.file}, not once")
        path.write_text(original.replace(self.old, self.new))
        return original


def faults() -> list[Fault]:
    """Read faults.yaml."""
    return [Fault(**row) for row in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())]


def caught(fault: Fault, tree: Path) -> bool:
    """Insert a fault into a copy of the tree, run its test, restore the file, and return whether the test failed."""
    package = tree / "project" / "brats_inpainting"
    original = fault.insert(package)
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{fault.test}"]
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    (package / fault.file).write_text(original)
    if done.returncode not in (0, CAUGHT):
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode == CAUGHT


def main(words: list[str]) -> int:
    """Try the faults, and print a line for each."""
    chosen = [fault for fault in faults() if not words or any(word in fault.name for word in words)]
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in NEEDED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        for fault in chosen:
            found = caught(fault, Path(folder))
            survived += not found
            print(f"{'caught  ' if found else 'SURVIVED'}  {fault.name}: {fault.test}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} faults caught")
    return int(survived > 0 or not chosen)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
