"""Gives the memory of a version that went back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
import time

_LIBC = ctypes.CDLL(None)
_M_ARENA_MAX = -8  # of glibc's malloc.h


def limit_arenas() -> None:
    """Keeps glibc's malloc to one arena per core; to be called before other threads begin.

    It gives threads eight per core otherwise. What a version took lies in whichever arenas its threads had, and each
    keeps the pages that hold a few living blocks beside many freed ones; the fewer arenas, the fewer such pages.
    `MALLOC_ARENA_MAX` in the environment counts more.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, len(os.sched_getaffinity(0)))


def settle() -> None:
    """Takes what is loaded for good, such as modules, out of later collections, which are then short."""
    gc.collect()
    gc.freeze()


def release() -> float:
    """Frees what nothing reaches any more, and returns free memory to the system; returns the seconds that it took.

    A loaded graph is held by reference cycles of its Python side, so that it goes with a collection alone. What its
    load and its compiler took from the C heap lies free in arenas then, which glibc keeps unless it is asked.
    """
    started = time.monotonic()
    gc.collect()
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
    return time.monotonic() - started
