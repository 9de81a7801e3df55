"""The Transform stage: vocabularies of the train split, and indices by `tfmm.features.preprocess`."""

import tensorflow as tf
import tensorflow_transform as tft

from tfmm import features


def preprocessing_fn(inputs, custom_config):
    """Computes the vocabularies and adds index columns.

    Args:
        inputs: int64 tensors by feature name, as `features.raw_spec` says.
        custom_config: `min_id_count`, the least count of an id that gets a vocabulary line.
    """
    columns = {name: [] for name in features.VOCABULARIES}
    for feature in features.FEATURES:
        if feature.vocabulary is not None:
            columns[feature.vocabulary].append(tf.reshape(inputs[feature.name], [-1]))
    lookups = {}
    for name, parts in columns.items():
        path = tft.vocabulary(
            tf.concat(parts, 0), frequency_threshold=custom_config["min_id_count"], vocab_filename=name
        )
        lookups[name] = lambda ids, path=path: tft.apply_vocabulary(ids, path, default_value=-1)
    return features.preprocess(inputs, lookups)
