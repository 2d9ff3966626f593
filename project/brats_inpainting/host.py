"""How a process shares its machine, and its threads what there is once: waiting, memory kept for reuse, warnings."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def settle() -> None:
    """Arrange this process for long work on the CPU; to be called before torch is imported.

    Threads that wait spinning starve each other on a busy machine: with 1000 spins a fill there is 10 times faster, and
    on an idle machine 7 % slower. And glibc returns every large block to the system at once and gets the next one page
    by page, zeroed: a pass of the paper's network, whose features take 100 MB a layer, is a seventh faster if it keeps
    them (docs/benchmarks.md). What is set in the environment already is left alone.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not any(f"MALLOC_{name}_" in os.environ for name in ("MMAP_MAX", "MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")):
        keep_memory()


def keep_memory() -> bool:
    """Tell glibc to keep freed memory for the next request; return whether this C library can be told."""
    mallopt = _of_glibc("mallopt")
    limits = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in limits.items())


def return_memory() -> None:
    """Give the memory that glibc keeps back to the system: larger blocks than before do not fit into its pieces."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of glibc's, ``None`` where another C library is in its place: musl, macOS, Windows."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None


_muting = threading.Lock()


@contextmanager
def muted() -> Iterator[None]:
    """Ignore warnings, in one thread at a time: Python has one list of what is ignored for all of them."""
    with _muting, warnings.catch_warnings(action="ignore"):
        yield


def cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(
    function: Callable[[Item], Made],
    given: Iterable[Item],
    threads: int = 1,
    *,
    start: Callable[[], None] | None = None,
    stop: Callable[[], None] = lambda: None,
) -> Generator[Future[Made]]:
    """Yield what a function makes of each item, in their order; threads are at work on the next ones meanwhile.

    Each thread calls ``start`` first. At the end, also when it comes early, ``stop`` is called, nothing new is begun,
    and what is at work is waited for.
    """
    with ThreadPoolExecutor(threads, initializer=start) as pool:
        coming: deque[Future[Made]] = deque()
        try:
            for item in given:
                coming.append(pool.submit(function, item))
                if len(coming) > threads:
                    yield coming.popleft()
            while coming:
                yield coming.popleft()
        finally:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
