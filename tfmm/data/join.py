"""Examples without TFX: impressions joined with users, items and histories over files partitioned on disk.

Three passes: the logs are spread over partitions by user; each partition is joined in memory; the rows of all are put
into time order, shard by shard. Memory is that of one partition, of one shard and of the catalog, whatever the rows.
"""

from __future__ import annotations

import collections
import glob
import hashlib
import logging
import math
import pathlib
import shutil
import typing

import numpy as np

from tfmm import artifacts, dead_letters
from tfmm import config as config_lib
from tfmm.config import DataConfig
from tfmm.data import (
    as_known,
    declared,
    distinct,
    examples,
    instants,
    left_out,
    reading,
    records,
    schema,
    shards,
    spans,
    times,
)
from tfmm.data import behaviors as behaviors_lib
from tfmm.features import Column, FeatureSet, Sequence

ROWS_PER_PARTITION = 50_000  # impressions, whose users' behaviors are in memory together
LOG_ROWS_PER_PARTITION = 4_000_000  # behaviors, and users
ROWS_PER_SHARD = 262_144
_PARTS, _TIMES = ".parts", "times.bin"
_LOG = logging.getLogger(__name__)
Columns = dict[str, np.ndarray]
Say = typing.Callable[[str], object]


def write_examples(
    data_dir: str | pathlib.Path,
    config: DataConfig,
    feature_set: FeatureSet,
    output_dir: str | pathlib.Path,
    say: Say = lambda line: None,
    before: spans.Before = spans.FROM_SCRATCH,
    newest_us: int | None = None,
) -> dict[str, typing.Any]:
    """Joins a data folder, and says how many rows it wrote and which were left out.

    `before` says how much is held out; of a model that goes on, only impressions after its watermark are joined, whose
    histories reach back. An impression later than `newest_us` (None: a day from now) has not happened, and is a dead
    letter.

    Writes `{train,eval}-*.npy` with histories and items, see `tfmm.data.shards`, `dead_letter-*.parquet` (rows that
    were left out, with their reason) and a manifest. An impression of an item that the catalog lacks is a dead letter;
    a behavior of one, since delisted perhaps, stays in the history, without the item's features.

    Returns:
        The manifest: counts `train`, `eval` and `dead_letter`, and the `feature_set`.
    Raises:
        EmptySpan: no impression is later than the watermark.
        ValueError: the data lacks what is declared, a split came out empty, or a rule leaves out more than
            `config.max_bad_fraction` of a table's rows.
    """
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    declared.require(data_dir, feature_set)
    remove_examples(folder)
    try:
        (folder / _PARTS).mkdir()
        counts, digests, span, read = _join(
            data_dir, config, feature_set, folder, folder / _PARTS, before, newest_us or instants.newest_us()
        )
    finally:
        shutil.rmtree(folder / _PARTS)
    span.write(folder)
    for line in span.lines():
        say(line)
    say(f"examples: {counts['train']:,} train, {counts['eval']:,} eval, {counts['dead_letter']:,} rows left out")
    lost = dead_letters.counts(dead_letters.read(folder))
    for line in dead_letters.count_lines(lost, folder):
        say(line)
    left_out.verify(lost, left_out.totals(lost, read, data_dir, feature_set), config.max_bad_fraction, folder)
    received = f"{counts}; {folder}/dead_letter-*.parquet holds the rows that were left out"
    left_out.verify_splits({split: counts[split] > 0 for split in schema.SPLITS}, before.goes_on, received)
    facts = {**counts, "feature_set": config_lib.to_dict(feature_set), "digests": digests}
    return artifacts.write_manifest(folder, shards.KIND, config, parents=[data_dir], **facts)


def remove_examples(folder: pathlib.Path) -> None:
    """Removes what an earlier run wrote, the manifest first, and what a killed one left."""
    files = [artifacts.MANIFEST, spans.FILE, "dead_letter-*.parquet", shards.ITEMS, "*.tfrecord.gz"]
    for name in ("train-*", "eval-*", "history-*"):
        files += [f"{name}{records.SUFFIX}", f".{name}{records.SUFFIX}"]
    for pattern in files:
        for stale in glob.glob(f"{glob.escape(str(folder))}/{pattern}"):
            pathlib.Path(stale).unlink()
    shutil.rmtree(folder / _PARTS, ignore_errors=True)


def _join(
    data_dir: str | pathlib.Path,
    config: DataConfig,
    feature_set: FeatureSet,
    folder: pathlib.Path,
    parts: pathlib.Path,
    before: spans.Before,
    newest_us: int,
) -> tuple[dict[str, int], dict[str, str], spans.Span, dict[str, int]]:
    """Returns the counts of rows, the files' digests, the span, and how many rows of each log were read."""
    seen = times.resolutions(data_dir, config.time_zone)
    seen |= as_known.verified(data_dir, config.time_zone, declared.tables(feature_set))
    for note in times.notes(seen):
        _LOG.warning(note)
    groups = reading.row_groups(data_dir, reading.log_names(data_dir, feature_set), feature_set)
    has_behaviors, has_split = schema.has_table(data_dir, "behaviors"), reading.has_split(groups)
    reader = reading.Reader(feature_set, seen, has_behaviors, has_split, newest_us)
    letters = left_out.Writer(folder)
    catalog = _catalog(reader, reading.row_groups(data_dir, ["items"], feature_set), letters)
    num_rows = collections.Counter[str]()
    for group in groups:
        num_rows[group.table] += group.part.row_groups[group.group]
    num_parts = num_partitions(num_rows)
    tally = spans.Tally(before, newest_us, has_split)
    item_ids, dtypes, read = _spread(reader, groups, num_parts, parts, catalog["item_id"], letters, tally)
    items = _items(item_ids, catalog, feature_set)
    np.save(folder / shards.ITEMS, items)
    known = shards.Known(items)
    first_eval = None if has_split else spans.held_out_from(parts / _TIMES, config.eval_fraction, tally)
    span = tally.span()
    histories = {
        sequence: records.Writer(folder / shards.history_name(sequence), shards.history_dtype(feature_set, sequence))
        for sequence in feature_set.sequences
    }
    for number in range(num_parts):
        files = {table: parts / f"{table}-{number}" for table in dtypes}
        tables = {table: _columns(np.fromfile(path, dtypes[table])) for table, path in files.items() if path.exists()}
        if "impressions" in tables:
            joined = _join_part(tables, items, known, catalog["item_id"], first_eval, feature_set, histories, letters)
            for split, rows in joined.items():
                with (parts / f"{split}-{number}").open("wb") as file:
                    records.write(file, rows)
        for path in files.values():
            path.unlink(missing_ok=True)
    for writer in histories.values():
        writer.close()
    dtype = shards.row_dtype(feature_set)
    counts = {split: in_time_order(parts, split, num_parts, folder, items, dtype) for split in schema.SPLITS}
    counts["dead_letter"] = letters.close()
    return counts, digests(folder), span, read


def _catalog(reader: reading.Reader, groups: typing.Iterable[reading.RowGroup], letters: left_out.Writer) -> Columns:
    """Returns the items, ascending by id."""
    parts = []
    for group in groups:
        good, left = reader.catalog(group)
        letters.append(left)
        parts.append(good)
    return reading.sorted_by("item_id", parts)


def num_partitions(num_rows: typing.Mapping[str, int]) -> int:
    """Returns how many partitions by user keep each small, whichever table is large.

    >>> num_partitions({"impressions": 120_000}), num_partitions({"impressions": 1_000, "behaviors": 40_000_000})
    (2, 10)
    """
    largest = {"impressions": ROWS_PER_PARTITION, "behaviors": LOG_ROWS_PER_PARTITION, "users": LOG_ROWS_PER_PARTITION}
    return max(1, *(round(num_rows.get(table, 0) / rows) for table, rows in largest.items()))


def _spread(
    reader: reading.Reader,
    groups: typing.Iterable[reading.RowGroup],
    num_parts: int,
    parts: pathlib.Path,
    listed: np.ndarray,
    letters: left_out.Writer,
    tally: spans.Tally,
) -> tuple[np.ndarray, dict[str, np.dtype], dict[str, int]]:
    """Appends each log's good rows to a file per partition and table, of impressions those of the span.

    Returns all item ids, the tables' dtypes, and how many rows of each were read.
    """
    item_ids, dtypes, read = distinct.Distinct(), {}, dict.fromkeys(reading.LOGS, 0)
    item_ids.add(listed)
    with (parts / _TIMES).open("wb") as shown_at:
        for group in groups:
            if group.table == "impressions":
                at, new = tally.read(group.part, group.group, reader.seen[group.table])
                records.write(shown_at, at[new])
                if not new.any() and tally.before.goes_on and reader.has_behaviors:
                    continue  # else its clicks are behaviors
            read[group.table] += group.part.row_groups[group.group]
            good, left = reader.log(group)
            letters.append(left)
            if group.table == "impressions":
                good["impressions"] = spans.of_span(good["impressions"], tally)
            for table, columns in good.items():
                rows = records.structured(columns)
                dtypes[table] = rows.dtype
                if "item_id" in columns:
                    item_ids.add(columns["item_id"])
                shard_of = reading.shards_of(columns, num_parts)
                order = np.argsort(shard_of, kind="stable")
                starts = np.searchsorted(shard_of[order], np.arange(num_parts + 1))
                for number in np.unique(shard_of).tolist():
                    with (parts / f"{table}-{number}").open("ab") as file:
                        records.write(file, rows[order[starts[number] : starts[number + 1]]])
    ids, _ = item_ids.counted()
    return ids[ids != 0], dtypes, read


def _join_part(
    tables: typing.Mapping[str, Columns],
    items: np.ndarray,
    known: shards.Known,
    listed: np.ndarray,
    first_eval: int | None,
    feature_set: FeatureSet,
    histories: typing.Mapping[Sequence, records.Writer],
    letters: left_out.Writer,
) -> dict[str, np.ndarray]:
    """Joins one partition: returns its rows in time order by split, and appends the behaviors that they show."""
    bad, left = reading.unlisted(tables["impressions"], listed)
    letters.append(left)
    shown = {name: values[~bad] for name, values in tables["impressions"].items()}
    order = examples.time_order(shown)
    shown = {name: values[order] for name, values in shown.items()}
    is_eval = reading.is_eval(shown, first_eval)
    users = reading.users_of([tables["users"]] if "users" in tables else [], feature_set)
    behaviors = reading.behaviors_of([tables["behaviors"]] if "behaviors" in tables else [], feature_set)
    rows = np.zeros(len(order), shards.row_dtype(feature_set))
    rows[shards.ITEM] = known.places(_places(shown["item_id"], items), shown["timestamp"])
    for name in set(_columns(rows)) & set(shown):
        rows[name] = shown[name]
    own = as_known.look_up(shown["user_id"], users, "user_id", shown["timestamp"])
    for feature in feature_set.of_table("users"):
        rows[feature.name] = examples.look_up(users, own, Column(feature.name, feature))
    for sequence, history in histories.items():
        acts = examples.in_order(behaviors, sequence)
        keys = shown["user_id"], shown["timestamp"], acts["user_id"], acts[examples.LATEST]
        start, end = behaviors_lib.windows(*keys, sequence.length)
        kept = _cover(start, end, len(acts["user_id"])) > 0
        before = np.cumsum(np.append(0, kept))
        rows[shards.end_of(sequence)] = history.num_records + before[end]
        rows[shards.size_of(sequence)] = end - start
        found = np.zeros(int(kept.sum()), shards.history_dtype(feature_set, sequence))
        for name in set(_columns(found)) & set(acts):
            found[name] = acts[name][kept]
        found[shards.ITEM] = _places(acts["item_id"][kept], items)
        found[shards.SHOWN] = _cover(start[~is_eval], end[~is_eval], len(acts["user_id"]))[kept]
        history.append(found)
    return dict(zip(schema.SPLITS, (rows[~is_eval], rows[is_eval])))


def _cover(start: np.ndarray, end: np.ndarray, num_behaviors: int) -> np.ndarray:
    """Returns how many of the windows start <= i < end hold each behavior, int64 [n].

    >>> _cover(np.array([0, 1]), np.array([2, 2]), 3).tolist()
    [1, 2, 0]
    """
    begun, ended = (np.bincount(places, minlength=num_behaviors + 1) for places in (start, end))
    return np.cumsum(begun - ended)[:num_behaviors]


def in_time_order(
    parts: pathlib.Path, split: str, num_parts: int, folder: pathlib.Path, items: np.ndarray, dtype: np.dtype
) -> int:
    """Writes the shards of a split from the sorted rows of all partitions; returns the number of rows."""
    files = [path for path in (parts / f"{split}-{number}" for number in range(num_parts)) if path.exists()]
    firsts = _first_times(files, dtype)
    cuts = [np.append(_places_of(np.fromfile(path, dtype)["timestamp"], firsts), _count(path, dtype)) for path in files]
    for shard in range(len(firsts)):
        pieces = [
            np.fromfile(path, dtype, int(cut[shard + 1] - cut[shard]), offset=int(cut[shard]) * dtype.itemsize)
            for path, cut in zip(files, cuts)
        ]
        rows = np.concatenate(pieces)
        rows = rows[examples.time_order(_columns(rows) | {"item_id": items["item_id"][rows[shards.ITEM]]})]
        with records.Writer(folder / shards.shard_name(split, shard, len(firsts)), dtype) as writer:
            writer.append(rows)
    return sum(_count(path, dtype) for path in files)


def _first_times(files: typing.Sequence[pathlib.Path], dtype: np.dtype) -> np.ndarray:
    """Returns the first time of each shard, ascending; shards are of about one size, by a sample of each partition."""
    sizes = [_count(path, dtype) for path in files]
    num_shards = math.ceil(sum(sizes) / ROWS_PER_SHARD)
    if num_shards == 0:
        return np.zeros(0, np.int64)
    step = max(1, ROWS_PER_SHARD // 512)
    sample = np.sort(np.concatenate([np.fromfile(path, dtype)["timestamp"][::step].copy() for path in files]))
    firsts = sample[np.arange(num_shards) * len(sample) // num_shards]
    firsts[0] = np.iinfo(np.int64).min
    return np.unique(firsts)


def _places_of(sorted_times: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.ascontiguousarray(sorted_times), firsts)


def _count(path: pathlib.Path, dtype: np.dtype) -> int:
    return path.stat().st_size // dtype.itemsize


def _items(item_ids: np.ndarray, catalog: Columns, feature_set: FeatureSet) -> np.ndarray:
    """Returns the table of items, see `shards`: padding first, then by id."""
    ids, found = item_ids, as_known.find(item_ids, catalog["item_id"])
    has_versions = as_known.LATEST in catalog
    if has_versions:
        ids, found = _with_versions(item_ids, catalog["item_id"])
    result = np.zeros(len(ids) + 1, shards.item_dtype(feature_set, has_versions))
    result["item_id"][1:] = ids
    for feature in shards.item_features(feature_set):
        if feature.name != "item_id":
            column = Column(feature.name, feature)
            result[feature.name][0] = column.missing
            result[feature.name][1:] = examples.look_up(catalog, found, column)
    if has_versions:
        places, is_version = found
        latest = np.full(len(ids), instants.NULL)
        latest[is_version] = catalog[as_known.LATEST][places[is_version]]
        result[as_known.LATEST] = np.append(instants.NULL, latest)
    return result


def _with_versions(item_ids: np.ndarray, listed: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Returns for each item a row of which nothing is known, then its versions: ids, and what is there of the catalog.

    >>> ids, (places, is_version) = _with_versions(np.array([5, 6, 7]), np.array([0, 5, 5, 7]))
    >>> ids.tolist(), places[is_version].tolist(), is_version.astype(int).tolist()
    ([5, 5, 5, 6, 7, 7], [1, 2, 3], [0, 1, 1, 0, 0, 1])
    """
    rows = np.flatnonzero(listed)
    firsts = np.searchsorted(listed[rows], item_ids)
    places = np.insert(rows, firsts, -1)
    return np.insert(listed[rows], firsts, item_ids), (places, places >= 0)


def _places(item_ids: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Returns the first places of ids in the table of items, which has them all."""
    return np.searchsorted(items["item_id"][1:], item_ids) + 1


def _columns(rows: np.ndarray) -> Columns:
    """Returns the columns of a structured array [n] by name."""
    return {name: rows[name] for name in rows.dtype.names or ()}


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns the hash of each file of examples in a folder."""
    files = sorted(path for path in folder.glob(f"*{records.SUFFIX}") if not path.name.startswith("."))
    return {path.name: _digest(path) for path in files}


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        total = hashlib.sha256()
        while piece := file.read(2**20):
            total.update(piece)
    return total.hexdigest()
