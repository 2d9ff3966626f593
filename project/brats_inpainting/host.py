"""CPUs of this process, and warnings muted in one thread at a time."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_muting = threading.Lock()


@contextmanager
def muted() -> Iterator[None]:
    """Ignore warnings, in one thread at a time: Python has one list of what is ignored for all of them."""
    with _muting, warnings.catch_warnings(action="ignore"):
        yield


def cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
