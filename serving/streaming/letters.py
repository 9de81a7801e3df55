"""Dead letters in a log of their own, such as a Kafka topic: each a JSON object with its reason and original event."""

from __future__ import annotations

import json
import logging
import time
import typing

from serving.streaming import event_log
from tfmm import dead_letters, registered
from tfmm.index import store

_BATCH = 256  # letters that are read together
_RETRY_S = 60.0  # after a failure, until a log is tried again
_FAILURES = 2  # one after another, after which it counts as away
_log = logging.getLogger(__name__)


def to_json(letter: store.DeadLetter) -> bytes:
    """Returns a letter as it stands in a log.

    >>> to_json(store.DeadLetter("sqlite:a", 7, "not JSON", b"?"))
    b'{"source": "sqlite:a", "position": 7, "reason": "not JSON", "event": "?"}'
    """
    source, position, reason, payload = letter
    event = dead_letters.as_text(payload)
    return json.dumps({"source": source, "position": position, "reason": reason, "event": event}).encode()


def from_json(payload: bytes) -> store.DeadLetter:
    """Returns what `to_json` wrote.

    Raises:
        ValueError: it is no letter.
    """
    try:
        found = json.loads(payload)
        event = None if found["event"] is None else dead_letters.as_bytes(found["event"])
        return store.DeadLetter(found["source"], found["position"], found["reason"], event)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"A log of dead letters must hold nothing else. Received: {payload[:200]!r}.") from error


def is_log(place: str) -> bool:
    """Returns whether a place is a log of events by its URL, and no item index."""
    scheme, separator, rest = place.partition("://")
    if not separator:
        return False
    return "stream=" in rest.partition("?")[2] or scheme not in registered.schemes(store.GROUP, store.STORES)


def read(url: str) -> typing.Iterator[store.DeadLetter]:
    """Yields the letters of a log, those that are there by now."""
    with event_log.open_source(url) as source:
        for part in event_log.parts_of(source):
            position, end = 0, part.end() if hasattr(part, "end") else None
            while end is None or position < end:
                found = part.read(position, _BATCH)
                for event in found:
                    yield from_json(event.payload)
                    position = event.offset
                if not found and end is None:
                    break
                if not found:
                    time.sleep(0.01)  # on its way


class LetterLog:
    """A log that gets letters too; where it fails the job's log says so, since the index has them all the same.

    A letter is sent at most once: what is killed between index and log leaves it in the index alone.

    Args:
        url: of an event source that has `append`; opened with the first letter.
    """

    def __init__(self, url: str):
        self._url = url
        self._log: typing.Any = None
        self._retry_at = 0.0

    def send(self, letters: typing.Sequence[store.DeadLetter]) -> None:
        """Appends letters, in one go, or one by one where that fails; for a minute after a failure it is not tried."""
        failed, error = len(letters), "it failed within the last minute"
        if letters and time.monotonic() >= self._retry_at:
            try:
                self._log = self._log or event_log.open_source(self._url)
                self._log.append([to_json(letter) for letter in letters])
                failed = 0
            except Exception as reason:  # of whatever keeps the log
                failed, error = self._one_by_one(letters), str(reason)
        if failed:
            shown = registered.without_password(self._url)
            _log.error("%d dead letters were not sent to %s, and stand in the index alone: %s", failed, shown, error)

    def _one_by_one(self, letters: typing.Sequence[store.DeadLetter]) -> int:
        """Sends what can be sent, such as all but one that is too large; returns how many were not."""
        failed = 0
        for done, letter in enumerate(letters if self._log else ()):
            try:
                self._log.append([to_json(letter)])
            except Exception:  # the first may be the letter's fault, a second is the log's
                failed += 1
                if failed == _FAILURES:
                    self._retry_at = time.monotonic() + _RETRY_S
                    return failed + len(letters) - done - 1
        if not self._log:
            self._retry_at = time.monotonic() + _RETRY_S
            return len(letters)
        return failed

    def close(self) -> None:
        if hasattr(self._log, "close"):
            self._log.close()
