"""Warm-up requests of an export: one per bucket, so that XLA compiles before the version serves."""

from __future__ import annotations

import os
import typing

import numpy as np
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import extras
from tfmm.export import signatures
from tfmm.features import FeatureSet

FILE = "tf_serving_warmup_requests"  # under assets.extra of the version folder
_FILLER: dict[tf.DType, typing.Any] = {tf.int64: 1, tf.float32: 1.0, tf.string: b"warm-up"}


def requests(
    feature_set: FeatureSet,
    id_types: typing.Mapping[str, str],
    config: config_lib.ExportConfig,
    looked_up: typing.Sequence[str] = (),
    pre_rank_buckets: typing.Sequence[int] = (),
) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Returns (signature, inputs) per bucket of the signatures that users wait for; never an upsert.

    `serve_examples`, `score_vectors` and `rank_ids` run the cores that these compile; of `rank_ids`, which users wait
    for as well, there is one more.

    Args:
        feature_set, id_types, config: as exported.
        looked_up: the item features that `rank_ids` looks up; (): there is no such signature.
        pre_rank_buckets: numbers of candidates that `pre_rank` takes; (): there is no such signature.
    """
    result = []
    wanted: list[tuple[str, int | None, typing.Sequence[int]]] = [
        (signatures.POINTWISE, None, config.batch_buckets),
        (signatures.RANK, 1, config.candidate_buckets),
    ]
    if looked_up:
        wanted.append((signatures.RANK_IDS, 1, config.candidate_buckets[:1]))
    wanted.append((signatures.PRE_RANK, 1, pre_rank_buckets))
    for signature, num_users, buckets in wanted:
        specs = signatures.raw_specs(feature_set, id_types, num_users)
        for size in buckets:
            inputs = {}
            for column in feature_set.served:
                if signature in (signatures.RANK_IDS, signatures.PRE_RANK) and column.feature.name in looked_up:
                    continue
                spec = specs[column.name]
                shape = [spec.shape[0] or size, *column.shape]
                dtype = object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
                inputs[column.name] = np.full(shape, _FILLER[spec.dtype], dtype)
            result.append((signature, inputs))
    return result


def write(
    path: str | os.PathLike[str],
    feature_set: FeatureSet,
    id_types: typing.Mapping[str, str],
    config: config_lib.ExportConfig,
    looked_up: typing.Sequence[str] = (),
    pre_rank_buckets: typing.Sequence[int] = (),
) -> int:
    """Writes the requests as the TFRecord of PredictionLog that TF Serving replays before a version serves.

    Returns:
        How many there are.
    Raises:
        MissingExtraError: tensorflow-serving-api is not installed.
    """
    logs = extras.require("tensorflow_serving.apis.prediction_log_pb2", "serving")
    records = requests(feature_set, id_types, config, looked_up, pre_rank_buckets)
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for signature, inputs in records:
            log = logs.PredictionLog()
            log.predict_log.request.model_spec.signature_name = signature
            for name, value in inputs.items():
                log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())
    return len(records)
