"""The signatures of the exported click model: what goes in, and how tensors of any size meet fixed shapes."""

from __future__ import annotations

import typing

import tensorflow as tf

from tfmm import features

POINTWISE = "serving_default"
EXAMPLES = "serve_examples"
HIDDEN = "serve_examples_hidden"
RANK = "rank"
VECTORS = "score_vectors"
UPSERT = "upsert_items"
STATUS = "index_status"
OUTPUTS = ("logit", "score")

RAW = tuple(f for f in features.FEATURES if f.vocabulary is not None)
CANDIDATE_FEATURES = tuple(f.name for f in RAW if f.role == "target")
USER_FEATURES = tuple(f.name for f in RAW if f.role != "target")
Specs = dict[str, tf.TensorSpec]


def raw_specs(id_types: typing.Mapping[str, str], num_users: int | None) -> Specs:
    """Returns the specs of the raw features as callers send them.

    Args:
        id_types: "int64" or "string" per vocabulary, see `data.schema.id_types`.
        num_users: rows of the user's features: None for one per candidate, or 1 for one user in all.
    Raises:
        ValueError: a vocabulary without a type, or another type.

    >>> raw_specs({"user_id": "string", "item_id": "int64", "category": "int64"}, 1)["user_id"]
    TensorSpec(shape=(1,), dtype=tf.string, name='user_id')
    """
    specs = {}
    for feature in RAW:
        kind = id_types.get(str(feature.vocabulary))
        if kind not in ("int64", "string"):
            raise ValueError(
                f"`id_types` must give 'int64' or 'string' for {features.VOCABULARIES}. "
                f"Received: {dict(id_types)}."
            )
        shape: list[int | None] = [num_users if feature.name in USER_FEATURES else None]
        shape += [None] if feature.is_sequence else []
        specs[feature.name] = tf.TensorSpec(shape, tf.as_dtype(kind), name=feature.name)
    return specs


def vector_specs(modality: str, dim: int, side: str, rows: int | None, length: int | None) -> Specs:
    """Returns the specs of one side's vectors of a modality: rows, scales and mask.

    Args:
        modality: image, text or vector.
        dim: D.
        side: "target" or "behavior".
        rows: first dimension; None for any.
        length: L, for the behavior side; None for any.
    """
    shape = [rows, length] if side == "behavior" else [rows]
    parts = {"rows": ([*shape, dim], tf.int8), "scales": (shape, tf.float32), "mask": (shape, tf.bool)}
    return {
        f"{modality}_{side}_{part}": tf.TensorSpec(part_shape, dtype, name=f"{modality}_{side}_{part}")
        for part, (part_shape, dtype) in parts.items()
    }


def as_fingerprints(tensors: typing.Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns ids as int64: integers as they are, strings as their fingerprints."""
    return {
        name: features.fingerprint_strings(ids) if ids.dtype == tf.string else ids
        for name, ids in tensors.items()
    }


def newest_behaviors(tensors: typing.Mapping[str, tf.Tensor], length: int) -> dict[str, tf.Tensor]:
    """Returns histories of exactly `length` steps: the newest ones, padded on the right.

    Args:
        tensors: [B, W] or [B, W, D], among them `behavior_item_ids` int64 [B, W]: its last id other than 0 is
            the newest behavior of its row. W may be any, and 0.
        length: L.
    Returns:
        The same tensors with L in place of W.

    >>> newest_behaviors({"behavior_item_ids": tf.constant([[1, 2, 3, 0], [4, 0, 0, 0]])}, 2)
    {'behavior_item_ids': <tf.Tensor: ... array([[2, 3], [4, 0]], dtype=int32)>}
    """
    ids = tensors["behavior_item_ids"]
    positions = tf.range(1, tf.shape(ids)[1] + 1)
    used = tf.reduce_max(tf.where(ids != features.PADDING, positions, 0), axis=1)  # [B]
    index = tf.maximum(tf.maximum(used, 0) - length, 0)[:, None] + tf.range(length)  # used < 0 where W is 0

    def fit(tensor: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(tensor, [[0, 0], [0, length]] + [[0, 0]] * (tensor.shape.rank - 2))
        fitted = tf.gather(padded, index, batch_dims=1)
        return tf.ensure_shape(fitted, [tensor.shape[0], length, *tensor.shape[2:]])

    return {name: fit(tensor) for name, tensor in tensors.items()}


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
