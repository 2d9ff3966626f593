"""The number of available CPUs, and thread-safe muting of warnings."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_muting = threading.Lock()


@contextmanager
def muted() -> Iterator[None]:
    """Ignore warnings. Takes a lock, because Python's warning filters are shared by all threads."""
    with _muting, warnings.catch_warnings(action="ignore"):
        yield


def cpus() -> int:
    """Return the number of CPUs available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
