"""``run.json``: what a run was and what became of each case, so that it can be repeated and resumed."""

from __future__ import annotations

import json
import logging
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from brats_inpainting.data.cases import Case
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.files import atomic_write

log = logging.getLogger(__name__)

NAME = "run.json"
PACKAGES = ("brats-inpainting", "torch", "numpy", "nibabel", "scipy")
SHARE = 20  # the record grows with the run: writing it takes a twentieth of the time at most
ADDED = {  # settings that older records lack, with the values that they meant
    "sampling": {"resample": True, "order": "up"},
    "diffusion": {"context": "none", "consistency": False},
}
LAST_BITS = ("device", "batch_size", "most_voxels", "threads")  # facts that change no more than these
HEAD = 240**3  # voxels; no box of 1 mm is larger, so larger limits, which vary with the free memory, are alike


@dataclass
class Record:
    """A run of many cases.

    Attributes:
        folder: of ``run.json``; nothing is written without one.
        settings: what results depend on; a resumed run must have the same.
        facts: what else is known of the run.
        cases: id → what is known of its result.
        failed: id → reason.
    """

    folder: Path | None
    settings: dict[str, Any]
    facts: dict[str, Any]
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    _next: float = field(default=0.0, init=False)  # when the file may be written again

    def done(self, case_id: str, report: dict[str, Any]) -> None:
        """Note a finished case."""
        self.cases[case_id] = report
        if time.monotonic() > self._next:
            self.write()

    def fail(self, case_id: str, error: CaseError) -> None:
        """Note why a case failed."""
        self.failed[case_id] = str(error)

    def write(self) -> None:
        """Write ``run.json``; a full disk does not end the run."""
        if not self.folder:
            return
        started = time.monotonic()
        content = {
            "settings": self.settings,
            **self.facts,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "cases": self.cases,
            "failed": dict(self.failed),  # a copy: the reading thread may add to it
        }
        try:
            with atomic_write(self.folder / NAME) as unfinished:
                unfinished.write_text(json.dumps(content, indent=2) + "\n")
        except OSError as error:
            log.warning("%s cannot be written to %s (%s); filling continues", NAME, self.folder, error.strerror)
        ended = time.monotonic()
        self._next = ended + SHARE * (ended - started)

    def resume(self, existing: dict[Path, Case]) -> set[Path]:
        """Return the outputs that are finished: all existing ones, or those that an earlier ``run.json`` lists.

        Args:
            existing: outputs that exist, and their cases.

        Raises:
            ConfigError: when they were made with other settings.
        """
        path = self.folder / NAME if self.folder else None
        if not existing:
            return set()
        if not (path and path.exists()):
            log.warning(
                "no %s in --report-path: the settings of the %d kept files are unknown;"
                " with a --report-path from the start --resume compares them",
                *(NAME, len(existing)),
            )
            # without a hash, so that the report does not show them as this run's
            unknown = {"settings": "unknown, kept by --resume"}
            self.cases = {case.id: {"output": target.name, **unknown} for target, case in existing.items()}
            return set(existing)
        stored = _read(path)
        before = {"precision": "fp32"} | stored["settings"]
        for name, added in ADDED.items():
            if name in before:
                before[name] = added | before[name]
        names = dict.fromkeys([*self.settings, *stored["settings"]])
        if differing := [name for name in names if before.get(name) != self.settings.get(name)]:
            raise ConfigError(
                f"{path}: the outputs there were made with another {' and '.join(differing)}\n"
                "  Repeat those settings, or use --overwrite, or choose another output folder."
            )
        before, now = ({n: _limited(n, facts.get(n)) for n in LAST_BITS} for facts in (stored, self.facts))
        if differing := [name for name in LAST_BITS if name in stored and before[name] != now[name]]:
            log.warning("the files there were made with another %s: last bits may differ", " and ".join(differing))
        self.cases = stored["cases"]
        return {target for target, case in existing.items() if case.id in self.cases}


def _limited(name: str, value: Any) -> Any:
    """Return a fact; of the largest box, no more than a head."""
    return min(value or HEAD, HEAD) if name == "most_voxels" else value


def read(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``run.json``, empty where there is none that can be read."""
    try:
        return dict(json.loads((folder / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _read(path: Path) -> dict[str, Any]:
    """Return a record that must be one."""
    try:
        stored = dict(json.loads(path.read_text()))
        return stored | {name: dict(stored[name]) for name in ("settings", "cases")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: not a record of this software\n  Remove it, or use --overwrite.") from error
