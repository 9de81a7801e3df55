"""Warm-up requests: one per bucket, and never a write."""

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfmm import saved_model
from tfmm.export import warmup


def test_one_request_per_bucket_and_never_an_upsert(multimodal):
    path = multimodal.version_dir / "assets.extra" / warmup.FILE
    seen = []
    with saved_model.load_session(multimodal.version_dir) as loaded:
        before = {k: v.tolist() for k, v in loaded("index_status", {}).items()}
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
            loaded(request.model_spec.signature_name, inputs)
            seen.append((request.model_spec.signature_name, len(inputs["item_id"]), len(inputs["user_id"])))
        after = {k: v.tolist() for k, v in loaded("index_status", {}).items()}
    assert seen == [("serving_default", 4, 4), ("serving_default", 16, 16), ("rank", 4, 1), ("rank", 16, 1)]
    assert before == after
    assert multimodal.manifest["warmup_requests"] == 4


def test_string_ids_are_sent_as_strings():
    from tfmm.config import ExportConfig
    from tfmm.features import FeatureSet

    types = {"user_id": "string", "item_id": "int64", "category": "string"}
    config = ExportConfig(batch_buckets=(2,), candidate_buckets=(5,))
    signature, inputs = warmup.requests(FeatureSet().resolved(3, 1), types, config)[1]
    assert signature == "rank"
    assert inputs["user_id"].tolist() == [b"warm-up"] and inputs["item_id"].dtype == "int64"
    assert inputs["behavior_categories"].shape == (1, 3) and inputs["category"].shape == (5,)
