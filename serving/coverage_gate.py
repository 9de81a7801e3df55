"""Keeps a version out of service whose encoder's rows are not there yet: most of its items would have no vector."""

from __future__ import annotations

import logging
import threading
import time
import typing

from tfmm.index import coverage, store

_log = logging.getLogger("serving.replicator")
_EASE = 20.0  # times as long as a look at all ids takes, the next one waits
_RETRY_S = 1.0  # after a look that failed
Tables = tuple[tuple[str, str], ...]  # (modality, encoder version)


class CoverageGate:
    """Says when an index covers a version's encoders.

    An encoder that is later than the active one of its modality is being filled: it is enough once it has the share
    `min_coverage` of the active one's items, or is activated. Others are enough as they are: the active one, earlier
    ones, which versions in service were made with, and those that the index does not know.

    A look at all ids may take seconds, so it is taken in a thread of its own, one at a time; until it has ended, who
    asks is told no.

    Args:
        index: the item index, of the thread that asks.
        url: its path or URL, for looks at all ids.
        min_coverage: 0..1; 0: every encoder is enough.
    """

    def __init__(self, index: store.IndexStore, url: str, min_coverage: float):
        self._index, self._url, self._min_coverage = index, url, min_coverage
        self._next_look: dict[Tables, float] = {}  # monotonic seconds, of tables that were not enough
        self._enough: set[Tables] = set()  # by a look that nobody has asked for since
        self._said: set[tuple[str, str]] = set()  # tables that are known to be waited for
        self._thread: threading.Thread | None = None

    def is_open(self, tables: typing.Iterable[tuple[str, str]]) -> bool:
        """Returns whether the tables of (modality, encoder version) are all enough, as far as is known."""
        if not self._min_coverage:
            return True
        coming = tuple(table for table in tables if coverage.is_coming(self._index, *table))
        if not coming:
            return True
        is_looking = self._thread is not None and self._thread.is_alive()  # first: what it found is known when it ends
        if coming in self._enough:
            self._enough.remove(coming)  # what is asked later is looked at anew
            return True
        if not is_looking and time.monotonic() >= self._next_look.get(coming, 0.0):
            self._thread = threading.Thread(target=self._look, args=(coming,), name="coverage", daemon=True)
            self._thread.start()
        return False

    def close(self) -> None:
        """Waits for the look at hand."""
        if self._thread is not None:
            self._thread.join()

    def _look(self, tables: Tables) -> None:
        start = time.monotonic()
        try:
            with store.open_store(self._url) as index:
                if all(self._is_enough(index, *table) for table in tables):
                    self._enough.add(tables)
                    return
        except Exception:  # such as an index that is away
            _log.exception("%s: how many items it has for %s is not known", self._url, tables)
            self._next_look[tables] = time.monotonic() + _RETRY_S
            return
        now = time.monotonic()
        self._next_look[tables] = now + _EASE * (now - start)

    def _is_enough(self, index: store.IndexStore, modality: str, encoder_version: str) -> bool:
        found = coverage.of_active(index, modality, encoder_version)
        is_enough = found.share >= self._min_coverage
        if not is_enough and (modality, encoder_version) not in self._said:
            self._said.add((modality, encoder_version))
            _log.warning("%s: a version waits for encoder %s to have %.2f %% of the active one's items; it has %s",
                         modality, encoder_version, 100 * self._min_coverage, found)  # fmt: skip
        return is_enough
