"""New item events from a Redis stream."""

from __future__ import annotations

import json
import os
import typing
import urllib.parse

from serving.streaming import event_log
from tfmm import redis_client, registered

FIELD = "event"  # of an entry: JSON, as `events.make_event` writes it
_PER_MS = 22  # bits: entries of one millisecond
_OPTIONS = ("stream",)


class RedisStream:
    """A stream of Redis, read by its entries' ids; see `event_log.EventSource`.

    The index keeps how far it was read, so no consumer group is needed, and nothing is acknowledged. An entry's id
    `<milliseconds>-<number>` must be Redis' own (`XADD key *`), so that a stream that was deleted goes on with later
    ids; it is known by host, database and key, so name the host alike everywhere. Trim it (`XTRIM ... MINID <id>`) up
    to the last that was read, and leave that: where it is gone, later ones may be too, and the log says so.

    Args:
        url: `redis://host:port/database?stream=key`; see `redis_client.connect`.
    Raises:
        ValueError: the URL names no stream, or what `redis_client.connect` refuses.
    """

    def __init__(self, url: str | os.PathLike[str]):
        self._url = os.fspath(url)
        self._redis, own = redis_client.connect(self._url, _OPTIONS)
        self._key = own.get("stream", "")
        if not self._key:
            shown = registered.without_password(self._url)
            raise ValueError(f"The URL of events in Redis must name a stream, as in {shown}?stream=items.")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return RedisStream, (self._url,)

    def __enter__(self) -> RedisStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._redis.close()

    @property
    def name(self) -> str:
        place = urllib.parse.urlsplit(self._url)
        return f"redis:{place.hostname}:{place.port or 6379}{place.path or '/0'}/{self._key}"

    def append(self, payloads: typing.Iterable[bytes]) -> int:
        """Appends events, all or none; returns the offset of the last one, 0 where there is none."""
        pipeline = self._redis.pipeline(transaction=True)
        for payload in payloads:
            pipeline.xadd(self._key, {FIELD: payload})
        ids = pipeline.execute()
        return _offset(ids[-1]) if ids else 0

    def read(self, after: int, limit: int) -> list[event_log.Event]:
        """As `EventSource.read`; fewer events where they are large together."""
        entries = self._redis.xrange(self._key, min=_entry_id(after + 1), count=limit)
        found = event_log.up_to((event_log.Event(_offset(one), _payload(fields)) for one, fields in entries), limit)
        if found and after:
            self._tell_of_lost(after)
        return found

    def _tell_of_lost(self, after: int) -> None:
        """The oldest go first, so where the last that was read is there, none behind it is gone."""
        last = _entry_id(after)
        if not self._redis.xrange(self._key, min=last, max=last):
            event_log.tell_of_lost(self.name, f"perhaps entries behind {last}, which is trimmed itself")


def _payload(fields: typing.Mapping[bytes, bytes]) -> bytes:
    """Returns an entry's event; one without that field is kept as JSON, which no event is."""
    if FIELD.encode() in fields:
        return fields[FIELD.encode()]
    shown = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    return json.dumps(shown).encode()


def _offset(entry_id: bytes) -> int:
    milliseconds, number = map(int, entry_id.split(b"-"))
    if number >> _PER_MS:
        raise ValueError(f"Ids of a stream must be Redis' own, of `XADD key *`. Received: {entry_id.decode()}.")
    return milliseconds << _PER_MS | number


def _entry_id(offset: int) -> str:
    return f"{offset >> _PER_MS}-{offset & ((1 << _PER_MS) - 1)}"
