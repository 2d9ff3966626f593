"""Process settings for long CPU work: OpenMP's spin count and glibc's malloc.

``GOMP_SPINCOUNT=1000``: idle OpenMP threads that spin starve each other on a busy machine. A fill next to another
process takes 4.4 s instead of 45.1 s (two cores); on an idle machine it takes 2.49 s instead of 2.33 s.

``mallopt``: glibc returns every large block to the system when it is freed, and gets the next one zeroed, page by page.
Features of the paper's network take 100 MB a layer; if glibc keeps them, a pass of four slices is 1.47 times as fast as
the eager reference, otherwise 1.33 times. The price: freed memory stays with the process, and its peak is higher.

The container sets the same values as environment variables (Dockerfile), and ``settle`` sets them everywhere else.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

SPINCOUNT = "1000"
# name of the environment variable → parameter of mallopt (glibc's malloc.h), value
MALLOC = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 2**28),
}


def settle() -> None:
    """Apply the settings to this process, before torch is imported; those set in the environment are left alone."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINCOUNT)
    if not any(name in os.environ for name in (*MALLOC, "MALLOC_MMAP_THRESHOLD_")):
        keep_memory()


def keep_memory() -> bool:
    """Make glibc keep freed memory for the next request; return whether this C library supports it."""
    mallopt = _glibc("mallopt")
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in MALLOC.values())


def return_memory() -> None:
    """Return the memory that glibc keeps to the system: its pieces do not fit larger blocks than before."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """Return a function of glibc, or ``None`` with another C library: musl, macOS, Windows."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
