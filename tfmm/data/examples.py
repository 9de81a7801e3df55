"""Click examples: impressions joined with the user's earlier behaviors, split by time; vocabularies."""

from __future__ import annotations

import glob
import pathlib
import typing

import numpy as np
import tensorflow as tf

from tfmm import artifacts, extras, features
from tfmm import config as config_lib
from tfmm.config import DataConfig
from tfmm.data import behaviors as behaviors_lib

_BATCH = 1024
_GZIP = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
Columns = dict[str, np.ndarray]


def eval_start(times: np.ndarray, eval_fraction: float) -> int:
    """Returns the first timestamp of the eval split: about the last `eval_fraction` of the impressions.

    Args:
        times: int64 [n] microseconds; impressions of one instant fall into one split.

    >>> eval_start(np.array([50, 10, 20, 30, 40]), 0.2)
    50
    """
    if not len(times):
        raise ValueError("The impressions table must have rows. Received: none.")
    place = min(int(len(times) * (1 - eval_fraction)), len(times) - 1)
    return int(np.partition(times, place)[place])


def build(impressions: Columns, behaviors: Columns, catalog: Columns, max_behaviors: int) -> Columns:
    """Joins impressions with their histories and categories.

    Args:
        impressions: `user_id`, `item_id`, `timestamp` (the earliest instant), `label`: int64 [B].
        behaviors: `user_id`, `item_id`, `timestamp`, and perhaps `order_line`: int64 [n], in any order; perhaps
            `latest`, until when each may have happened (`tfmm.data.times`), else that is `timestamp`.
        catalog: `item_id`, `category`: int64 [m], sorted by item id.
        max_behaviors: L; the newest are kept.
    Returns:
        One int64 array per feature of `tfmm.features`, [B] or [B, L], sorted by time (ties by a hash, so that
        the order of the rows given says nothing).
    """
    users, items, times = (impressions[name] for name in ("user_id", "item_id", "timestamp"))
    order = np.lexsort((behaviors_lib.tie_break(users, items, times), times))
    users, items, times = users[order], items[order], times[order]
    latest = behaviors.get("latest", behaviors["timestamp"])
    sorting = behaviors_lib.sort_behaviors(
        behaviors["user_id"], behaviors["timestamp"], behaviors["item_id"], behaviors.get("order_line"), latest
    )
    rows, mask = behaviors_lib.histories(users, times, behaviors["user_id"][sorting], latest[sorting], max_behaviors)
    behavior_items = behaviors["item_id"][sorting]
    behavior_categories = categories_of(behavior_items, catalog)
    if not len(behavior_items):
        rows, behavior_items = np.zeros_like(rows), np.zeros(1, np.int64)
        behavior_categories = np.zeros(1, np.int64)
    return {
        "user_id": users,
        "item_id": items,
        "category": categories_of(items, catalog),
        "behavior_item_ids": np.where(mask, behavior_items[rows], features.PADDING),
        "behavior_categories": np.where(mask, behavior_categories[rows], features.PADDING),
        "timestamp": times,
        "label": impressions["label"][order],
    }


def categories_of(items: np.ndarray, catalog: Columns) -> np.ndarray:
    """Returns int64 [n] categories of items; 0 where the catalog knows neither item nor category."""
    places, known = find(items, catalog["item_id"])
    return np.where(known, catalog["category"][places] if len(catalog["item_id"]) else 0, features.PADDING)


def find(items: np.ndarray, sorted_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Looks ids up in a sorted array: rows int64 [n], and bool [n], True where the id is there."""
    if not len(sorted_ids):
        return np.zeros(len(items), np.int64), np.zeros(len(items), bool)
    places = np.minimum(np.searchsorted(sorted_ids, items), len(sorted_ids) - 1)
    return places, sorted_ids[places] == items


def serialize(columns: Columns) -> typing.Iterator[bytes]:
    """Yields one serialized tf.Example per row.

    Args:
        columns: int64 [B] or [B, L] by feature name.
    """
    names = list(columns)
    for row in zip(*(columns[name].tolist() for name in names)):
        example = tf.train.Example()
        feature = example.features.feature
        for name, value in zip(names, row):
            if isinstance(value, list):
                feature[name].int64_list.value.extend(value)
            else:
                feature[name].int64_list.value.append(value)
        yield example.SerializeToString()


def write_examples(
    data_dir: str | pathlib.Path, config: DataConfig, output_dir: str | pathlib.Path
) -> dict[str, typing.Any]:
    """Runs `tfmm.data.beam.BuildExamples` on this machine.

    Writes `{train,eval}-*.tfrecord.gz`, `dead_letter-*.parquet` (rows that were left out, with their reason)
    and a manifest.

    Returns:
        The manifest: counts `train`, `eval` and `dead_letter`.
    Raises:
        MissingExtraError: Apache Beam is not installed.
        ValueError: a split came out empty.
    """
    extras.require("apache_beam", "pipeline")
    from tfmm.data import beam as beam_lib

    folder = pathlib.Path(output_dir)
    for stale in glob.glob(str(folder / "*.tfrecord.gz")) + glob.glob(str(folder / "dead_letter-*.parquet")):
        pathlib.Path(stale).unlink()
    counts = beam_lib.run(data_dir, config, folder)
    if not counts["train"] or not counts["eval"]:
        raise ValueError(
            f"Both splits must have rows. Received: {counts}. {folder}/dead_letter-*.parquet holds the rows "
            "that were left out, with their reasons."
        )
    return artifacts.write_manifest(folder, "examples", config, parents=[data_dir], **counts)


def read_columns(pattern: str, spec: dict[str, tf.io.FixedLenFeature]) -> Columns:
    """Reads gzip TFRecord files of tf.Examples: int64 arrays by feature name, rows in the files' order."""
    files = sorted(glob.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{pattern} matches no file. Run `tfmm.data.examples.write_examples` first.")
    batches = (
        tf.data.TFRecordDataset(files, "GZIP").batch(_BATCH).map(lambda records: tf.io.parse_example(records, spec))
    )
    parts = list(batches.as_numpy_iterator())
    return {name: np.concatenate([part[name] for part in parts]) for name in spec}


def vocabularies(columns: Columns, min_count: int) -> dict[str, np.ndarray]:
    """Counts ids and keeps the frequent ones.

    Args:
        columns: int64 [B] or [B, L] of the train split, by feature name.
        min_count: ids seen less often are left out; an id is counted wherever it stands, in a history too.
    Returns:
        Per vocabulary, int64 ids, the most frequent first, ties by id; never 0.
    """
    result = {}
    for name in features.VOCABULARIES:
        ids, counts = np.unique(
            np.concatenate([columns[f.name].ravel() for f in features.FEATURES if f.vocabulary == name]),
            return_counts=True,
        )
        kept = (counts >= min_count) & (ids != features.PADDING)
        ids, counts = ids[kept], counts[kept]
        result[name] = ids[np.lexsort((ids, -counts))]
    return result


def transform(
    examples_dir: str | pathlib.Path, output_dir: str | pathlib.Path, config: DataConfig | None = None
) -> dict[str, typing.Any]:
    """Adds index columns, as TFX's Transform does, without TFX.

    Writes `{train,eval}-*.tfrecord.gz`, and `vocabulary/{user_id,item_id,category}` of the train split.

    Args:
        examples_dir: as `write_examples` left it.
        output_dir: made where missing.
        config: `min_id_count` and `max_behaviors`; None: as the examples were made.
    Returns:
        The manifest.
    """
    source, folder = pathlib.Path(examples_dir), pathlib.Path(output_dir)
    manifest = artifacts.read_manifest(source, "examples")
    if config is None:
        config = config_lib.from_dict(DataConfig, manifest["config"])
    spec = features.raw_spec(config.max_behaviors)
    splits = {split: read_columns(str(source / f"{split}-*.tfrecord.gz"), spec) for split in ("train", "eval")}
    lookups, sizes = {}, {}
    (folder / "vocabulary").mkdir(parents=True, exist_ok=True)
    for name, ids in vocabularies(splits["train"], config.min_id_count).items():
        (folder / "vocabulary" / name).write_text("".join(f"{i}\n" for i in ids.tolist()))
        lookups[name], sizes[name] = features.lookup_from_ids(ids)
    for split, columns in splits.items():
        indexed = features.preprocess({name: tf.constant(values) for name, values in columns.items()}, lookups)
        with tf.io.TFRecordWriter(str(folder / f"{split}-00000-of-00001.tfrecord.gz"), _GZIP) as writer:
            for record in serialize({name: values.numpy() for name, values in indexed.items()}):
                writer.write(record)
    return artifacts.write_manifest(
        folder,
        "transformed_examples",
        config,
        parents=[source],
        vocabulary_sizes=sizes,
        train=manifest["train"],
        eval=manifest["eval"],
    )
