"""The Transform stage: vocabularies and statistics of the train split, and inputs by `tfmm.preprocessing`."""

import json

import tensorflow as tf
import tensorflow_transform as tft

from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm.features import FeatureSet

_ACCURACY = 1e-4  # of quantiles, as a share of the rows


def preprocessing_fn(inputs, custom_config):
    """Computes vocabularies and statistics, and adds the model's inputs.

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
        statistics[feature.name] = _statistics(tf.boolean_mask(values, ~tf.math.is_nan(values)), feature)
    return {**inputs, **preprocessing.preprocess(inputs, feature_set.columns, lookups, statistics)}


def _statistics(values, feature):
    """Returns a number's statistics, and leaves them in a file, where `preprocessing.load` finds them."""
    if feature.scaling == "quantiles":
        found = tft.quantiles(values, feature.num_quantiles, _ACCURACY)[0]
    else:
        scalable = preprocessing.scalable(values, feature)
        mean, variance = tft.mean(scalable), tft.var(scalable)
        found = tf.stack([mean, tf.where(variance > 0, tf.math.rsqrt(variance), tf.ones_like(variance))])
    line = tf.strings.reduce_join(tf.strings.as_string(found, precision=9, scientific=True), separator=" ")
    tft.vocabulary(line[None], vocab_filename=feature.name + preprocessing.STATISTICS_SUFFIX)
    return found
