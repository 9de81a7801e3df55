"""Examples on disk: shards of rows in time order, and beside them each user's history and each item, once.

A row does not hold its history but the place of it: the sequences' files hold every user's behaviors, oldest first, and
a row says where its window ends and how long it is. What the catalog says of items stands in a table of items, to which
rows and behaviors point. So a history of 1000 costs a row 12 bytes, and a behavior is stored, counted and preprocessed
once however many rows show it.

Where items have versions (`tfmm.data.as_known`), an item's first row stands for what was known before all of them, its
versions follow, the oldest first. A row points to the version that was known to it, a behavior to the first row: which
version a row sees of it is found when the row is read.
"""

from __future__ import annotations

import glob
import os
import pathlib
import typing

import numpy as np

from tfmm import artifacts, preprocessing
from tfmm import config as config_lib
from tfmm.data import as_known, examples, instants, records
from tfmm.features import AGE, Column, Feature, FeatureSet, Sequence

KIND = "examples"
ITEMS = f"items{records.SUFFIX}"
ITEM = "_item"  # int32, the place in the table of items; 0 stands for padding
SHOWN = "_shown"  # int32, of a behavior: in how many rows of training it stands
PIECE = 65_536  # records that are read at a time
AGES = 4_096  # rows whose whole histories are read at a time
Columns = dict[str, np.ndarray]


def shard_name(split: str, number: int, count: int) -> str:
    """Returns the file name of a shard.

    >>> shard_name("train", 0, 3)
    'train-00000-of-00003.npy'
    """
    return f"{split}-{number:05d}-of-{count:05d}{records.SUFFIX}"


def history_name(sequence: Sequence) -> str:
    return f"history-{sequence.name}{records.SUFFIX}"


def end_of(sequence: Sequence) -> str:
    """Returns the column of rows that says before which behavior a row's window ends."""
    return f"_{sequence.name}_end"


def size_of(sequence: Sequence) -> str:
    """Returns the column of rows that says how many behaviors a row's window holds."""
    return f"_{sequence.name}_size"


def is_of_items(feature: Feature) -> bool:
    """Returns whether the table of items holds a feature: what the catalog says, and the id itself."""
    return feature.name == "item_id" or (feature.table == "items" and feature.role != "behavior")


def is_age(feature: Feature) -> bool:
    """Returns whether a feature is a behavior's age at the impression, which no behavior has of its own."""
    return feature.column == AGE and feature.role == "behavior"


def item_features(feature_set: FeatureSet) -> list[Feature]:
    return [feature for feature in feature_set.features if is_of_items(feature)]


def item_dtype(feature_set: FeatureSet, has_versions: bool = False) -> np.dtype:
    """Returns the dtype of an item: its id and what the catalog says of it; of versions, from when on each holds."""
    latest = [(as_known.LATEST, "<i8")] if has_versions else []
    return np.dtype([*(_field(feature.name, feature) for feature in item_features(feature_set)), *latest])


def row_dtype(feature_set: FeatureSet) -> np.dtype:
    """Returns the dtype of a row: what is its own, its item, and the windows of its histories."""
    spec = preprocessing.raw_spec(feature_set)
    own = [_field(c.name, c.feature) for c in feature_set.columns if c.sequence is None and not is_of_items(c.feature)]
    label = [(name, spec[name].dtype.as_numpy_dtype) for name in ("timestamp", *feature_set.label.sources)]
    windows = [(name, kind) for s in feature_set.sequences for name, kind in ((end_of(s), "<i8"), (size_of(s), "<i4"))]
    return np.dtype([(ITEM, "<i4"), *label, *own, *windows])


def history_dtype(feature_set: FeatureSet, sequence: Sequence) -> np.dtype:
    """Returns the dtype of a behavior: its item, its own columns and, where its age is asked for, its time."""
    riding = [feature_set[name] for name in sequence.features]
    own = [_field(f.name, f) for f in riding if not is_of_items(f) and not is_age(f)]
    times = [("timestamp", "<i8")] if any(map(is_age, riding)) else []
    return np.dtype([(ITEM, "<i4"), (SHOWN, "<i4"), *times, *own])


def _field(name: str, feature: Feature) -> tuple[str, typing.Any, tuple[int, ...]]:
    return name, examples.dtype_of(feature), (feature.max_values,) if feature.kind == "ids" else ()


class Known:
    """Which rows of a table of items were known at an instant; without versions, that is all.

    Args:
        items: of `item_dtype` [m].
    """

    def __init__(self, items: np.ndarray):
        self._versions = None
        if as_known.LATEST in items.dtype.names:
            self._versions = as_known.Versions(items["item_id"], items[as_known.LATEST])

    @property
    def has_versions(self) -> bool:
        return self._versions is not None

    def places(self, firsts: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Returns int [n] places in the table, for an item's first int [n] and microseconds int64 [n] of each."""
        if self._versions is None:
            return firsts
        places, _ = self._versions.newest(self._versions.owners[firsts], at)
        return places  # there always is one: an item's first row holds from the beginning


class Shards:
    """One split's rows, in time order, with their histories.

    Attributes:
        feature_set: what the examples hold.
        num_rows: n.
        items: of `item_dtype` [m]; the first stands for padding and holds what is missing.
        has_versions: whether what is known of an item depends on when it is shown.
        digest: hash of the rows, the histories and the items.
    Raises:
        FileNotFoundError: the artifact is not there, or not finished.
        ValueError: files of several artifacts, or files that are not whole.
    """

    def __init__(self, files: typing.Sequence[str]):
        folders = sorted({os.path.dirname(os.path.abspath(file)) for file in files})
        if len(folders) != 1:
            raise ValueError(f"Shards of examples must lie in one folder. Received: {', '.join(folders) or 'no file'}.")
        self.folder = pathlib.Path(folders[0])
        manifest = artifacts.read_manifest(self.folder, KIND, ("feature_set", "digests"))
        self.feature_set = config_lib.from_dict(FeatureSet, manifest["feature_set"])
        _require_all(files, manifest["digests"], self.folder)
        self._shards = [records.Records(file) for file in sorted(files)]
        _require(self._shards, row_dtype(self.feature_set), self.folder)
        self._starts = np.cumsum([0, *(len(shard.array) for shard in self._shards)])
        self.num_rows = int(self._starts[-1])
        self._histories = {s.name: records.Records(self.folder / history_name(s)) for s in self.feature_set.sequences}
        self.items = records.Records(self.folder / ITEMS).array.copy()
        self._known = Known(self.items)
        self.has_versions = self._known.has_versions
        names = {ITEMS, *map(history_name, self.feature_set.sequences), *(os.path.basename(file) for file in files)}
        self.digest = artifacts.fingerprint({name: manifest["digests"][name] for name in sorted(names)})

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Returns rows, records [k] of `row_dtype`, in the order of their places int64 [k]."""
        result = np.empty(len(places), row_dtype(self.feature_set))
        shard_of = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(shard_of).tolist():
            mine = shard_of == number
            result[mine] = self._shards[number].array[places[mine] - self._starts[number]]
        return result

    def column(self, name: str) -> np.ndarray:
        """Returns a column of one value per row [n], of those of `row_dtype` and of the items."""
        parts = [
            piece[name].copy() if name in piece.dtype.names else self.items[name][piece[ITEM]]
            for piece in self.pieces()
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def pieces(self) -> typing.Iterator[np.ndarray]:
        """Yields all rows in time order, in pieces of `row_dtype`."""
        for shard in self._shards:
            yield from shard.pieces(PIECE)

    def window(self, rows: np.ndarray, sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """Returns the behaviors of rows one after another, records [t] of `history_dtype`, and the mask bool [k, L].

        A behavior points to the version of its item that its row knows. Cost grows with the behaviors, not with the
        sequence's length.
        """
        history = self._histories[sequence.name].array
        ends, sizes = rows[end_of(sequence)], rows[size_of(sequence)]
        mask = np.arange(sequence.length) < sizes[:, None]
        parts = [history[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist())]
        acts = np.concatenate(parts) if parts else history[:0].copy()
        if self.has_versions:
            acts[ITEM] = self._known.places(acts[ITEM], np.repeat(rows["timestamp"], sizes))
        return acts, mask

    def histories(self, sequence: Sequence) -> typing.Iterator[np.ndarray]:
        """Yields a sequence's behaviors in pieces of `history_dtype`, each once, with the first place of its item."""
        yield from self._histories[sequence.name].pieces(PIECE)

    def release(self) -> None:
        """Takes what was read out of this process' memory."""
        for one in (*self._shards, *self._histories.values()):
            one.release()

    def gather(self, places: np.ndarray, names: typing.Collection[str] | None = None) -> Columns:
        """Returns columns of rows as `examples.build` makes them, by name; of None, all that `raw_spec` has.

        Args:
            places: int64 [k].
        """
        rows, result = self.rows(places), {}
        wanted = set(preprocessing.raw_spec(self.feature_set)) if names is None else set(names)
        for name in wanted & set(rows.dtype.names):
            result[name] = rows[name]
        own = [c for c in self.feature_set.columns if c.sequence is None and is_of_items(c.feature)]
        result |= {c.name: self.items[c.name][rows[ITEM]] for c in own if c.name in wanted}
        for sequence in self.feature_set.sequences:
            columns = [c for c in self.feature_set.columns if c.sequence == sequence and c.name in wanted]
            if columns:
                acts, mask = self.window(rows, sequence)
                result |= {c.name: padded(values_of(acts, c, self.items, rows, mask), mask, c.missing) for c in columns}
        return result


def values_of(acts: np.ndarray, column: Column, items: np.ndarray, rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns a column's values of behaviors [t]; `rows` and `mask` [k, L] say to which row each belongs."""
    if is_of_items(column.feature):
        return items[column.feature.name][acts[ITEM]]
    if is_age(column.feature):
        shown = np.repeat(rows["timestamp"], mask.sum(1))
        is_told = acts["timestamp"] != instants.NULL  # else it was served without its age
        at = np.where(is_told, acts["timestamp"], shown)
        return np.where(is_told, (shown - at) / examples.SECOND_US, np.nan).astype(np.float32)
    return acts[column.feature.name]


def padded(values: np.ndarray, mask: np.ndarray, missing: float) -> np.ndarray:
    """Returns values of behaviors [t] as rows [k, L], right-padded with what stands for missing."""
    result = np.full(mask.shape, missing, values.dtype)
    result[mask] = values
    return result


def is_shards(files: typing.Sequence[str]) -> bool:
    """Returns whether files are shards of rows; else they are TFRecords."""
    return bool(files) and all(file.endswith(records.SUFFIX) for file in files)


def read_columns(pattern: str, names: typing.Collection[str] | None = None) -> Columns:
    """Reads all rows of a split into memory: for small data."""
    shards = Shards(sorted(glob.glob(pattern)))
    return shards.gather(np.arange(shards.num_rows), names)


def _require_all(files: typing.Sequence[str], known: typing.Collection[str], folder: pathlib.Path) -> None:
    """Refuses files that the manifest does not name, and a split of which some are missing."""
    given = {os.path.basename(file) for file in files}
    splits = {name.split("-")[0] for name in given}
    wanted = {name for name in known if "-of-" in name and name.split("-")[0] in splits}
    if given != wanted:
        differing = ", ".join(sorted(given ^ wanted))
        raise ValueError(
            f"{folder} must have the shards that its manifest names, all of a split. Differing: {differing}. Copy them "
            "again, or write the examples again."
        )


def _require(found: typing.Sequence[records.Records], dtype: np.dtype, folder: pathlib.Path) -> None:
    for one in found:
        if one.array.dtype != dtype:
            raise ValueError(
                f"{folder} must hold rows of {dtype.names}, as its manifest says. Received: {one.array.dtype.names}. "
                "Write the examples again."
            )
