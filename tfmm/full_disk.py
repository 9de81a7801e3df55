"""A full disk, whichever library met it: told as one line, with what to do."""

from __future__ import annotations

import errno
import os

# Of a disk, and of the share of one that its user may fill.
_CODES = (errno.ENOSPC, errno.EDQUOT)
_WORDS = (*map(os.strerror, _CODES), "disk is full")  # of TensorFlow, Arrow and HDF5; of SQLite


def told(error: BaseException) -> str | None:
    """Returns what to tell a person where an error, or what led to it, says that a disk is full; else None.

    >>> print(told(OSError(errno.ENOSPC, "No space left on device", "run/items.npy")))
    No room is left on the disk (run/items.npy). Make some and run the same again: what was finished stays, and nothing
    half-written is taken.
    >>> print(told(RuntimeError("items.npy; Disk quota exceeded")))
    No room is left on the disk. Make some and run the same again: what was finished stays, and nothing half-written is
    taken.
    >>> told(OSError(errno.EACCES, "Permission denied"))
    """
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in _CODES or any(words in str(seen) for words in _WORDS):
            name = getattr(seen, "filename", None)
            where = f" ({os.fspath(name)})" if name else ""
            return (
                f"No room is left on the disk{where}. Make some and run the same again: what was finished stays, and "
                "nothing half-written is taken."
            )
        seen = seen.__cause__ or seen.__context__
    return None
