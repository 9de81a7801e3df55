"""One request per signature of an exported version: what a server must answer before the version is pushed."""

from __future__ import annotations

import pathlib
import typing

import numpy as np
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import saved_model as loader
from tfmm.export import saved_model, signatures, warmup
from tfmm.features import FeatureSet
from tfmm.index import item_vectors

Inputs = dict[str, np.ndarray]
Answer = typing.Callable[[str, Inputs], typing.Mapping[str, np.ndarray]]


def requests(version_dir: str | pathlib.Path) -> dict[str, Inputs]:
    """Returns the inputs of one small request by signature; an upsert of no rows among them.

    Raises:
        FileNotFoundError: the folder is no complete export.
        ValueError: the version has a signature that is not known here.
    """
    manifest = saved_model.read_manifest(version_dir)
    feature_set = config_lib.as_config(FeatureSet, manifest["feature_set"])
    config = config_lib.as_config(config_lib.ExportConfig, manifest["config"])
    looked_up = (manifest["item_features"] or {}).get("names", ())
    buckets = manifest.get(saved_model.PRE_RANKING, {}).get("candidate_buckets", ())
    known: dict[str, Inputs] = {}
    for signature, inputs in warmup.requests(feature_set, manifest["id_types"], config, looked_up, buckets):
        known.setdefault(signature, inputs)  # the first is the smallest
    known |= {signatures.LOGGED[name]: inputs for name, inputs in known.items() if name in signatures.LOGGED}
    example = np.array([_example(feature_set)], object)
    known[signatures.EXAMPLES] = {"examples": example}
    known[signatures.COMPARE] = {"user": example, "items": example}
    if manifest["index"]:
        modality, facts = next(iter(manifest["index"].items()))
        known[signatures.HIDDEN] = {"examples": example, "hidden": np.array([modality.encode()], object)}
        known[signatures.STATUS] = {}
        known[signatures.UPSERT] = {
            "modality": np.array(modality.encode(), object),
            "item_ids": np.zeros(0, np.int64),
            "rows": np.zeros((0, facts["dim"]), np.int8),
            "scales": np.zeros(0, np.float32),
            "sequences": np.zeros(0, np.int64),
            "encoder_version": np.array(facts["encoder_version"].encode(), object),
        }
        known[signatures.VECTORS] = {name: values[:1] for name, values in known[signatures.POINTWISE].items()}
        lengths = {sequence.name: sequence.length for sequence in feature_set.sequences}
        for name, table in manifest["index"].items():
            for side in item_vectors.sides(feature_set):
                specs = signatures.vector_specs(name, table["dim"], side, 1, lengths.get(side))
                known[signatures.VECTORS] |= {n: np.ones(s.shape, s.dtype.as_numpy_dtype) for n, s in specs.items()}
    if unknown := sorted(set(manifest["signatures"]) - set(known)):
        raise ValueError(f"{version_dir} must have signatures that can be asked. Received: {', '.join(unknown)}.")
    return {signature: known[signature] for signature in manifest["signatures"]}


def fault(version_dir: str | pathlib.Path, answer: Answer) -> str | None:
    """Asks each signature once; returns what is wrong with the first that fails, in a line, or None.

    Args:
        version_dir: the version.
        answer: takes a signature and its inputs, and gives the outputs or raises.
    """
    for signature, inputs in requests(version_dir).items():
        try:
            outputs = answer(signature, inputs)
        except Exception as error:  # whatever a server or a graph raises
            text = getattr(error, "message", None) or str(error) or type(error).__name__
            return f"{signature}: {' '.join(text.split())[:500]}"
        for name in signatures.OUTPUTS:
            if name in outputs and not np.isfinite(outputs[name]).all():
                return f"{signature}: `{name}` is not finite"
    return None


def fault_in_session(version_dir: str | pathlib.Path) -> str | None:
    """Returns what is wrong with a version where TF Serving's C++ loader takes it, see `fault`."""
    try:
        loaded = loader.load_session(version_dir)
    except Exception as error:  # a damaged file, an operation that this TensorFlow lacks
        return f"it cannot be loaded: {' '.join(str(error).split())[:500]}"
    with loaded:
        try:
            found = loaded.together(requests(version_dir))
        except Exception:  # which of them it was, one after the other tells
            return fault(version_dir, loaded)
        return fault(version_dir, lambda signature, inputs: found[signature])


def _example(feature_set: FeatureSet) -> bytes:
    """Returns a serialized raw tf.Example with ones in every column."""
    features = {}
    for column in feature_set.columns:
        count = int(np.prod(column.shape))
        features[column.name] = (
            tf.train.Feature(float_list=tf.train.FloatList(value=[1.0] * count))
            if column.is_float
            else tf.train.Feature(int64_list=tf.train.Int64List(value=[1] * count))
        )
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
