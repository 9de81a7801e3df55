"""The index store in Redis, shared by writers and readers on any machine."""

from __future__ import annotations

import collections
import itertools
import json
import logging
import os
import time
import typing

import numpy as np

from tfmm import fingerprints, redis_client, registered
from tfmm.index import redis_reading, redis_scripts, store
from tfmm.index import rows as rows_lib
from tfmm.vectors import Vectors

FORMATS = ("1", "2")  # the second: withdrawn items whose rows were compacted
PREFIX = "{tfmm}"  # of keys; what stands in braces keeps them on one node of a cluster
LARGEST = (1 << 53) - 1  # of a time: numbers of Redis' scripts are float64
PAGE = 4096  # changes of an encoder per look of a snapshot
STEP = 500  # of what is deleted, in one script or command: others wait for milliseconds
SAMPLES = 1000  # of a key's entries, by which its memory is told
_OPTIONS = ("prefix", "volatile")
_T = typing.TypeVar("_T")
_log = logging.getLogger(__name__)
_told: set[str] = set()  # addresses whose `appendfsync` this process has spoken of


class RedisIndex(store.IndexStore):
    """The index in a Redis database; see `store.IndexStore`.

    A batch is one script: rows, withdrawals, dead letters and positions become visible together. A call costs one round
    trip, and Redis' time grows with the rows of the batch. A snapshot follows the changes from the first on until no
    table has more at one moment, so that Redis never holds a second copy and serves others between pages; the event
    time of a row that a later event only confirmed may be that of either.

    Redis must keep what it was told (`appendonly yes`; `appendfsync always` where a crash of the machine may lose
    nothing) and evict nothing (`maxmemory-policy noeviction`). While it is away, or loading, calls wait for up to a
    minute and try again: writing the same batch twice changes nothing.

    Memory in Redis is about 200 bytes and D more for each row.

    Args:
        url: `redis://[user[:password]@]host[:port][/database]`, or `rediss://` for TLS; redis-py's
            options may follow, and two of ours: `prefix` of all keys (default: {tfmm}), so that several indices share
            a database, and `volatile=1`, which takes a Redis that may forget. The password can stand in the
            environment variable REDISCLI_AUTH instead.
        create: makes the index where it is missing.
    Raises:
        FileNotFoundError: it is missing, and `create` is False.
        ValueError: it has a newer format; Redis may forget or evict rows, or knows another password; an option that is
            unknown.
        redis.exceptions.RedisError: Redis cannot be reached, or refuses.
    """

    def __init__(self, url: str | os.PathLike[str], *, create: bool = True):
        self._url = os.fspath(url)
        self._shown = registered.without_password(self._url)
        self._redis, own = redis_client.connect(self._url, _OPTIONS)
        self._prefix = own.get("prefix", PREFIX)
        if own.get("volatile") != "1":
            _require_durable(self._redis, self._shown)
        self._open(create)
        self._known: dict[str, tuple[str, int]] = {}  # number and dim of the encoders that `look_up` was asked for
        register = self._redis.register_script
        self._encoders, self._register = register(redis_scripts.ENCODERS), register(redis_scripts.REGISTER)
        self._activate, self._forget = register(redis_scripts.ACTIVATE), register(redis_scripts.FORGET)
        self._apply, self._changes = register(redis_scripts.APPLY), register(redis_reading.CHANGES)
        self._lag, self._last = register(redis_reading.LAG), register(redis_reading.LAST)
        self._live, self._release = register(redis_reading.LIVE), register(redis_reading.RELEASE)
        self._keep_id_types = register(redis_scripts.KEEP_ID_TYPES)

    def _open(self, create: bool) -> None:
        meta = self._key("meta")
        if not create and not self._redis.exists(meta):
            raise FileNotFoundError(
                f"The index {self._prefix!r} in {self._shown} does not exist. `tfmm embed` makes the item index."
            )
        self._redis.hsetnx(meta, "sequence", int(time.time()) * 1_000_000)
        self._redis.hsetnx(meta, "format", FORMATS[0])
        found = self._redis.hget(meta, "format").decode()
        if found not in FORMATS:
            raise ValueError(
                f"The index {self._prefix!r} in {self._shown} must have format {' or '.join(FORMATS)}. Received: "
                f"{found}. Upgrade tfmm, or give another `prefix`."
            )

    def _key(self, *names: str) -> str:
        return ":".join([self._prefix, *names])

    @property
    def url(self) -> str:
        return self._url

    def close(self) -> None:
        self._redis.close()

    def apply(self, batch: store.IndexBatch) -> store.Applied:
        values: list[typing.Any] = [len(batch.rows)]
        for table in batch.rows:
            values += self._of_table(table)
        ids, times = (np.array(column, np.int64) for column in zip(*batch.withdrawn)) if batch.withdrawn else ((), ())
        if 0 in ids:
            raise ValueError("`withdrawn` must not hold 0, which means padding. Received: 0.")
        values += [_int64(ids), _times(times), len(batch.dead_letters)]
        for letter in map(store.storable, batch.dead_letters):
            values.append(json.dumps([letter.source, letter.position, letter.reason]))
            values.append(b"0" if letter.payload is None else b"1" + letter.payload)
        values.append(len(batch.positions))
        for source, position in batch.positions.items():
            if not 0 <= position < 1 << 63:
                raise ValueError(f"A position must lie in 0..2^63 - 1. Received: {position}.")
            values += [source, position]
        first, *others = self._run(self._apply, values)
        if not isinstance(first, list):
            table = batch.rows[-first - 1]
            raise self._dim_error(table.modality, table.encoder_version, others[0], table.rows.rows.shape[1])
        withdrawn, older = others
        return store.Applied(tuple(first), withdrawn, tuple(sorted(np.frombuffer(b"".join(older), "<i8").tolist())))

    def _of_table(self, table: store.TableRows) -> list[typing.Any]:
        own, dim = table.rows, table.rows.rows.shape[1]
        if not 1 <= dim <= rows_lib.MAX_DIM and not self.has_encoder(table.modality, table.encoder_version):
            store.verify_dim(dim)
        given, catalog, said = b"", b"", b""
        if table.given is not None:
            given = np.ascontiguousarray(table.given, np.int8).tobytes()
        if table.catalog_times_us is not None:
            catalog = _times(table.catalog_times_us)
            said = _int64(fingerprints.fingerprint([row.tobytes() for row in own.rows]))
        name = _name(table.modality, table.encoder_version)
        entry = json.dumps([table.modality, table.encoder_version, dim, ""])
        rows, scales = np.ascontiguousarray(own.rows).tobytes(), np.ascontiguousarray(own.scales, "<f4").tobytes()
        return [name, entry, _int64(own.ids), rows, scales, _times(own.event_times_us), given, catalog, said]

    def _run(self, script: typing.Any, values: typing.Sequence[typing.Any]) -> typing.Any:
        return script(keys=[self._prefix], args=values)

    def is_failing(self, error: Exception) -> bool:
        return isinstance(error, redis_client.ERRORS) and not isinstance(error, redis_client.VALUE_ERRORS)

    def register_encoder(self, modality: str, encoder_version: str, dim: int, layout: str = "") -> None:
        if not self.has_encoder(modality, encoder_version):
            store.verify_dim(dim, layout)
        entry = json.dumps([modality, encoder_version, dim, layout])
        known = self._run(self._register, [_name(modality, encoder_version), entry])
        if known is not None:
            raise self._dim_error(modality, encoder_version, known, dim)

    def _dim_error(self, modality: str, encoder_version: str, known: int, dim: int) -> ValueError:
        return ValueError(
            f"`dim` of {modality} encoder {encoder_version} must be {known}, as its rows in {self._shown}. "
            f"Received: {dim}. Give a changed encoder another version."
        )

    def activate(self, modality: str, encoder_version: str) -> None:
        if not self._run(self._activate, [_name(modality, encoder_version), modality]):
            raise self._unknown(modality, encoder_version)

    def forget(self, modality: str, encoder_version: str) -> int:
        deleted = self._run(self._forget, [_name(modality, encoder_version), modality])
        if deleted < 0:
            raise self._unknown(modality, encoder_version)
        return deleted

    def encoders(self) -> list[store.EncoderEntry]:
        found, active = self._run(self._encoders, [])
        entries = zip(map(int, found[::2]), map(json.loads, found[1::2]))
        return [
            store.EncoderEntry(modality, version, dim, str(number).encode() in active, layout)
            for number, (modality, version, dim, layout) in sorted(entries)
        ]

    def _encoder(self, modality: str, encoder_version: str) -> tuple[str, int]:
        """Returns the number by which keys name this encoder, and the dim of its rows."""
        number = self._redis.hget(self._key("numbers"), _name(modality, encoder_version))
        entry = number and self._redis.hget(self._key("encoders"), number)
        if not entry:
            raise self._unknown(modality, encoder_version)
        return number.decode(), json.loads(entry)[2]

    def _unknown(self, modality: str, encoder_version: str) -> ValueError:
        known = [(entry.modality, entry.encoder_version) for entry in self.encoders()]
        return ValueError(
            f"`modality` and `encoder_version` must be one of {known} in {self._shown}. "
            f"Received: {(modality, encoder_version)}."
        )

    def changes(self, modality: str, encoder_version: str, after: int, limit: int = 1024) -> rows_lib.IndexRows:
        number, dim = self._encoder(modality, encoder_version)
        found = self._run(self._changes, [limit, number, after])
        if found is None:
            raise self._unknown(modality, encoder_version)
        ((ids, values),) = found
        return _rows(ids, values, dim)

    def snapshot(self, encoder_versions: typing.Mapping[str, str]) -> dict[str, store.TableState]:
        keys = {modality: self._encoder(modality, version) for modality, version in encoder_versions.items()}
        parts = {modality: [rows_lib.from_records([], dim)] for modality, (_, dim) in keys.items()}
        after, is_level = dict.fromkeys(keys, 0), not keys
        while not is_level:
            wanted = [value for modality, (number, _) in keys.items() for value in (number, after[modality])]
            found = self._run(self._changes, [PAGE, *wanted])
            if found is None:  # an encoder was forgotten meanwhile
                return self.snapshot(encoder_versions)
            is_level = all(len(ids) < PAGE for ids, _ in found)
            for (modality, (_, dim)), (ids, values) in zip(keys.items(), found):
                if ids:
                    parts[modality].append(_rows(ids, values, dim))
                    after[modality] = int(parts[modality][-1].sequences[-1])
        return {name: store.TableState(_newest(rows_lib.concatenate(parts[name])), after[name]) for name in keys}

    def lag(self, modality: str, encoder_version: str, watermark: int) -> int:
        number, _ = self._encoder(modality, encoder_version)
        return self._run(self._lag, [number, watermark])

    def last_sequence(self, modality: str, encoder_version: str) -> int:
        return int(self._run(self._last, [self._encoder(modality, encoder_version)[0]]))

    def live_ids(self, modality: str, encoder_version: str) -> np.ndarray:
        number, _ = self._encoder(modality, encoder_version)
        after, parts = b"0", []
        while after:  # what changes meanwhile may be as before, or as after
            after, ids = self._run(self._live, [number, after, PAGE])
            parts += ids
        return np.unique(np.frombuffer(b"".join(parts), "<i8").astype(np.int64))

    def look_up(self, encoder_versions: typing.Mapping[str, str], ids: np.ndarray) -> dict[str, Vectors]:
        names = {modality: _name(modality, version) for modality, version in encoder_versions.items()}
        if not set(names.values()) <= self._known.keys():
            self._known |= {names[m]: self._encoder(m, version) for m, version in encoder_versions.items()}
        keys = np.ascontiguousarray(ids, "<i8")
        wanted = [keys[place : place + 1].tobytes() for place in range(len(keys))]
        asked = self._redis.pipeline(transaction=False)
        for name in names.values():
            asked.hget(self._key("numbers"), name)
            if wanted:
                asked.hmget(self._key("rows", self._known[name][0]), wanted)
        answers, result = iter(asked.execute()), {}
        for modality, name in names.items():
            number, dim = self._known[name]
            if next(answers) != number.encode():  # it was forgotten, and perhaps registered anew
                self._known = {}
                return self.look_up(encoder_versions, ids)
            nothing = bytes(20 + dim)
            found = _records([value or nothing for value in next(answers)] if wanted else [], dim)
            rows, scales = np.ascontiguousarray(found["row"]), found["scale"].astype(np.float32)
            result[modality] = Vectors(rows, scales, scales != 0)
        return result

    def compact(self, keep_letters: int | None = None) -> store.Compacted:
        withdrawn = 0
        for step in _in_steps(self._redis.hscan_iter(self._key("withdrawals"), count=STEP)):
            withdrawn += self._run(self._release, [item for item, _ in step])
        letters = 0
        if keep_letters is not None:
            own: dict[str, list[tuple[int, bytes]]] = collections.defaultdict(list)
            for key, _ in self._redis.hscan_iter(self._key("letters"), count=STEP):
                source, position, _ = json.loads(key)
                own[source].append((position, key))
            old = [key for found in own.values() for _, key in sorted(found, reverse=True)[keep_letters:]]
            letters = sum(self._redis.hdel(self._key("letters"), *step) for step in _in_steps(old))
        return store.Compacted(withdrawn, letters)

    def size(self) -> store.Size:
        numbers = [number.decode() for number in self._redis.hkeys(self._key("encoders"))]
        keys = [self._key(name, number) for number in numbers for name in ("rows", "changes", "catalog")]
        keys += [self._key(name) for name in ("withdrawals", "withdrawn", "letters", "positions", "encoders")]
        return store.Size(sum(self._redis.memory_usage(key, samples=SAMPLES) or 0 for key in keys))

    def positions(self) -> dict[str, int]:
        found = self._redis.hgetall(self._key("positions"))
        return {source.decode(): int(position) for source, position in sorted(found.items())}

    def newest_sequence(self) -> int:
        return int(self._redis.hget(self._key("meta"), "sequence"))

    def position(self, source: str) -> int:
        return int(self._redis.hget(self._key("positions"), source) or 0)

    def id_types(self) -> dict[str, str]:
        found = self._redis.hgetall(self._key("id_types"))
        return {field.decode(): kind.decode() for field, kind in found.items()}

    def keep_id_types(self, types: typing.Mapping[str, str]) -> None:
        other = self._run(self._keep_id_types, [word for pair in types.items() for word in pair])
        if other:
            field, known = (word.decode() for word in other)
            raise ValueError(
                f"`{field}` of the catalog must be {known}, as in {self._shown}. Received: {types[field]}. "
                "Write it in that type, or name another index."
            )

    def dead_letters(self, source: str | None = None) -> list[store.DeadLetter]:
        found = {}
        for key, value in self._redis.hscan_iter(self._key("letters")):
            own, position, reason = json.loads(key)
            if source in (None, own):
                payload = value[1:] if value[:1] == b"1" else None
                found[own, position, reason] = store.DeadLetter(own, position, reason, payload)
        return [found[key] for key in sorted(found)]


def _require_durable(client: typing.Any, shown: str) -> None:
    try:
        (fsync,) = client.config_get("appendfsync").values()
    except (redis_client.ResponseError, ValueError):  # a service that does not tell
        fsync = "always"
    if fsync != "always" and shown not in _told:
        _told.add(shown)
        _log.warning("Redis at %s has appendfsync %s: a crash of its machine may lose a second", shown, fsync)
    info = {**client.info("persistence"), **client.info("memory")}
    wrong = []
    if not info.get("aof_enabled"):
        wrong.append("appendonly is no")
    if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
        wrong.append(f"maxmemory-policy is {info['maxmemory_policy']}")
    if wrong:
        raise ValueError(
            f"Redis at {shown} must keep every row: appendonly yes, maxmemory-policy noeviction. Received: "
            f"{' and '.join(wrong)}. Models that have seen a change that Redis then forgets never learn of the next "
            "one. Where it keeps rows in another way, or they may be lost, add `volatile=1` to the URL's options."
        )


def _in_steps(values: typing.Iterable[_T]) -> typing.Iterator[list[_T]]:
    iterator = iter(values)
    while step := list(itertools.islice(iterator, STEP)):
        yield step


def _name(modality: str, encoder_version: str) -> str:
    return f"{modality}\0{encoder_version}"


def _int64(values: typing.Any) -> bytes:
    return np.ascontiguousarray(values, "<i8").tobytes()


def _times(values: typing.Any) -> bytes:
    times = np.asarray(values, np.int64)
    for value in times[(times > LARGEST) | (times < -LARGEST)][:1].tolist():
        _number(value)
    return _int64(times)


def _number(value: int) -> int:
    if abs(value) > LARGEST:
        raise ValueError(f"Times in Redis must lie within 2^53 of 0. Received: {value}.")
    return value


def _rows(ids: typing.Sequence[bytes], values: typing.Sequence[bytes], dim: int) -> rows_lib.IndexRows:
    found = _records(values, dim)
    columns = (np.ascontiguousarray(found[name]) for name in ("row", "scale", "sequence", "time"))
    return rows_lib.IndexRows(np.frombuffer(b"".join(ids), "<i8").astype(np.int64), *columns)


def _records(values: typing.Sequence[bytes], dim: int) -> np.ndarray:
    """Returns what stands in a hash of rows as a structured array."""
    record = np.dtype([("scale", "<f4"), ("sequence", "<i8"), ("time", "<i8"), ("row", np.int8, (dim,))])
    return np.frombuffer(b"".join(values), record)


def _newest(found: rows_lib.IndexRows) -> rows_lib.IndexRows:
    """Returns the last of the changes of each item that is not withdrawn, by ascending id."""
    _, last = np.unique(found.ids[::-1], return_index=True)
    places = len(found) - 1 - last
    places = places[found.scales[places] != 0]
    columns = (found.rows, found.scales, found.sequences, found.event_times_us)
    return rows_lib.IndexRows(found.ids[places], *(column[places] for column in columns))
