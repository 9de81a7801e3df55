"""Gives the memory of a version that went back to the system."""

from __future__ import annotations

import ctypes
import gc
import time

_LIBC = ctypes.CDLL(None)


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
