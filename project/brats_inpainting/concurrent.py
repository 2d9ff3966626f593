"""Prefetching, and batches that run at once on a CPU; torch is imported by who runs batches only."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
OnPass = Callable[[int], None]
MOST_CONCURRENT = 16  # batches: each takes memory


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int = 1,
    *,
    start: Callable[[], None] | None = None,
    stop: Callable[[], None] = lambda: None,
) -> Generator[Future[Result]]:
    """Yield the function's result for each item, in order, while threads compute the next ones.

    Each thread calls ``start`` first. When the generator ends or is closed, ``stop`` is called, no new item is begun,
    and running ones are waited for.
    """
    with ThreadPoolExecutor(threads, initializer=start) as pool:
        coming: deque[Future[Result]] = deque()
        try:
            for item in items:
                coming.append(pool.submit(function, item))
                if len(coming) > threads:
                    yield coming.popleft()
            while coming:
                yield coming.popleft()
        finally:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)


def run(
    sample: Callable[[Item, OnPass], Result],
    batches: Iterable[Item],
    on_pass: OnPass,
    at_once: int,
) -> Iterator[tuple[Item, Result, float]]:
    """Sample batches, several at once, and yield them in order with the seconds that each was waited for.

    Args:
        sample: samples a batch; calls its second argument before each network pass with the number of windows.
        batches: what is to be sampled.
        on_pass: called by one thread at a time.
        at_once: concurrent batches, at most as many as torch has threads for.
    """
    import torch

    reporting, stopped = threading.Lock(), threading.Event()

    def report(count: int) -> None:
        if stopped.is_set():
            raise CancelledError
        with reporting:
            on_pass(count)

    def pair(batch: Item) -> tuple[Item, Result]:
        return batch, sample(batch, report)

    def start() -> None:
        torch.get_num_threads()  # initialises torch's number of threads, which would overwrite ours later
        torch.set_num_threads(threads_each)

    threads = torch.get_num_threads()
    threads_each = threads_per_batch(threads)
    at_once = min(at_once, threads // threads_each)
    calls = (
        (partial(pair, batch) for batch in batches)
        if at_once == 1
        else (future.result for future in prefetch(pair, batches, at_once, start=start, stop=stopped.set))
    )
    try:
        with closing(calls):
            for call in calls:
                started = time.perf_counter()
                yield *call(), time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)  # of threads to come; this thread's number never changed


def threads_per_batch(threads: int) -> int:
    """Return the threads of each concurrent batch; independent of free memory, so results stay bit-identical."""
    return -(-threads // MOST_CONCURRENT)
