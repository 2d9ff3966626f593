"""Put deliberate faults into a copy of the code, one at a time; some test must fail with each of them.

usage: python -m tests.faults [WORD …]

The faults are listed in faults.yaml: a text of one file, what takes its place, and the test that must fail. With words,
only faults whose name holds one of them are tried. Exits with 1 if a fault survived.
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
NEEDED = ("project", "studies", "tests", "workspace", "pyproject.toml")  # of the tree, by the tests
CAUGHT = 1  # pytest's exit status when tests ran and some failed; others mean that they could not be run


class Fault(NamedTuple):
    """A text that occurs once in a file of the package, a wrong one, and the test that must tell them apart."""

    name: str
    file: str
    old: str
    new: str
    test: str

    def put(self, package: Path) -> str:
        """Put the fault into a copy of the package, and return the file's sound text."""
        path = package / self.file
        sound = path.read_text()
        if sound.count(self.old) != 1:
            raise SystemExit(f"{self.name}: {self.old!r} is {sound.count(self.old)} times in {self.file}, not once")
        path.write_text(sound.replace(self.old, self.new))
        return sound


def faults() -> list[Fault]:
    """Read the table."""
    return [Fault(**row) for row in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())]


def caught(fault: Fault, tree: Path) -> bool:
    """Put a fault into a copy of the tree, run its test, and take the fault out again."""
    package = tree / "project" / "brats_inpainting"
    sound = fault.put(package)
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{fault.test}"]
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    (package / fault.file).write_text(sound)
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
