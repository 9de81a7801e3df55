"""Choosing without the eval split: the last fifth of the train impressions, and the probe of an encoder on it."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf

from tfmm import metrics, modalities
from tfmm.config import DataConfig, RunConfig
from tfmm.data import examples, schema
from tfmm.evaluate import probe
from tfmm.index import encode
from tfmm.pretrain.encoders import Encoder


def write_tables(data_dir: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes the tables again with the train impressions alone: their last fifth is what is then held out."""
    folder.mkdir(parents=True)
    for name in ("items", "behaviors", "searches"):
        if schema.has_table(data_dir, name):
            pq.write_table(schema.read_table(data_dir, name), folder / f"{name}.parquet")
    shown = schema.read_table(data_dir, "impressions", ["user_id", "item_id", "timestamp", "label", "split"])
    if shown["split"].null_count == len(shown):
        times = schema.microseconds(shown["timestamp"])
        in_train = pa.array(times < examples.eval_start(times, DataConfig().eval_fraction))
    else:
        in_train = pc.equal(shown["split"], "train")
    pq.write_table(shown.filter(in_train).drop(["split"]), folder / "impressions.parquet")
    return folder


def heldout_rows(folder: pathlib.Path) -> examples.Columns:
    """Returns the validation impressions with their histories, as examples hold them."""
    def ids_and_times(name):
        table = schema.read_table(folder, name)
        columns = {key: schema.fingerprints(table[key]) for key in ("user_id", "item_id")}
        columns["timestamp"] = schema.microseconds(table["timestamp"])
        for key in {"label", "order_line"} & set(table.column_names):
            columns[key] = pc.fill_null(table[key], 0).to_numpy()
        return columns

    shown = ids_and_times("impressions")
    late = shown["timestamp"] >= examples.eval_start(shown["timestamp"], DataConfig().eval_fraction)
    none = np.zeros(0, np.int64)
    no_category, no_users = {"item_id": none, "category": none}, {"user_id": none}
    return examples.build({name: values[late] for name, values in shown.items()}, ids_and_times("behaviors"),
                          no_category, no_users, RunConfig().feature_set)


def probe_gauc(encoder: Encoder, folder: pathlib.Path, rows: examples.Columns) -> float:
    """Returns the GAUC of the largest cosine of target and history, of vectors as the index holds them."""
    column = modalities.UNDECLARED[encoder.config.modality].content
    items = schema.read_table(folder, "items", ["item_id", column])
    ids = schema.fingerprints(items["item_id"])
    order = np.argsort(ids)
    contents = [value or b"" for value in items[column].take(pa.array(order)).to_pylist()]
    parts = [encoder.encode(tf.constant(contents[start : start + 256], tf.string))["vector"].numpy()
             for start in range(0, len(contents), 256)]
    vectors = encode.quantize(np.concatenate(parts))[0]
    cosines, known = probe.largest_cosines(ids[order], vectors, rows["item_id"], rows["behavior_item_ids"])
    return metrics.gauc(rows["label"][known], cosines[known], rows["user_id"][known]).value
