"""Positive pairs for semantic-aware contrastive learning, from searches and purchases, orders, or clicks."""

from __future__ import annotations

import functools
import itertools
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfmm import artifacts
from tfmm.config import DataConfig, PairsConfig
from tfmm.data import as_known, declared, examples, instants, scarcity, schema, times
from tfmm.data import behaviors as behaviors_lib
from tfmm.features import FeatureSet
from tfmm.modalities import UNDECLARED, Modality, ModalitySet

SPLITS = ("train", "heldout")
CATEGORY = "category"  # column of items
MIN_PAIRS = 2  # per split: pre-training needs another pair to tell from
GROUP_BYTES = 2**29  # of distinct contents in one row group, about; Parquet's own limit is 2 GiB
MIN_GROUP_ROWS = 8_192


class _Links(typing.NamedTuple):
    """n pairs by row numbers; int64 [n] each, -1 where there is none."""

    query: np.ndarray  # row of searches, or of items where two items make a pair
    positive: np.ndarray  # row of items
    negative: np.ndarray  # row of items
    query_id: np.ndarray  # fingerprint of the search, of the order, or of the user who clicked


_NO_LINKS = _Links(*(np.zeros(0, np.int64) for _ in range(4)))


def build_pairs(
    data_dir: str | pathlib.Path,
    config: PairsConfig,
    output_dir: str | pathlib.Path,
    data_config: DataConfig | None = None,
    modality_set: ModalitySet = UNDECLARED,
    feature_set: FeatureSet | None = None,
) -> dict[str, dict[str, typing.Any]]:
    """Writes pairs per modality: `<output_dir>/<modality>/{train,heldout}.parquet` (section 3.2).

    Each modality takes the first source that gives at least two pairs to train on and two to hold out:

    - "search": the query of a search, and the item that it ended in buying; the hard negative is another item
      clicked in that search, to which the positive's page led (`trigger_item_id`; section 6.1.1). Only where
      searches carry a query of the modality.
    - "co-purchase": two adjacent lines of one order.
    - "co-click": two items that one user clicked one after the other, by the behaviors of action click, else
      by the clicked impressions.

    Differs from the paper: it has searches alone. Co-purchase and co-click pairs are ours; they have no
    negative, and say less than a search does.

    Only logs that were over before the first impression of the eval split are used, and of items with versions
    (`tfmm.data.as_known`) what was known of their contents by then. The split into train and held-out
    pairs is by positive item: no held-out positive takes part in training, be it as query or as negative.

    Args:
        data_dir: the data folder.
        config: held-out share, most pairs and bytes of their distinct contents per modality, seed.
        output_dir: made where missing.
        data_config: how impressions are split and times are read; None: DataConfig().
        modality_set: what the run declares; modalities whose encoders are not trained need no pairs.
        feature_set: says which impressions were clicked; None: FeatureSet().
    Returns:
        The manifest per modality: `train`, `heldout`, `found` (pairs before the draw of at most `max_pairs`),
        `source` (search, co-purchase or co-click), `with_negative`; the fields of `scarcity.LogCounts`, and `warning`:
        sentences where pairs are few, with the reason, or None.
    Raises:
        ValueError: no source gives pairs for the contents of a modality, or a declared one has no content.
    """
    present = [modality_set[name] for name in schema.modalities(data_dir, modality_set)]
    wanted = [modality for modality in present if modality.is_trained]
    if not wanted:
        return {}
    feature_set = feature_set or FeatureSet()
    tables = declared.tables(feature_set, modality_set)
    columns = list(dict.fromkeys(["item_id", *(modality.content for modality in wanted), CATEGORY]))
    data_config = data_config or DataConfig()
    logs = _logs(data_dir, data_config, tables)
    items = as_known.read_table(data_dir, "items", data_config.time_zone, columns, tables, before=logs.before)
    item_ids = schema.fingerprints(items["item_id"])
    counts = functools.cache(logs.counts)
    sources = [
        (source, functools.cache(functools.partial(find, logs, item_ids)), functools.partial(counts, log))
        for source, log, find in (
            ("search", "behaviors", _search_links),
            ("co-purchase", "behaviors", _order_links),
            ("co-click", "behaviors", functools.partial(_click_links, "behaviors", "action", "click")),
            ("co-click", "impressions", functools.partial(_click_links, "impressions", feature_set.label.column, 1)),
        )
    ]
    return {
        modality.name: _write_first(
            functools.partial(schema.read_table, data_dir, tables=tables),
            pathlib.Path(output_dir) / modality.name,
            modality,
            config,
            sources,
            items[modality.content],
            item_ids,
            _categories(items[CATEGORY]),
        )
        for modality in wanted
    }


def _categories(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Returns the items' categories as texts; None where none has one, or many."""
    is_told = column.null_count < len(column) and not pa.types.is_nested(column.type)
    return column.cast(pa.string()) if is_told else None


def is_heldout(item_ids: np.ndarray, config: PairsConfig) -> np.ndarray:
    """Returns bool [n]: a fixed share of all items, drawn by a seeded hash, whatever the log holds."""
    draw = behaviors_lib.tie_break(item_ids, np.full(len(item_ids), config.seed)) >> np.uint64(11)
    return draw.astype(np.float64) / 2.0**53 < config.heldout_fraction


class _Logs(typing.NamedTuple):
    """What pairs may be made of: the logs of a data folder before the eval split."""

    data_dir: str | pathlib.Path
    seen: dict[str, times.Resolution]  # by table
    before: int  # microseconds since 1970: the earliest instant at which an impression of the eval split may have been
    tables: schema.Tables  # with the columns that the run declares
    late_train_share: float = 0.0  # of the train impressions, shown after `before`

    def counts(self, name: str) -> scarcity.LogCounts:
        """Returns how many rows a log has, and how many of them may teach."""
        earliest, latest = times.read_bounds(self.data_dir, name, self.seen[name])
        known = (earliest != instants.NULL) & (latest < self.before)
        return scarcity.LogCounts(name, len(earliest), int(known.sum()), self.before, self.late_train_share)

    def read(self, name: str, columns: typing.Sequence[str]) -> pa.Table:
        """Reads a log's rows that have a time, over earlier than `before`; none where the table is absent."""
        if not schema.has_table(self.data_dir, name):
            return pa.table({column: pa.nulls(0) for column in columns})
        acts = schema.read_table(self.data_dir, name, columns, self.tables)
        earliest, latest = times.read_bounds(self.data_dir, name, self.seen[name])
        instant = pa.array(earliest).cast(pa.timestamp("us"))
        acts = acts.set_column(acts.column_names.index("timestamp"), "timestamp", instant)
        return acts.filter(pa.array((earliest != instants.NULL) & (latest < self.before)))


def _logs(data_dir: str | pathlib.Path, config: DataConfig, tables: schema.Tables) -> _Logs:
    seen = times.resolutions(data_dir, config.time_zone)
    splits = schema.read_table(data_dir, "impressions", ["split"])["split"]
    earliest, _ = times.read_bounds(data_dir, "impressions", seen["impressions"])
    has_time = earliest != instants.NULL
    if splits.null_count == len(splits):
        return _Logs(data_dir, seen, examples.eval_start(earliest[has_time], config.eval_fraction), tables)
    in_eval = has_time & np.asarray(pc.fill_null(pc.equal(splits, schema.EVAL), False).to_numpy(), bool)
    before = int(earliest[in_eval].min()) if in_eval.any() else np.iinfo(np.int64).max
    in_train = has_time & np.asarray(pc.fill_null(pc.equal(splits, schema.TRAIN), False).to_numpy(), bool)
    late = float(np.mean(earliest[in_train] > before)) if in_train.any() else 0.0
    return _Logs(data_dir, seen, before, tables, late)


def _rows_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns int64 [n] rows of `known` that hold `ids`; -1 where none does, and for id 0."""
    order = np.argsort(known, kind="stable")
    places, found = as_known.find(ids, known[order])
    return np.where(found & (ids != 0), order[places] if len(order) else -1, -1)


def _search_links(logs: _Logs, item_ids: np.ndarray) -> _Links:
    names = ["item_id", "timestamp", "action", "search_id", "trigger_item_id"]
    acts = logs.read("behaviors", names)
    acts = acts.filter(pc.is_valid(acts["search_id"]))
    if not acts.num_rows or not schema.has_table(logs.data_dir, "searches"):
        return _NO_LINKS
    search_ids = schema.fingerprints(schema.read_table(logs.data_dir, "searches", ["search_id"])["search_id"])
    search = _rows_of(schema.fingerprints(acts["search_id"]), search_ids)
    item = _rows_of(schema.fingerprints(acts["item_id"]), item_ids)
    trigger = _rows_of(schema.fingerprints(acts["trigger_item_id"]), item_ids)
    acted_at, action = schema.microseconds(acts["timestamp"]), acts["action"].to_numpy()
    bought = np.flatnonzero((action == "purchase") & (search >= 0) & (item >= 0))
    bought = bought[np.lexsort((item_ids[item[bought]], search_ids[search[bought]]))]
    led = np.flatnonzero((action == "click") & (search >= 0) & (item >= 0) & (trigger >= 0) & (trigger != item))
    led = led[np.lexsort((item_ids[item[led]], acted_at[led]))]
    negatives: dict[tuple[int, int], int] = {}
    bought_in_search = set(zip(search[bought].tolist(), item[bought].tolist()))
    for row in led.tolist():  # the newest such click wins
        if (search[row], item[row]) not in bought_in_search:
            negatives[int(search[row]), int(trigger[row])] = int(item[row])
    negative = [negatives.get(key, -1) for key in zip(search[bought].tolist(), item[bought].tolist())]
    return _Links(search[bought], item[bought], np.array(negative, np.int64), search_ids[search[bought]])


def _order_links(logs: _Logs, item_ids: np.ndarray) -> _Links:
    acts = logs.read("behaviors", ["item_id", "timestamp", "action", "order_id", "order_line"])
    if acts["order_id"].null_count == acts.num_rows:
        return _NO_LINKS
    acts = acts.filter(pc.and_(pc.equal(acts["action"], "purchase"), pc.is_valid(acts["order_id"])))
    ids, orders = schema.fingerprints(acts["item_id"]), schema.fingerprints(acts["order_id"])
    lines = pc.fill_null(acts["order_line"], 0).to_numpy()
    sorting = np.lexsort((behaviors_lib.tie_break(ids), lines, orders))
    return _adjacent(_rows_of(ids, item_ids)[sorting], orders[sorting])


def _click_links(name: str, column: str, value: str | int, logs: _Logs, item_ids: np.ndarray) -> _Links:
    """Links of a log's rows whose `column` says that they are clicks by holding `value`."""
    acts = logs.read(name, ["user_id", "item_id", "timestamp", column])
    if not acts.num_rows:
        return _NO_LINKS
    acts = acts.filter(pc.and_(pc.equal(acts[column], value), pc.is_valid(acts["user_id"])))
    ids, users = schema.fingerprints(acts["item_id"]), schema.fingerprints(acts["user_id"])
    sorting = behaviors_lib.sort_behaviors(users, schema.microseconds(acts["timestamp"]), ids)
    return _adjacent(_rows_of(ids, item_ids)[sorting], users[sorting])


def _adjacent(item: np.ndarray, group: np.ndarray) -> _Links:
    """Links each row of a sorted log to the next of its group; int64 [n] rows of items, and group ids, 0: none."""
    of_one_group = (group[1:] == group[:-1]) & (group[1:] != 0)
    first = np.flatnonzero(of_one_group & (item[1:] >= 0) & (item[:-1] >= 0) & (item[1:] != item[:-1]))
    return _Links(item[first], item[first + 1], np.full(len(first), -1, np.int64), group[first])


def _write_first(
    read_table: typing.Callable[[str, list[str]], pa.Table],
    folder: pathlib.Path,
    modality: Modality,
    config: PairsConfig,
    sources: typing.Iterable[tuple[str, typing.Callable[[], _Links], typing.Callable[[], scarcity.LogCounts]]],
    contents: pa.ChunkedArray,
    item_ids: np.ndarray,
    categories: pa.ChunkedArray | None,
) -> dict[str, typing.Any]:
    """Writes the pairs of the first source that gives enough for a modality; returns the manifest."""
    best: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for source, find, count_log in sources:
        if source == "search" and not modality.query_column:
            continue
        links, queries = find(), contents
        if source == "search" and len(links.query):
            queries = read_table("searches", [modality.query_column])[modality.query_column]
        if len(links.query):
            links = _usable(links, queries, contents, from_items=source != "search")
        drawn = _draw(links, queries, contents, config, from_items=source != "search")
        splits = _split(drawn, config, item_ids, from_items=source != "search")
        counts = {split: len(rows.query) for split, rows in splits.items()}
        if min(counts.values()) >= MIN_PAIRS:
            _write(folder, splits, queries, contents, item_ids, categories)
            log, items = count_log(), len(np.unique(item_ids[splits["heldout"].positive]))
            facts: dict[str, typing.Any] = {
                **counts,
                **log._asdict(),
                "warning": scarcity.warning(modality.name, source, {**counts, "heldout_items": items}, log),
                "found": len(links.query),
                "source": source,
                "with_negative": int((splits["train"].negative >= 0).sum()),
            }
            return artifacts.write_manifest(folder, "pairs", config, modality=modality.name, **facts)
        best = max(best, counts, key=lambda found: sum(found.values()))
    query = f"`{modality.query_column}`" if modality.query_column else "`query_column` that the modality declares"
    raise ValueError(
        f"Modality {modality.name!r} must have at least {MIN_PAIRS} pairs to train on and {MIN_PAIRS} to hold out, "
        f"from rows earlier than the eval split. Received: {best}. Pairs come from purchases in 'behaviors' whose "
        f"`search_id` is in 'searches' with a {query}, from purchases with `order_id` and `order_line`, from behaviors "
        "of action click, or from impressions with label 1. Add one of these, or give items vectors of their own in "
        f"place of {modality.content}. `pairs.heldout_fraction` is {config.heldout_fraction}."
    )


def _usable(links: _Links, queries: pa.ChunkedArray, contents: pa.ChunkedArray, from_items: bool) -> _Links:
    """Leaves out pairs without a query or a positive content; takes away negatives without content."""
    has_query, has_content = (_filled(values) for values in (queries, contents))
    kept = has_query[links.query] & has_content[links.positive]
    if from_items:  # two items of one title or picture say nothing
        codes = contents.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
        kept &= codes[links.query] != codes[links.positive]
    query, positive, negative, query_id = (values[kept] for values in links)
    negative = np.where((negative >= 0) & has_content[negative], negative, -1)
    return _Links(query, positive, negative, query_id)


def _filled(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.greater(pc.binary_length(values), 0), False).to_numpy(), bool)


def _draw(
    links: _Links, queries: pa.ChunkedArray, contents: pa.ChunkedArray, config: PairsConfig, from_items: bool
) -> _Links:
    """Draws at most `max_pairs`, and no more than whose distinct contents have `max_content_bytes`."""
    order = np.random.default_rng(config.seed).permutation(len(links.query))[: config.max_pairs]
    query, positive, negative, query_id = (values[order] for values in links)
    sizes = np.concatenate([*map(_sizes, (contents, queries)), [0]])  # the last: no negative
    held = np.stack([query if from_items else query + len(contents), positive, negative], axis=1)
    _, first = np.unique(held, return_index=True)
    taken = np.bincount(first // held.shape[1], sizes[held.ravel()[first]], minlength=len(held)).cumsum()
    fitting = int(np.searchsorted(taken, config.max_content_bytes, side="right"))
    return _Links(*(values[:fitting] for values in (query, positive, negative, query_id)))


def _sizes(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.binary_length(values), 0).to_numpy(), np.int64)


def _split(links: _Links, config: PairsConfig, item_ids: np.ndarray, from_items: bool) -> dict[str, _Links]:
    """Splits pairs by positive item."""
    query, positive, negative, query_id = links
    held = is_heldout(item_ids, config)
    in_training = ~held[positive] & ~held[query] if from_items else ~held[positive]
    not_held = np.where((negative >= 0) & held[negative], -1, negative)
    return {
        split: _Links(*(values[rows] for values in (query, positive, negatives, query_id)))
        for split, rows, negatives in (("train", in_training, not_held), ("heldout", held[positive], negative))
    }


def _write(
    folder: pathlib.Path,
    splits: dict[str, _Links],
    queries: pa.ChunkedArray,
    contents: pa.ChunkedArray,
    item_ids: np.ndarray,
    categories: pa.ChunkedArray | None,
) -> None:
    folder = folder.absolute()  # pyarrow takes other relative names for URIs
    folder.mkdir(parents=True, exist_ok=True)
    query_sizes, sizes = _sizes(queries), _sizes(contents)
    for split, links in splits.items():
        mean = max(1.0, query_sizes[links.query].mean(), sizes[links.positive].mean())
        group_rows = max(MIN_GROUP_ROWS, int(GROUP_BYTES / mean))
        groups = (
            _Links(*(values[start : start + group_rows] for values in links))
            for start in range(0, len(links.query), group_rows)
        )
        said = categories if split == SPLITS[1] else None  # by which accuracies are told
        tables = (_table(group, queries, contents, item_ids, said) for group in groups)
        first = next(tables)
        with pq.ParquetWriter(folder / f"{split}.parquet", first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table, row_group_size=group_rows)


def _table(
    links: _Links,
    queries: pa.ChunkedArray,
    contents: pa.ChunkedArray,
    item_ids: np.ndarray,
    categories: pa.ChunkedArray | None,
) -> pa.Table:
    said = {} if categories is None else {f"positive_{CATEGORY}": _dictionary(categories, links.positive)}
    return pa.table(
        {
            "query": _dictionary(queries, links.query),
            "positive": _dictionary(contents, links.positive),
            "positive_item_id": item_ids[links.positive],
            "negative": _dictionary(contents, links.negative),
            "negative_item_id": pa.array(item_ids).take(pa.array(links.negative, mask=links.negative < 0)),
            "query_id": links.query_id,
            **said,
        }
    )


def _dictionary(values: pa.ChunkedArray, rows: np.ndarray) -> pa.DictionaryArray:
    """Returns `values` at `rows`, null at -1, each distinct value stored once: many pairs share an item."""
    used, places = np.unique(rows, return_inverse=True)
    found = values.take(pa.array(used, mask=used < 0)).combine_chunks().dictionary_encode()
    return pa.DictionaryArray.from_arrays(found.indices.take(pa.array(places)), found.dictionary)
