"""The signatures of the exported click model: what goes in, and how tensors of any size meet fixed shapes."""

from __future__ import annotations

import typing

import tensorflow as tf

from tfmm import fingerprints, vectors
from tfmm.features import PADDING, Column, FeatureSet, Sequence

POINTWISE = "serving_default"
EXAMPLES = "serve_examples"
HIDDEN = "serve_examples_hidden"
RANK = "rank"
RANK_IDS = "rank_ids"
LOGGED = {RANK: "rank_logged", RANK_IDS: "rank_ids_logged"}  # the same, which also say what they scored by
LOOKED_UP = "looked_up_"  # before a column's name: the output of `LOGGED` with what the model looked up of it
PRE_RANK = "pre_rank"  # of versions with a pre-ranking head: a request of `RANK_IDS`, or `RANK` where there is none
COMPARE = "compare_stages"  # of the same versions, for evaluation
VECTORS = "score_vectors"
UPSERT = "upsert_items"
STATUS = "index_status"
OUTPUTS = ("logit", "score")

Specs = dict[str, tf.TensorSpec]


class Core(typing.NamedTuple):
    """What scores one user's candidates from a model's inputs, and the numbers of candidates that it takes."""

    function: typing.Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]
    buckets: typing.Sequence[int]


def raw_specs(feature_set: FeatureSet, id_types: typing.Mapping[str, str], num_users: int | None) -> Specs:
    """Returns the specs of the columns as callers send them.

    Args:
        feature_set: features and sequences.
        id_types: "int64" or "string" per feature of ids, see `data.schema.id_types`.
        num_users: rows of the user's columns: None for one per candidate, or 1 for one user in all.
    Raises:
        ValueError: a feature of ids without a type, or another type.

    >>> raw_specs(FeatureSet(), {"user_id": "string", "item_id": "int64", "category": "int64"}, 1)["user_id"]
    TensorSpec(shape=(1,), dtype=tf.string, name='user_id')
    """
    specs = {}
    for column in feature_set.served:
        shape = [num_users if column.side == "user" else None, *([None] * len(column.shape))]
        specs[column.name] = tf.TensorSpec(shape, _dtype(column, id_types), name=column.name)
    return specs


def _dtype(column: Column, id_types: typing.Mapping[str, str]) -> tf.DType:
    if column.is_float:
        return tf.float32
    if column.feature.kind not in ("id", "ids"):
        return tf.int64
    kind = id_types.get(column.feature.name)
    if kind not in ("int64", "string"):
        raise ValueError(
            f"`id_types` must give 'int64' or 'string' for {column.feature.name!r}. Received: {dict(id_types)}."
        )
    return tf.as_dtype(kind)


def vector_specs(modality: str, dim: int, side: str, rows: int | None, length: int | None) -> Specs:
    """Returns the specs of one side's vectors of a modality: rows, scales and mask.

    Args:
        modality: its name.
        dim: D.
        side: "target", or a sequence's name.
        rows: first dimension; None for any.
        length: L, for a sequence; None for any.
    """
    parts = vectors.spec(dim, rows, length, is_sequence=side != vectors.TARGET)
    return {
        name: tf.TensorSpec(shape, dtype, name=name)
        for name, (shape, dtype) in zip(vectors.names(modality, side), parts)
    }


def as_fingerprints(tensors: typing.Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns ids as int64: integers as they are, strings as their fingerprints; other columns as they are."""
    return {
        name: fingerprints.fingerprint_strings(values) if values.dtype == tf.string else values
        for name, values in tensors.items()
    }


def newest_behaviors(
    tensors: typing.Mapping[str, tf.Tensor], item_ids: str, length: int, missing: typing.Mapping[str, float]
) -> dict[str, tf.Tensor]:
    """Returns histories of exactly `length` steps: the newest ones, padded on the right.

    Args:
        tensors: [B, W] or [B, W, D], among them `item_ids` int64 [B, W]: its last id other than 0 is the newest
            behavior of its row. W may be any, and 0.
        item_ids: the name of the column with the behaviors' items.
        length: L.
        missing: what pads a tensor, by name; 0 where it is not named.
    Returns:
        The same tensors with L in place of W.

    >>> newest_behaviors({"ids": tf.constant([[1, 2, 3, 0], [4, 0, 0, 0]])}, "ids", 2, {})
    {'ids': <tf.Tensor: ... array([[2, 3], [4, 0]], dtype=int32)>}
    """
    ids = tensors[item_ids]
    positions = tf.range(1, tf.shape(ids)[1] + 1)
    used = tf.reduce_max(tf.where(ids != PADDING, positions, 0), axis=1)  # [B]
    index = tf.maximum(tf.maximum(used, 0) - length, 0)[:, None] + tf.range(length)  # used < 0 where W is 0

    def fit(name: str, tensor: tf.Tensor) -> tf.Tensor:
        widths = [[0, 0], [0, length]] + [[0, 0]] * (tensor.shape.rank - 2)
        padded = tf.pad(tensor, widths, constant_values=tf.cast(missing.get(name, 0), tensor.dtype))
        fitted = tf.gather(padded, index, batch_dims=1)
        return tf.ensure_shape(fitted, [tensor.shape[0], length, *tensor.shape[2:]])

    return {name: fit(name, tensor) for name, tensor in tensors.items()}


def first_values(values: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the first `count` of multi-valued ids, int64 [B, W] -> [B, count], padded with 0.

    A missing one counts for nothing, wherever it stands, as in the catalog.

    >>> first_values(tf.constant([[0, 7, 0, 8, 9]]), 2).numpy().tolist()
    [[7, 8]]
    """
    order = tf.argsort(tf.cast(values == PADDING, tf.int32), axis=1, stable=True)
    values = tf.gather(values, order, batch_dims=1)
    padded = tf.pad(values, [[0, 0], [0, count]])[:, :count]
    return tf.ensure_shape(padded, [values.shape[0], count])


def served_constant(column: Column, rows: tf.Tensor) -> tf.Tensor:
    """Returns what stands for a column that no request brings, int64 or float32 [rows]."""
    return tf.fill([rows], tf.constant(served_value(column), tf.float32 if column.is_float else tf.int64))


def served_value(column: Column) -> float | int | None:
    """Returns what serving takes for a column, an id as its fingerprint; None where a request brings it."""
    value = column.feature.serving_value
    if value is None:
        return None
    if column.feature.kind == "id":
        return int(fingerprints.fingerprint([value])[0])
    return float(value) if column.is_float else int(value)


def columns_of(feature_set: FeatureSet, sequence: Sequence) -> tuple[Column, ...]:
    """Returns a sequence's columns."""
    return tuple(c for c in feature_set.columns if c.sequence is not None and c.sequence.name == sequence.name)


def stored_columns(feature_set: FeatureSet, names: typing.Collection[str]) -> dict[str, list[Column]]:
    """Returns the columns with some features of items, by the column that says of which items.

    >>> {ids: [c.name for c in columns] for ids, columns in stored_columns(FeatureSet(), ["category"]).items()}
    {'item_id': ['category'], 'behavior_item_ids': ['behavior_categories']}
    """
    result: dict[str, list[Column]] = {}
    for column in feature_set.served:
        if column.feature.name in names:
            result.setdefault("item_id" if column.sequence is None else column.sequence.item_ids, []).append(column)
    return result


def completed(
    columns: typing.Sequence[Column],
    given: typing.Mapping[str, tf.Tensor],
    look_up: typing.Callable[[], dict[str, tf.Tensor]],
) -> dict[str, tf.Tensor]:
    """Returns columns of items' features as given; those that are empty, or not given at all, looked up.

    Args:
        columns: of the same items.
        given: by column; one that has values is taken as it is.
        look_up: gives the items' values by feature; it is called where something is left out only.
    """
    brought = {column.name: given[column.name] for column in columns if column.name in given}
    if not brought:
        found = look_up()
        return {column.name: found[column.feature.name] for column in columns}
    is_empty = {name: tf.equal(tf.size(values), 0) for name, values in brought.items()}

    def complete() -> dict[str, tf.Tensor]:
        found = look_up()
        return {
            c.name: tf.cond(is_empty[c.name], lambda c=c: found[c.feature.name], lambda c=c: brought[c.name])
            for c in columns
        }

    return tf.cond(tf.reduce_any(tf.stack(list(is_empty.values()))), complete, lambda: dict(brought))


def require_rows(tensors: typing.Mapping[str, tf.Tensor], like: str, axis: int = 0) -> list[tf.Operation]:
    """Returns checks, for control dependencies, that tensors are as long as the one named `like`.

    Raises:
        InvalidArgumentError: when the graph runs, with the names.
    """
    wanted = tf.shape(tensors[like])[axis]
    checks = [
        tf.debugging.assert_equal(
            tf.shape(tensor)[axis], wanted, f"`{name}` must be as long as `{like}` in dimension {axis}."
        )
        for name, tensor in tensors.items()
        if name != like
    ]
    return [check for check in checks if check is not None]


def with_static_rows(tensor: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns a tensor of `rows` rows with that static shape.

    Not `tf.ensure_shape`: inside a branch it makes the graph optimizer believe the shape everywhere else, too.
    """
    return tf.reshape(tensor[:rows], [rows, *tensor.shape[1:]])


def in_buckets(
    score: typing.Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    tensors: typing.Mapping[str, tf.Tensor],
    buckets: typing.Sequence[int],
) -> dict[str, tf.Tensor]:
    """Scores rows in batches whose sizes are all in `buckets`, so that XLA compiles no other shape.

    The batch is padded with zeros to the smallest bucket that holds it; a batch above the largest bucket is
    scored in chunks of that bucket, one after the other.

    Args:
        score: from tensors of [n, ...] to float32 [n] per name of `OUTPUTS`, n in `buckets`.
        tensors: [B, ...] each; B may be any, and 0.
        buckets: ascending sizes.
    Returns:
        float32 [B] per name of `OUTPUTS`.
    """
    sizes = tf.constant(buckets, tf.int32)
    rows = tf.shape(next(iter(tensors.values())))[0]
    bucket = sizes[tf.minimum(tf.searchsorted(sizes, rows[None])[0], len(buckets) - 1)]
    num_chunks = tf.maximum((rows + bucket - 1) // bucket, 1)
    missing = num_chunks * bucket - rows
    padded = {
        name: tf.pad(tensor, [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1))
        for name, tensor in tensors.items()
    }

    def one(chunk: tf.Tensor) -> dict[str, tf.Tensor]:
        start = chunk * bucket
        return score({name: tensor[start : start + bucket] for name, tensor in padded.items()})

    specs = {name: tf.TensorSpec([None], tf.float32) for name in OUTPUTS}
    chunks = tf.map_fn(one, tf.range(num_chunks), fn_output_signature=specs, parallel_iterations=1)
    return {name: tf.reshape(values, [-1])[:rows] for name, values in chunks.items()}
