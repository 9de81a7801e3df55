"""The Transform stage: vocabularies and statistics of the train split, and inputs by `tfmm.preprocessing`."""

import functools
import json
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm.features import PADDING, FeatureSet

_ACCURACY = 1e-4  # of quantiles, as a share of the rows


def preprocessing_fn(inputs, custom_config):
    """Computes vocabularies and statistics, and adds the model's inputs.

    A number's statistics are a column, too, equal in all rows: `collect` reads them there. (A file of their own would
    be a second pass over the data.)

    Args:
        inputs: tensors by column, as `preprocessing.raw_spec` says.
        custom_config: `feature_set`, as JSON, lengths and least counts filled in; `parent`: a folder of vocabularies
            and statistics that these go on from, "" where there is none.
    """
    feature_set = config_lib.from_dict(FeatureSet, json.loads(custom_config["feature_set"]))
    parent = custom_config.get("parent", "")
    lookups, statistics = {}, _constants(feature_set, parent)
    for name in feature_set.vocabularies:
        columns = [c for c in feature_set.columns if c.feature.has_vocabulary and c.feature.embedding == name]
        ids = tf.concat([tf.reshape(inputs[column.name], [-1]) for column in columns], 0)
        known = None
        if parent:
            known = _Known(name, preprocessing.vocabularies(feature_set, parent)[name])
            ids = tf.boolean_mask(ids, (known.places(ids) < 0) & (ids != PADDING))  # of none, Transform counts a -1
        path = tft.vocabulary(ids, frequency_threshold=columns[0].feature.min_count, vocab_filename=name)
        lookups[name] = functools.partial(_places, path, known)
    for feature in feature_set.numbers if not parent else ():
        columns = [c for c in feature_set.columns if c.feature.name == feature.name]
        values = tf.concat([tf.reshape(inputs[column.name], [-1]) for column in columns], 0)
        statistics[feature.name] = _statistics(tf.boolean_mask(values, preprocessing.is_number(values)), feature)
    rows = tf.ones_like(inputs["timestamp"], tf.float32)[:, None]
    constant = {name + preprocessing.STATISTICS_SUFFIX: rows * found for name, found in statistics.items()}
    return {**inputs, **constant, **preprocessing.preprocess(inputs, feature_set.columns, lookups, statistics)}


def _constants(feature_set, parent):
    """Returns the statistics of the run that this one goes on from; {} where there is none."""
    found = preprocessing.statistics(feature_set, parent) if parent else {}
    return {name: tf.constant(values) for name, values in found.items()}


class _Known:
    """The ids that a run goes on from, in a table that Transform keeps."""

    def __init__(self, name, ids):
        self.size = len(ids)
        table = tft.make_and_track_object(functools.partial(preprocessing.table, ids), name=f"{name}_known")
        self.places = table.lookup


def _places(path, known, ids):
    """Returns the vocabulary lines of ids, -1 where unknown: the parent's, then those of the new ones.

    Args:
        path: of the new ids' vocabulary.
        known: None, or the parent's ids.
        ids: int64 of any shape.
    """
    new = tft.apply_vocabulary(ids, path, default_value=-1)
    if known is None:
        return new
    old = known.places(ids)
    return tf.where(old >= 0, old, tf.where(new >= 0, new + known.size, new))


def _statistics(values, feature):
    if feature.scaling == "quantiles":
        return tft.quantiles(values, feature.num_quantiles, _ACCURACY)[0]
    scalable = tf.cast(preprocessing.scalable(values, feature), tf.float64)  # sums of float32 would be of their squares
    return preprocessing.scaling(tft.mean(scalable), tft.var(scalable))


def collect(transform_graph_dir, feature_set, output_dir, parent=None):
    """Writes the vocabularies and statistics of a Transform as `preprocessing.load` reads them.

    Args:
        transform_graph_dir: folder of the TransformGraph artifact.
        feature_set: that it was made with.
        output_dir: made where missing.
        parent: the vocabularies and statistics that it went on from; None: it did not.
    """
    output, folder = tft.TFTransformOutput(str(transform_graph_dir)), pathlib.Path(output_dir)
    vocabularies = {}
    for name in feature_set.vocabularies:
        path = output.vocabulary_file_by_name(name)
        if path is None:
            raise FileNotFoundError(f"{transform_graph_dir} must hold the vocabulary {name!r}. Run Transform again.")
        vocabularies[name] = np.array(pathlib.Path(path).read_text().split(), np.int64)
    if parent is not None:
        preprocessing.write_extended(feature_set, parent, vocabularies, folder)
        return
    statistics = {}
    if feature_set.numbers:
        spec = preprocessing.raw_spec(feature_set)
        found = output.transform_raw_features({name: tf.zeros([1, *f.shape], f.dtype) for name, f in spec.items()})
        for feature in feature_set.numbers:
            statistics[feature.name] = found[feature.name + preprocessing.STATISTICS_SUFFIX][0].numpy()
    preprocessing.write(folder, vocabularies, statistics)
