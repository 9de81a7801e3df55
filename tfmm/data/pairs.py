"""Query -> positive pairs for semantic-aware contrastive learning, from search and purchase logs."""

from __future__ import annotations

import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfmm import artifacts
from tfmm.config import DataConfig, PairsConfig
from tfmm.data import behaviors as behaviors_lib
from tfmm.data import examples, schema


class _Links(typing.NamedTuple):
    """n pairs by row numbers; int64 [n] each, -1 where there is none."""

    query: np.ndarray  # row of searches, or of items for co-purchase pairs
    positive: np.ndarray  # row of items
    negative: np.ndarray  # row of items
    query_id: np.ndarray  # fingerprint of the search, or of the order


def build_pairs(
    data_dir: str | pathlib.Path,
    config: PairsConfig,
    output_dir: str | pathlib.Path,
    data_config: DataConfig | None = None,
) -> dict[str, dict[str, typing.Any]]:
    """Writes pairs per modality: `<output_dir>/<modality>/{train,heldout}.parquet` (section 3.2).

    With searches: the query of a search, and the item that it ended in buying; the hard negative is another
    item clicked in that search, to which the positive's page led (`trigger_item_id`; section 6.1.1).

    Differs from the paper: without searches, but with orders, a pair is two adjacent lines of one order. Such
    co-purchase pairs have no negative, and say less than a search does.

    Only logs earlier than the first impression of the eval split are used. The split into train and held-out
    pairs is by positive item: no held-out positive takes part in training, be it as query or as negative.

    Args:
        data_dir: the data folder.
        config: held-out share, most pairs per modality, seed.
        output_dir: made where missing.
        data_config: how impressions are split; None: DataConfig().
    Returns:
        The manifest per modality: `train`, `heldout`, `source` (search or co-purchase), `with_negative`.
    Raises:
        ValueError: a catalog with images or titles gives no pairs.
    """
    folder = pathlib.Path(output_dir)
    wanted = [modality for modality in schema.modalities(data_dir) if modality in schema.QUERY_COLUMNS]
    if not wanted:
        return {}
    if not schema.has_table(data_dir, "behaviors"):
        raise ValueError(
            f"{data_dir} must have a table 'behaviors' with purchases to learn encoders from. Add it, or a "
            "`vector` column to items in place of image and title."
        )
    items = schema.read_table(data_dir, "items", ["item_id", *(schema.CONTENT_COLUMNS[m] for m in wanted)])
    item_ids = schema.fingerprints(items["item_id"])
    before = _first_eval(data_dir, data_config or DataConfig())
    if schema.has_table(data_dir, "searches"):
        source, queries = "search", schema.read_table(data_dir, "searches")
        links = _search_links(data_dir, queries, item_ids, before)
    else:
        source, queries = "co-purchase", items
        links = _order_links(data_dir, item_ids, before)
    manifests = {}
    for modality in wanted:
        content = schema.CONTENT_COLUMNS[modality]
        query_column = schema.QUERY_COLUMNS[modality] if source == "search" else content
        kept = _usable(links, queries[query_column], items[content], source == "co-purchase")
        manifests[modality] = _write(
            folder / modality, modality, config, source, kept, queries[query_column], items[content], item_ids
        )
    return manifests


def is_heldout(item_ids: np.ndarray, config: PairsConfig) -> np.ndarray:
    """Returns bool [n]: a fixed share of all items, drawn by a seeded hash, whatever the log holds."""
    draw = behaviors_lib.tie_break(item_ids, np.full(len(item_ids), config.seed)) >> np.uint64(11)
    return draw.astype(np.float64) / 2.0**53 < config.heldout_fraction


def _first_eval(data_dir: str | pathlib.Path, config: DataConfig) -> int:
    shown = schema.read_table(data_dir, "impressions", ["timestamp", "split"])
    times = schema.microseconds(shown["timestamp"])
    if shown["split"].null_count == shown.num_rows:
        return examples.eval_start(times[times > np.iinfo(np.int64).min], config.eval_fraction)
    in_eval = np.asarray(pc.fill_null(pc.equal(shown["split"], "eval"), False).to_numpy(), bool)
    return int(times[in_eval].min()) if in_eval.any() else np.iinfo(np.int64).max


def _rows_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns int64 [n] rows of `known` that hold `ids`; -1 where none does, and for id 0."""
    order = np.argsort(known, kind="stable")
    places, found = examples.find(ids, known[order])
    return np.where(found & (ids != 0), order[places] if len(order) else -1, -1)


def _search_links(data_dir: str | pathlib.Path, searches: pa.Table, item_ids: np.ndarray, before: int) -> _Links:
    acts = schema.read_table(data_dir, "behaviors", ["item_id", "timestamp", "action", "search_id", "trigger_item_id"])
    acts = acts.filter(pc.is_valid(acts["search_id"]))
    search_ids = schema.fingerprints(searches["search_id"])
    search = _rows_of(schema.fingerprints(acts["search_id"]), search_ids)
    item = _rows_of(schema.fingerprints(acts["item_id"]), item_ids)
    trigger = _rows_of(schema.fingerprints(acts["trigger_item_id"]), item_ids)
    times, action = schema.microseconds(acts["timestamp"]), acts["action"].to_numpy()
    bought = np.flatnonzero((action == "purchase") & (search >= 0) & (item >= 0) & (times < before))
    bought = bought[np.lexsort((item_ids[item[bought]], search_ids[search[bought]]))]
    led = np.flatnonzero((action == "click") & (search >= 0) & (item >= 0) & (trigger >= 0) & (trigger != item))
    led = led[np.lexsort((item_ids[item[led]], times[led]))]
    negatives: dict[tuple[int, int], int] = {}
    bought_in_search = set(zip(search[bought].tolist(), item[bought].tolist()))
    for row in led.tolist():  # the newest such click wins
        if (search[row], item[row]) not in bought_in_search:
            negatives[int(search[row]), int(trigger[row])] = int(item[row])
    negative = [negatives.get(key, -1) for key in zip(search[bought].tolist(), item[bought].tolist())]
    return _Links(search[bought], item[bought], np.array(negative, np.int64), search_ids[search[bought]])


def _order_links(data_dir: str | pathlib.Path, item_ids: np.ndarray, before: int) -> _Links:
    acts = schema.read_table(data_dir, "behaviors", ["item_id", "timestamp", "action", "order_id", "order_line"])
    if acts["order_id"].null_count == acts.num_rows:
        raise ValueError(
            f"{data_dir} must have a table 'searches', or `order_id` and `order_line` in 'behaviors', to "
            "learn encoders from. Add one, or give items a `vector` column in place of image and title."
        )
    acts = acts.filter(pc.and_(pc.equal(acts["action"], "purchase"), pc.is_valid(acts["order_id"])))
    item, orders = (
        _rows_of(schema.fingerprints(acts["item_id"]), item_ids),
        schema.fingerprints(acts["order_id"]),
    )
    times = schema.microseconds(acts["timestamp"])
    lines = pc.fill_null(acts["order_line"], 0).to_numpy()
    sorting = np.lexsort((behaviors_lib.tie_break(schema.fingerprints(acts["item_id"])), lines, orders))
    item, orders, times = item[sorting], orders[sorting], times[sorting]
    adjacent = (
        (orders[1:] == orders[:-1])
        & (item[1:] >= 0)
        & (item[:-1] >= 0)
        & (item[1:] != item[:-1])
        & (times[1:] < before)
        & (times[:-1] < before)
    )
    first = np.flatnonzero(adjacent)
    return _Links(item[first], item[first + 1], np.full(len(first), -1, np.int64), orders[first])


def _usable(links: _Links, queries: pa.ChunkedArray, contents: pa.ChunkedArray, co_purchase: bool) -> _Links:
    """Leaves out pairs without a query or a positive content; takes away negatives without content."""
    has_query, has_content = (_filled(values) for values in (queries, contents))
    kept = has_query[links.query] & has_content[links.positive]
    if co_purchase:  # two items of one title say nothing
        codes = contents.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
        kept &= codes[links.query] != codes[links.positive]
    query, positive, negative, query_id = (values[kept] for values in links)
    negative = np.where((negative >= 0) & has_content[negative], negative, -1)
    return _Links(query, positive, negative, query_id)


def _filled(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.greater(pc.binary_length(values), 0), False).to_numpy(), bool)


def _write(
    folder: pathlib.Path,
    modality: str,
    config: PairsConfig,
    source: str,
    links: _Links,
    queries: pa.ChunkedArray,
    contents: pa.ChunkedArray,
    item_ids: np.ndarray,
) -> dict[str, typing.Any]:
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(links.query))[: config.max_pairs]
    query, positive, negative, query_id = (values[order] for values in links)
    held = is_heldout(item_ids, config)
    in_training = ~held[positive] if source == "search" else ~held[positive] & ~held[query]
    counts = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", in_training), ("heldout", held[positive])):
        split_negative = np.where((negative >= 0) & held[negative], -1, negative) if split == "train" else negative
        rival = pa.array(split_negative[rows], mask=split_negative[rows] < 0)
        table = pa.table(
            {
                "query": queries.take(pa.array(query[rows])),
                "positive": contents.take(pa.array(positive[rows])),
                "positive_item_id": item_ids[positive[rows]],
                "negative": contents.take(rival),
                "negative_item_id": pa.array(item_ids).take(rival),
                "query_id": query_id[rows],
            }
        )
        counts[split] = table.num_rows
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=8_192)
        if split == "train":
            counts["with_negative"] = table.num_rows - table["negative"].null_count
    if not counts["train"] or not counts["heldout"]:
        raise ValueError(
            f"Modality {modality!r} must have pairs to train on and to hold out. Received: {counts}. "
            "Purchases must carry the `search_id` of a search, or `order_id` and `order_line`, and be "
            "earlier than the eval split."
        )
    return artifacts.write_manifest(folder, "pairs", config, modality=modality, source=source, **counts)
