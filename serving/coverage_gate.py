"""Keeps a version out of service whose encoder's rows are not there yet: most of its items would have no vector."""

from __future__ import annotations

import logging
import time
import typing

from tfmm.index import coverage, store

_log = logging.getLogger("serving.replicator")
_EASE = 20.0  # times as long as a look at all ids takes, the next one waits


class CoverageGate:
    """Says when an index covers a version's encoders.

    An encoder that is later than the active one of its modality is being filled: it is enough once it has the share
    `min_coverage` of the active one's items, or is activated. Others are enough as they are: the active one, earlier
    ones, which versions in service were made with, and those that the index does not know.

    Args:
        index: the item index.
        min_coverage: 0..1; 0: every encoder is enough.
    """

    def __init__(self, index: store.IndexStore, min_coverage: float):
        self._index, self._min_coverage = index, min_coverage
        self._next_look: dict[tuple[str, str], float] = {}  # monotonic seconds, of tables that were not enough

    def is_open(self, tables: typing.Iterable[tuple[str, str]]) -> bool:
        """Returns whether the tables of (modality, encoder version) are all enough."""
        return all(self._is_enough(*table) for table in tables)

    def _is_enough(self, modality: str, encoder_version: str) -> bool:
        if not self._min_coverage or not coverage.is_coming(self._index, modality, encoder_version):
            return True
        key, start = (modality, encoder_version), time.monotonic()
        if start < self._next_look.get(key, start):
            return False
        found = coverage.of_active(self._index, modality, encoder_version)
        if found.share >= self._min_coverage:
            return True
        if key not in self._next_look:
            _log.warning("%s: a version waits for encoder %s to have %.2f %% of the active one's items; it has %s",
                         modality, encoder_version, 100 * self._min_coverage, found)  # fmt: skip
        now = time.monotonic()
        self._next_look[key] = now + _EASE * (now - start)
        return False
