"""The Transform stage: vocabularies and statistics of the train split, and inputs by `tfmm.preprocessing`."""

import json
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm.features import FeatureSet

_ACCURACY = 1e-4  # of quantiles, as a share of the rows


def preprocessing_fn(inputs, custom_config):
    """Computes vocabularies and statistics, and adds the model's inputs.

    A number's statistics are a column, too, equal in all rows: `collect` reads them there. (A file of their own would
    be a second pass over the data.)

    Args:
        inputs: tensors by column, as `preprocessing.raw_spec` says.
        custom_config: `feature_set`, as JSON, lengths and least counts filled in.
    """
    feature_set = config_lib.from_dict(FeatureSet, json.loads(custom_config["feature_set"]))
    lookups, statistics = {}, {}
    for name in feature_set.vocabularies:
        columns = [c for c in feature_set.columns if c.feature.has_vocabulary and c.feature.embedding == name]
        path = tft.vocabulary(
            tf.concat([tf.reshape(inputs[column.name], [-1]) for column in columns], 0),
            frequency_threshold=columns[0].feature.min_count,
            vocab_filename=name,
        )
        lookups[name] = lambda ids, path=path: tft.apply_vocabulary(ids, path, default_value=-1)
    for feature in feature_set.numbers:
        columns = [c for c in feature_set.columns if c.feature.name == feature.name]
        values = tf.concat([tf.reshape(inputs[column.name], [-1]) for column in columns], 0)
        statistics[feature.name] = _statistics(tf.boolean_mask(values, preprocessing.is_number(values)), feature)
    rows = tf.ones_like(inputs["timestamp"], tf.float32)[:, None]
    constant = {name + preprocessing.STATISTICS_SUFFIX: rows * found for name, found in statistics.items()}
    return {**inputs, **constant, **preprocessing.preprocess(inputs, feature_set.columns, lookups, statistics)}


def _statistics(values, feature):
    if feature.scaling == "quantiles":
        return tft.quantiles(values, feature.num_quantiles, _ACCURACY)[0]
    scalable = tf.cast(preprocessing.scalable(values, feature), tf.float64)  # sums of float32 would be of their squares
    return preprocessing.scaling(tft.mean(scalable), tft.var(scalable))


def collect(transform_graph_dir, feature_set, output_dir):
    """Writes the vocabularies and statistics of a Transform as `preprocessing.load` reads them.

    Args:
        transform_graph_dir: folder of the TransformGraph artifact.
        feature_set: that it was made with.
        output_dir: made where missing.
    """
    output, folder = tft.TFTransformOutput(str(transform_graph_dir)), pathlib.Path(output_dir)
    vocabularies = {}
    for name in feature_set.vocabularies:
        path = output.vocabulary_file_by_name(name)
        if path is None:
            raise FileNotFoundError(f"{transform_graph_dir} must hold the vocabulary {name!r}. Run Transform again.")
        vocabularies[name] = np.array(pathlib.Path(path).read_text().split(), np.int64)
    statistics = {}
    if feature_set.numbers:
        spec = preprocessing.raw_spec(feature_set)
        found = output.transform_raw_features({name: tf.zeros([1, *f.shape], f.dtype) for name, f in spec.items()})
        for feature in feature_set.numbers:
            statistics[feature.name] = found[feature.name + preprocessing.STATISTICS_SUFFIX][0].numpy()
    preprocessing.write(folder, vocabularies, statistics)
