"""Where items' vectors and features are kept: one protocol for all stores, each opened by its URL."""

from __future__ import annotations

import collections
import dataclasses
import os
import typing

import numpy as np

from tfmm import registered
from tfmm.index.rows import MAX_DIM, IndexRows
from tfmm.vectors import Vectors

GROUP = "tfmm.index_stores"  # entry points of other packages: a URL's scheme = module:Class
STORES = {  # by scheme; a store is its own file and a line here
    "sqlite": "tfmm.index.item_index:ItemIndex",
    **dict.fromkeys(("redis", "rediss"), "tfmm.index.redis_index:RedisIndex"),
}
MAX_LETTER_BYTES = 1 << 24  # of a dead letter's payload that are kept
MAX_REASON = 1000  # characters of a dead letter's reason
S = typing.TypeVar("S")


class EncoderEntry(typing.NamedTuple):
    """One encoder whose rows the store holds; or a layout of items' features, which stands among them."""

    modality: str
    encoder_version: str
    dim: int
    active: bool  # the one that snapshots take
    layout: str = ""  # of items' features, see `item_features.Layout`


@dataclasses.dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of one encoder to be written; the store gives them their sequence numbers.

    Args:
        modality: image, text, vector, or another name.
        encoder_version: of the encoder that made the rows.
        rows: `ids` int64 [n] are fingerprints, none of them 0; `rows` int8 [n, D]; `scales` float32 [n], 1 / norm of
            the row, or 0 to withdraw the item; `event_times_us` int64 [n], microseconds since 1970.
        given: bool [n, D], False where an item's older value stays, if it has one; None: all are given.
        catalog_times_us: int64 [n], when the catalog that says so was written, 0 where an event says so; None: all are
            of events. What the catalog says of an item counts from its event time on; where that is not what it said
            the last time, from when it was written on.
    Raises:
        ValueError: shapes or dtypes that do not fit, an id of 0, or a scale that is not finite or is negative.
    """

    modality: str
    encoder_version: str
    rows: IndexRows
    given: np.ndarray | None = None
    catalog_times_us: np.ndarray | None = None

    def __post_init__(self) -> None:
        ids, rows, scales, times = self.rows.ids, self.rows.rows, self.rows.scales, self.rows.event_times_us
        if rows.dtype != np.int8 or rows.ndim != 2 or not len(rows) == len(ids) == len(scales) == len(times):
            raise ValueError(
                f"`rows` must be int8 [n, D], with n `ids`, `scales` and `event_times_us`. Received: "
                f"{rows.dtype} {rows.shape}, {ids.shape}, {scales.shape}, {times.shape}."
            )
        if self.given is not None and (self.given.dtype != bool or self.given.shape != rows.shape):
            raise ValueError(
                f"`given` must be bool {rows.shape}, as `rows`. Received: {self.given.dtype} {self.given.shape}."
            )
        if not np.all(ids):
            raise ValueError("`ids` must not hold 0, which means padding. Received: 0.")
        if (wrong := scales[~(np.isfinite(scales) & (scales >= 0))]).size:
            raise ValueError(f"`scales` must be finite and not negative (0 withdraws). Received: {wrong[:5].tolist()}.")


class Withdrawal(typing.NamedTuple):
    """An item that leaves every table."""

    item_id: int
    event_time_us: int


class DeadLetter(typing.NamedTuple):
    """An event that could not be used; of what is long, `MAX_REASON` and `MAX_LETTER_BYTES` are kept."""

    source: str
    position: int
    reason: str
    payload: bytes | None


@dataclasses.dataclass(frozen=True, eq=False)
class IndexBatch:
    """What takes effect together: rows first, in their order, then withdrawals."""

    rows: typing.Sequence[TableRows] = ()
    withdrawn: typing.Sequence[Withdrawal] = ()
    dead_letters: typing.Sequence[DeadLetter] = ()
    positions: typing.Mapping[str, int] = dataclasses.field(default_factory=dict)  # by source of events


class Applied(typing.NamedTuple):
    """How many rows a batch changed, each with a new sequence number."""

    rows: tuple[int, ...]  # per `TableRows`
    withdrawn: int
    older: tuple[int, ...] = ()  # ids of items of which the store knows something newer: passed over, in part or whole


class Compacted(typing.NamedTuple):
    """How many records were deleted."""

    withdrawn: int  # rows of withdrawn items
    dead_letters: int


class Size(typing.NamedTuple):
    """What a store occupies."""

    total_bytes: int
    free_bytes: int = 0  # of those, what later rows will fill


class TableState(typing.NamedTuple):
    """All rows of one encoder at one moment."""

    rows: IndexRows  # that are not withdrawn, by ascending item id
    watermark: int  # sequence number of the newest change, 0 where there is none


class IndexStore(typing.Protocol):
    """The multimodal index table (section 5): every item's rows, as a log of changes.

    Per encoder version there is one row for each (modality, item id). The newest event time wins, and of equal ones
    the last written; writing the same row twice changes nothing. Only an event that is newer than its withdrawal
    brings an item back, with any encoder. Every change takes the next sequence number, and they become visible in
    ascending order: a reader who has seen all up to s misses nothing when it asks for those after s. They start at
    the store's birth in microseconds since 1970, so that a model which was exported from an earlier store gets all of
    this one. What `apply` has returned from survives a crash.

    Rows of two encoders are never mixed: a new encoder's stand beside the old ones, which model versions in service
    still need, until `forget`.

    A withdrawn item keeps one row in each table, so that readers hear of it, until `compact` deletes these. From then
    on the store knows of each such item once, and `changes`, `lag` and watermarks tell of it as they did: a reader at
    any position misses nothing, and some get a withdrawal a second time.

    A store is opened by several processes and threads at once. A class that inherits from this one has the methods
    below that are written out; it should have its own of those that read whole tables.
    `tests/tfmm/index/test_store.py` holds every store to this.
    """

    @property
    def url(self) -> str:
        """What `open_store` opens it by, in this process or another of this machine."""

    def apply(self, batch: IndexBatch) -> Applied:
        """Writes all of a batch, or nothing where it fails; an unknown encoder is registered.

        Raises:
            ValueError: rows of another dim than the encoder's.
        """

    def is_failing(self, error: Exception) -> bool:
        """Returns whether an error is the store's own, such as a full disk or a lock, and not of what it was given."""

    def register_encoder(self, modality: str, encoder_version: str, dim: int, layout: str = "") -> None:
        """Makes room for an encoder's rows, or those of a layout; the first of a modality is active from the start.

        Raises:
            ValueError: `dim` is out of range, or differs from the one registered.
        """

    def activate(self, modality: str, encoder_version: str) -> None:
        """Makes snapshots take this encoder's rows, once its embedding of the catalog is complete."""

    def forget(self, modality: str, encoder_version: str) -> int:
        """Deletes the rows of an encoder that no model version in service needs; returns their number."""

    def encoders(self) -> list[EncoderEntry]:
        """Returns the encoders, oldest first."""

    def changes(self, modality: str, encoder_version: str, after: int, limit: int = 1024) -> IndexRows:
        """Returns the first `limit` changes after a sequence number, ascending, withdrawals included.

        Raises:
            ValueError: the encoder is unknown; so do the next three.
        """

    def lag(self, modality: str, encoder_version: str, watermark: int) -> int:
        """Returns how many changes a reader at `watermark` has not seen."""

    def newest_sequence(self) -> int:
        """Returns the number of the newest change of any encoder; its birth where there was none."""

    def snapshot(self, encoder_versions: typing.Mapping[str, str]) -> dict[str, TableState]:
        """Returns the tables of encoders, given by modality, as all of them are at one moment."""

    def position(self, source: str) -> int:
        """Returns how far a source of events has been consumed, 0 at the start; it never goes back."""

    def id_types(self) -> dict[str, str]:
        """Returns "int64" or "string" by field (`item_id`, `category`), as far as a catalog told them."""

    def keep_id_types(self, types: typing.Mapping[str, str]) -> None:
        """Remembers the types of the catalog's ids.

        Raises:
            ValueError: the store holds ids of another type.
        """

    def dead_letters(self, source: str | None = None) -> list[DeadLetter]:
        """Returns unusable events, each (source, position, reason) once, by source and position."""

    def close(self) -> None:
        """Ends its connections."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has_encoder(self, modality: str, encoder_version: str) -> bool:
        """Returns whether the store knows this encoder."""
        return any((found.modality, found.encoder_version) == (modality, encoder_version) for found in self.encoders())

    def active_encoders(self) -> dict[str, EncoderEntry]:
        """Returns the active encoder of each modality."""
        return {entry.modality: entry for entry in sorted(self.encoders()) if entry.active and not entry.layout}

    def active_features(self) -> EncoderEntry | None:
        """Returns the active layout of items' features; None where the store has none."""
        return next((entry for entry in self.encoders() if entry.active and entry.layout), None)

    def write(
        self,
        modality: str,
        encoder_version: str,
        ids: typing.Any,
        rows: np.ndarray,
        scales: typing.Any,
        event_times_us: typing.Any,
    ) -> int:
        """Writes rows of one encoder, int8 [n, D] beside their ids, see `TableRows`; returns how many changed."""
        ids, times = np.asarray(ids, np.int64), np.asarray(event_times_us, np.int64)
        own = IndexRows(ids, rows, np.asarray(scales, np.float32), np.zeros(len(ids), np.int64), times)
        return self.apply(IndexBatch(rows=[TableRows(modality, encoder_version, own)])).rows[0]

    def withdraw(self, ids: typing.Iterable[int], event_times_us: typing.Iterable[int]) -> int:
        """Withdraws items; returns how many rows changed."""
        return self.apply(IndexBatch(withdrawn=[Withdrawal(*pair) for pair in zip(ids, event_times_us)])).withdrawn

    def compact(self, keep_letters: int | None = None) -> Compacted:
        """Deletes what nobody needs any more, in small steps: readers and writers go on meanwhile.

        Args:
            keep_letters: how many dead letters of each source stay, those of the newest positions; None: all.
        """
        return Compacted(0, 0)

    def size(self) -> Size | None:
        """Returns what the store occupies; None where it cannot tell."""
        return None

    def positions(self) -> dict[str, int]:
        """Returns how far each source of events has been consumed, as far as the store can list them."""
        return {}

    def letter_counts(self) -> dict[str, int]:
        """Returns the number of dead letters by source."""
        return dict(sorted(collections.Counter(letter.source for letter in self.dead_letters()).items()))

    def look_up(self, encoder_versions: typing.Mapping[str, str], ids: np.ndarray) -> dict[str, Vectors]:
        """Returns the rows of some items in tables of encoders, or of layouts of features, given by modality.

        Args:
            encoder_versions: encoder version by modality.
            ids: int64 [n], each once; of those that are not there, or withdrawn, the mask is False.
        """
        result = {}
        for modality, (found, _) in self.snapshot(encoder_versions).items():
            known = dict(zip(found.ids.tolist(), range(len(found))))
            places = np.array([known.get(item_id, -1) for item_id in ids.tolist()], np.int64)
            rows, scales = np.zeros((len(ids), found.rows.shape[1]), np.int8), np.zeros(len(ids), np.float32)
            rows[places >= 0], scales[places >= 0] = found.rows[places[places >= 0]], found.scales[places[places >= 0]]
            result[modality] = Vectors(rows, scales, places >= 0)
        return result

    def live_ids(self, modality: str, encoder_version: str) -> np.ndarray:
        """Returns the items that have a row and are not withdrawn, int64, ascending."""
        return self.embeddings(modality, encoder_version).ids

    def embeddings(self, modality: str, encoder_version: str) -> IndexRows:
        """Returns every row that is not withdrawn, by ascending item id."""
        return self.snapshot({modality: encoder_version})[modality].rows

    def last_sequence(self, modality: str, encoder_version: str) -> int:
        """Returns the sequence number of the newest change, 0 where there is none."""
        return self.snapshot({modality: encoder_version})[modality].watermark


def open_store(url: str | os.PathLike[str], *, create: bool = True) -> IndexStore:
    """Opens an index store.

    Args:
        url: a plain path is a SQLite file, as `sqlite:///` before it says; so `sqlite:///items.sqlite` lies in the
            current folder, `sqlite:////data/items.sqlite` does not. Other schemes are those of `STORES` and of entry
            points of the group `tfmm.index_stores`.
        create: makes the store where there is none.
    Raises:
        ValueError: an unknown scheme.
        FileNotFoundError: there is no store, and `create` is False.

    >>> open_store("mongodb://localhost")
    Traceback (most recent call last):
    ...
    ValueError: The scheme of an index store's URL must be one of ['redis', 'rediss', 'sqlite']. Received: 'mongodb'...
    """
    opened, text = registered.resolve(url, GROUP, STORES, "an index store")
    return opened(text, create=create)


def verify_dim(dim: int, layout: str = "") -> None:
    """Raises ValueError where rows of `dim` values are not for an index."""
    if dim < 1 or (dim > MAX_DIM and not layout):
        raise ValueError(
            f"`dim` must lie in 1..{MAX_DIM}: similarities of int8 rows are exact up to there. Received: {dim}."
        )


def storable(letter: DeadLetter) -> DeadLetter:
    """Returns a letter that fits: what is long is cut off, and what no UTF-8 can hold is escaped in the reason."""
    cut = letter.reason[:MAX_REASON].replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()
    kept = None if letter.payload is None else letter.payload[:MAX_LETTER_BYTES]
    return letter._replace(reason=cut[:MAX_REASON], payload=kept)
