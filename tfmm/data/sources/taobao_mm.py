"""Converts TAOBAO-MM (Alibaba's MUSE release): hashed ids, long histories and one embedding per item.

The source has no times. Histories are lists, the newest on the right; samples come in two days, train and
test. So times are synthetic: all train impressions stand at TRAIN_TIME_US, all test ones a day later, and a
history's items one second apart, the newest one second before the day of its file. They order what the source
orders, and say no more.

Field names of the source: 129_1 user, 205 item, 206 category, 205_c the embedding as int8, 150_2_180 and
151_2_180 the history's items and categories, label_0 the one-hot of [no click, click]. Id 0 is missing.
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfmm import artifacts
from tfmm.data import schema

TRAIN_TIME_US = 1_704_153_600_000_000  # 2024-01-02 00:00 UTC
DAY_US, SECOND_US = 86_400_000_000, 1_000_000
_TIMES = {"train": TRAIN_TIME_US, "test": TRAIN_TIME_US + DAY_US}


def convert(src: str | pathlib.Path, dst: str | pathlib.Path) -> dict[str, typing.Any]:
    """Writes items, behaviors and impressions.

    Items are the union of all ids seen; an item without features has the category that histories give it, or
    none, and an item without an embedding has no vector. Rows with a missing id are left out and counted.

    Args:
        src: folder of {train,test}_samples, {train,test}_user_features, item_features and
            scl_embedding_int8_p90, each `.parquet`.
        dst: made where missing.
    Returns:
        The manifest: rows per table, `left_out` rows, `dim` of the vectors.
    Raises:
        FileNotFoundError: a file of `src` is missing.
    """
    source, folder = pathlib.Path(src), pathlib.Path(dst).absolute()  # pyarrow takes others for URIs
    impressions = _impressions(source)
    behaviors, categories = _behaviors(source)
    left_out = {}
    for name, table in (("impressions", impressions), ("behaviors", behaviors)):
        left_out[name] = int(((table["item_id"].to_numpy() == 0) | (table["user_id"].to_numpy() == 0)).sum())
    impressions, behaviors = _with_ids(impressions), _with_ids(behaviors)
    items, dim = _items(source, impressions, behaviors, categories)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"items": items, "behaviors": behaviors, "impressions": impressions}
    for name, table in tables.items():
        pq.write_table(schema.conform(table, name), folder / f"{name}.parquet", row_group_size=65_536)
    rows = {name: table.num_rows for name, table in tables.items()}
    return artifacts.write_manifest(folder, "data", source="taobao_mm", rows=rows, left_out=left_out, dim=dim)


def dequantize(values: np.ndarray) -> np.ndarray:
    """Turns int8 values, truncated from 127 times a unit vector's, into unit vectors again.

    Args:
        values: int8 [n, D].
    Returns:
        float32 [n, D] of norm 1; zeros stay zeros.
    """
    vectors = values.astype(np.float32) / 127
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _read(folder: pathlib.Path, name: str) -> pa.Table:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. `src` must hold TAOBAO-MM's tables as Parquet.")
    return pq.ParquetFile(path).read()


def _impressions(source: pathlib.Path) -> pa.Table:
    parts = []
    for split, time in _TIMES.items():
        samples = _read(source, f"{split}_samples")
        label = np.array(samples["label_0"].to_pylist(), np.int64).reshape(-1, 2)[:, 1]
        parts.append(
            pa.table(
                {
                    "user_id": samples["129_1"],
                    "item_id": samples["205"],
                    "timestamp": pa.array(np.full(len(label), time), pa.timestamp("us")),
                    "label": label,
                    "split": pa.array(["eval" if split == "test" else "train"] * len(label)),
                }
            )
        )
    return pa.concat_tables(parts)


def _behaviors(source: pathlib.Path) -> tuple[pa.Table, dict[int, int]]:
    users, items, times, categories = [], [], [], []
    known: dict[int, np.ndarray] = {}
    for split, day in _TIMES.items():
        table = _read(source, f"{split}_user_features").select(["129_1", "150_2_180", "151_2_180"])
        for user, history, kinds in zip(*(table[name].to_pylist() for name in table.column_names)):
            history, kinds = np.array(history, np.int64), np.array(kinds, np.int64)
            if user in known:  # of the later list, what the earlier one does not hold
                new = len(history) - _overlap(known[user], history)
                history, kinds = history[len(history) - new :], kinds[len(kinds) - new :]
            else:
                known[user] = history
            users.append(np.full(len(history), user, np.int64))
            items.append(history)
            times.append(day - SECOND_US * np.arange(len(history), 0, -1))
            categories.append(kinds)
    item, category = np.concatenate(items), np.concatenate(categories)
    count = len(item)
    table = pa.table(
        {
            "user_id": np.concatenate(users),
            "item_id": item,
            "timestamp": pa.array(np.concatenate(times), pa.timestamp("us")),
            "action": pa.array(["click"] * count),
        }
    )
    return table, {i: c for i, c in zip(item.tolist(), category.tolist()) if c != 0}


def _overlap(earlier: np.ndarray, later: np.ndarray) -> int:
    """Returns the most values that end `earlier` and begin `later`."""
    for size in range(min(len(earlier), len(later)), 0, -1):
        if np.array_equal(earlier[len(earlier) - size :], later[:size]):
            return size
    return 0


def _with_ids(table: pa.Table) -> pa.Table:
    kept = (table["item_id"].to_numpy() != 0) & (table["user_id"].to_numpy() != 0)
    return table.filter(pa.array(kept))


def _items(
    source: pathlib.Path, impressions: pa.Table, behaviors: pa.Table, categories: dict[int, int]
) -> tuple[pa.Table, int]:
    described, embedded = _read(source, "item_features"), _read(source, "scl_embedding_int8_p90")
    for item, category in zip(described["205"].to_pylist(), described["206"].to_pylist()):
        if category:
            categories[item] = category
    vectors = dequantize(np.array(embedded["205_c"].to_pylist(), np.int8))
    row_of = {item: row for row, item in enumerate(embedded["205"].to_pylist())}
    ids = np.unique(
        np.concatenate(
            [
                table[name].to_numpy()
                for table, name in (
                    (impressions, "item_id"),
                    (behaviors, "item_id"),
                    (described, "205"),
                    (embedded, "205"),
                )
            ]
        )
    )
    ids = ids[ids != 0]
    table = pa.table(
        {
            "item_id": ids,
            "vector": pa.array(
                [vectors[row_of[item]] if item in row_of else None for item in ids.tolist()],
                pa.list_(pa.float32()),
            ),
            "category": pa.array([categories.get(item) for item in ids.tolist()], pa.int64()),
        }
    )
    return table, int(vectors.shape[1])
