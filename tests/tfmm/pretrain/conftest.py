"""Small pairs to pre-train on: colored patches seen through noise, and shuffled words."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

SIZE = 16


def encode_png(pixels):
    return tf.io.encode_png(tf.constant(pixels, tf.uint8)).numpy()


def draw(item, noise, rng):
    """An item is a color and a place; `noise` shifts both."""
    color = np.random.default_rng(item).integers(0, 200, 3)
    pixels = np.full((SIZE, SIZE, 3), 255.0)
    row, column = 4 * (item % 3) + rng.integers(0, 3, 2) * bool(noise)
    pixels[row : row + 5, column : column + 5] = color + rng.normal(0, noise, 3)
    return encode_png(np.clip(pixels, 0, 255))


def write_pairs(folder, queries, positives, item_ids, negatives=None):
    kind = pa.binary() if isinstance(queries[0], bytes) else pa.string()
    columns = {
        "query": pa.array(queries, kind),
        "positive": pa.array(positives, kind),
        "positive_item_id": pa.array(item_ids, pa.int64()),
        "negative": pa.array(negatives or [None] * len(queries), kind),
    }
    pq.write_table(pa.table(columns), folder)


@pytest.fixture(scope="session")
def image_pairs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("image"), np.random.default_rng(0)
    for name, items in (("train", range(1, 25)), ("heldout", range(25, 37))):
        ids = [item for item in items for _ in range(2)]
        negatives = [draw(item + 1, 0, rng) if item % 2 else None for item in ids]
        write_pairs(
            folder / f"{name}.parquet",
            [draw(item, 10, rng) for item in ids],
            [draw(item, 0, rng) for item in ids],
            ids,
            negatives,
        )
    return folder


@pytest.fixture(scope="session")
def text_pairs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    words = [
        "red",
        "blue",
        "wooden",
        "mug",
        "tasse",
        "lámpara",
        "椅子",
        "🍎",
        "big",
        "vintage",
        "soft",
        "bag",
    ]
    for name, items in (("train", range(1, 41)), ("heldout", range(41, 61))):
        titles = [" ".join(rng.choice(words, 3, replace=False)) + f" {item}" for item in items]
        queries = [" ".join(rng.permutation(title.split())[:3]) for title in titles]
        write_pairs(folder / f"{name}.parquet", queries, titles, list(items))
    return folder
