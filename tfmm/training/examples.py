"""Examples as columns in memory, in one order that does not depend on how files were sharded."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import typing
import zlib

import numpy as np
import tensorflow as tf

from tfmm import preprocessing
from tfmm.data import examples as data_examples
from tfmm.data import shards as shards_lib
from tfmm.features import LABEL, FeatureSet
from tfmm.training import labels

IS_ROW = "_is_row"  # of a batch: False where it is filled up
Columns = dict[str, np.ndarray]
_SERIALIZED_ROWS = 1_024
Patterns = str | os.PathLike[str] | typing.Sequence[str | os.PathLike[str]]

def example_files(pattern: Patterns) -> list[str]:
    """Returns the sorted files that a glob pattern, or several, name.

    Raises:
        FileNotFoundError: a pattern names no file.
    """
    patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else list(pattern)
    files: list[str] = []
    for one in patterns:
        found = sorted(path for path in glob.glob(os.fspath(one)) if os.path.isfile(path))
        if not found:
            raise FileNotFoundError(
                f"No example file matches {os.fspath(one)!r}. Build the examples first, or name "
                "their folder with a pattern such as 'examples/train-*'; in a pattern, `[[]` stands for `[`."
            )
        files += found
    return sorted(set(files))


def split_pattern(folder: str | os.PathLike[str], split: str) -> str:
    """Returns the pattern that names the files of a split in a folder, whatever the folder is called.

    >>> split_pattern("run[v2]/examples", "train")
    'run[[]v2]/examples/train-*'
    """
    return f"{glob.escape(os.fspath(folder))}/{split}-*"


def open_records(files: typing.Sequence[str]) -> tf.data.Dataset:
    """Returns serialized examples, in order: of TFRecord files (gzip where the name ends in .gz), or made of shards."""
    if shards_lib.is_shards(files):
        return tf.data.Dataset.from_generator(lambda: _serialized(files), output_signature=tf.TensorSpec([], tf.string))
    parts = [tf.data.TFRecordDataset(file, "GZIP" if file.endswith(".gz") else "") for file in files]
    records = parts[0]
    for part in parts[1:]:
        records = records.concatenate(part)
    return records


def _serialized(files: typing.Sequence[str]) -> typing.Iterator[bytes]:
    shards = shards_lib.Shards(files)
    for start in range(0, shards.num_rows, _SERIALIZED_ROWS):
        places = np.arange(start, min(start + _SERIALIZED_ROWS, shards.num_rows))
        yield from data_examples.serialize(shards.gather(places))
        shards.release()


def require_whole(files: typing.Sequence[str]) -> None:
    """Raises a ValueError where a gzip file ends early; TensorFlow takes an end between two records for the file's."""
    for file in files:
        if file.endswith(".gz"):
            try:
                with gzip.open(file) as stream:
                    while stream.read(2**20):
                        pass
            except (EOFError, OSError, zlib.error) as error:
                raise _damaged(f"in {file}", str(error)) from error


def _damaged(place: str, message: str) -> ValueError:
    return ValueError(
        f"Example files must be whole TFRecord files. Received, {place}: {message.rstrip('.')}. "
        "Write the examples again."
    )


def read_columns(
    files: typing.Sequence[str], feature_set: FeatureSet, names: typing.Collection[str] | None = None
) -> Columns:
    """Reads columns of examples into memory.

    Args:
        files: TFRecord files, or shards in time order, see `example_files`.
        feature_set: what the examples hold.
        names: columns to read, of `preprocessing.transformed_spec`; None: all raw ones.
    Returns:
        int64 or float32 arrays [n] or [n, L] by name (indices and labels as int32), in the order of the files.
    Raises:
        ValueError: a file is damaged; an example lacks a column or holds another number of values;
            labels other than 0 and 1, weights or rates that cannot be.
    """
    if shards_lib.is_shards(files):
        return _of_shards(files, preprocessing.raw_spec(feature_set) if names is None else names)
    parts = list(read_pieces(files, feature_set, names))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    labels.check(columns)
    return columns


def read_pieces(
    files: typing.Sequence[str], feature_set: FeatureSet, names: typing.Collection[str] | None = None
) -> typing.Iterator[Columns]:
    """Yields columns of TFRecord files piece by piece, as `read_columns` returns them; at least one piece."""
    require_whole(files)
    known = preprocessing.transformed_spec(feature_set)
    wanted = preprocessing.raw_spec(feature_set) if names is None else names
    spec = {name: known[name] for name in known if name in wanted}
    narrow = {LABEL, *(column.input for column in feature_set.columns if column.feature.is_embedded)}
    batches = (
        open_records(files)
        .batch(4096)
        .map(lambda records: tf.io.parse_example(records, spec), num_parallel_calls=2, deterministic=True)
    )
    num_rows = 0
    try:
        for batch in batches.as_numpy_iterator():
            num_rows += len(next(iter(batch.values())))
            yield {name: values.astype(np.int32) if name in narrow else values for name, values in batch.items()}
    except tf.errors.InvalidArgumentError as error:
        lengths = {sequence.name: sequence.length for sequence in feature_set.sequences}
        raise ValueError(
            f"Examples must have the columns {sorted(spec)}, sequences with {lengths} values each. "
            f"Received, in {files[0]} or one of {len(files) - 1} more files: {error.message}"
        ) from error
    except tf.errors.DataLossError as error:
        raise _damaged(f"in {files[0]} or one of {len(files) - 1} more files", error.message) from error
    if not num_rows:
        raise ValueError(f"{files[0]} and {len(files) - 1} more files hold no example.")


def _of_shards(files: typing.Sequence[str], names: typing.Collection[str]) -> Columns:
    shards = shards_lib.Shards(files)
    histories = {c.name for c in shards.feature_set.columns if c.sequence is not None}
    if histories & set(names):
        columns = shards.gather(np.arange(shards.num_rows), names)
    else:
        columns = {name: shards.column(name) for name in names}
    return {name: values.astype(np.int32) if name == LABEL else values for name, values in columns.items()}


def in_time_order(columns: Columns) -> Columns:
    """Returns rows in the order of `tfmm.data.examples.time_order`."""
    order = data_examples.time_order(columns)
    return {name: values[order] for name, values in columns.items()}


def shuffled_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation of all rows, int32 [n] (int64 beyond 2^31), the same for the same seed and epoch."""
    kind = np.int32 if num_rows < 2**31 else np.int64
    return np.random.default_rng([seed, epoch]).permutation(np.arange(num_rows, dtype=kind))


def blocked_order(num_rows: int, block_size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns rows in order, shuffled inside consecutive blocks.

    >>> sorted(blocked_order(10, 4, seed=0, epoch=0)[:4].tolist())
    [0, 1, 2, 3]
    """
    generator = np.random.default_rng([seed, epoch])
    return np.concatenate(
        [start + generator.permutation(min(block_size, num_rows - start)) for start in range(0, num_rows, block_size)]
    )


def digest(columns: Columns) -> str:
    """Returns a hash of all values: two runs on the same rows may share a checkpoint."""
    total = hashlib.sha256()
    for name in sorted(columns):
        total.update(name.encode())
        total.update(columns[name].tobytes())
    return total.hexdigest()[:16]
