"""Dead letters in a log of their own, such as a Kafka topic: each a JSON object with its reason and original event."""

from __future__ import annotations

import json
import logging
import time
import typing

from serving.streaming import event_log
from tfmm import dead_letters
from tfmm.index import store

_QUIET_S = 2.0  # without a further letter, after which a log counts as read
_BATCH = 256
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


def read(url: str) -> typing.Iterator[store.DeadLetter]:
    """Yields the letters of a log, those that are there by now."""
    with event_log.open_source(url) as source:
        parts = {part.name: part for part in event_log.parts_of(source)}
        positions, end = dict.fromkeys(parts, 0), time.monotonic() + _QUIET_S
        while time.monotonic() < end:
            for name, part in parts.items():
                for event in part.read(positions[name], _BATCH):
                    yield from_json(event.payload)
                    positions[name], end = event.offset, time.monotonic() + _QUIET_S
            time.sleep(0.01)


def send(letters: typing.Sequence[store.DeadLetter], log: typing.Any) -> None:
    """Appends letters to a log; where that fails the job's log says so, since the index has them all the same."""
    if not letters:
        return
    try:
        log.append([to_json(letter) for letter in letters])
    except Exception as error:  # of whatever keeps the log
        _log.error("%d dead letters were not sent, and stand in the index alone: %s", len(letters), error)
