"""A run's methods and model, built and tried on a few rows before any work: all that is wrong is said at once."""

from __future__ import annotations

import functools
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import own_classes
from tfmm import vectors as vectors_lib
from tfmm.config import Method, RunConfig
from tfmm.ctr import head, integrations
from tfmm.ctr import model as model_lib
from tfmm.features import FeatureSet
from tfmm.vectors import Vectors

DIM, NUM_INDICES, NUM_CANDIDATES = 8, 8, 5  # as small as what is tried may be
TOLERANCE = 1e-4  # of a logit, ranked for one user and scored row by row
_MODALITY = "rehearsal"

Arrays = dict[str, np.ndarray]


def faults(config: RunConfig) -> list[str]:
    """Returns what is wrong with the methods and the model that a run declares, a line each.

    Each is built; where one of them is the user's own, the click model is then run on random rows: a training step, and
    the scores of one user's candidates as they are served, against the same row by row.
    """
    feature_set = config.feature_set
    sizes = {name: min(f.num_indices or NUM_INDICES, NUM_INDICES) for name, f in feature_set.embeddings.items()}
    found = [] if config.methods else ["`methods` must name at least one way to bring item vectors in"]
    for method in config.methods:
        fault = _fault(method.name, functools.partial(integrations.build, method, config.make, DIM, _MODALITY))
        found += fault or _unread(method, feature_set)
    if config.ctr.model_settings and not config.ctr.model:
        found.append("`ctr.model_settings` are of a model of your own, which `ctr.model` names; ours has `ctr.units`")
    found += _fault(config.ctr.model, lambda: head.build_ranker(config.ctr, feature_set, sizes, _MODALITY))
    own = [name for name in (config.ctr.model, *(method.name for method in config.methods)) if ":" in name]
    if own and not found:
        found = _fault(" with ".join(own), lambda: _try_model(config, sizes))
    return found


def _unread(method: Method, feature_set: FeatureSet) -> list[str]:
    """Returns that a method reads no sequence, where it is so."""
    if any(integrations.of_sequence([method], sequence) for sequence in feature_set.sequences):
        return []
    switch = "make" if issubclass(integrations.find(method.name), integrations.MAKE) else "simtier"
    return [
        f"the method {method.name!r} reads no sequence: each says `{switch}=False`. Leave it out of `methods`, or let "
        "it read one"
    ]


def _fault(name: str, attempt: typing.Callable[[], object]) -> list[str]:
    is_filtering = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()  # else Keras wraps what went wrong in what it was called with
    try:
        attempt()
    except Exception as error:  # a user's class may fail in any way
        text = own_classes.in_words(error)
        return [(text if name and name in text else f"{name}: {text}") + own_classes.place_of(error)]
    finally:
        if is_filtering:
            keras.config.enable_traceback_filtering()
    return []


def _try_model(config: RunConfig, sizes: typing.Mapping[str, int]) -> None:
    feature_set, generator = config.feature_set, np.random.default_rng(0)
    model = model_lib.CTRModel(config.ctr, config.make, feature_set, sizes, {_MODALITY: DIM}, config.methods)
    model.build()
    for variable in model.trainable_variables:  # so that every part moves the logit
        variable.assign(variable + generator.normal(0.0, 0.1, variable.shape).astype("float32"))
    rows, user = _rows(feature_set, sizes, NUM_CANDIDATES, generator), _rows(feature_set, sizes, 1, generator)
    of_user = [column.input for column in feature_set.columns if column.side == "user"]
    of_user += [name for sequence in feature_set.sequences for name in vectors_lib.names(_MODALITY, sequence.name)]
    shared = {name: user[name] if name in of_user else values for name, values in rows.items()}
    tiled = {name: np.repeat(v, NUM_CANDIDATES, 0) if name in of_user else v for name, v in shared.items()}

    @tf.function(autograph=False)
    def losses(inputs: typing.Any) -> typing.Any:
        labels = tf.range(NUM_CANDIDATES) % 2
        with tf.GradientTape() as tape:
            total = tf.add_n(list(model.losses(inputs, labels, tf.ones(NUM_CANDIDATES, tf.bool)).values()))
        gradients = tape.gradient(total, [variable.value for variable in model.trainable_variables])
        return [total, *(tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None)]

    if not all(np.isfinite(values).all() for values in losses(_tensors(rows))):
        raise ValueError("Losses and gradients of random rows must be finite.")
    specs = {
        name: tf.TensorSpec([1 if name in of_user else None, *values.shape[1:]], values.dtype)
        for name, values in shared.items()
    }
    served = tf.function(
        lambda inputs: model(inputs, training=False)["logit"],
        input_signature=[specs],
        jit_compile=config.export.jit_compile or None,
        autograph=False,
    )(_tensors(shared)).numpy()
    one_by_one = [{name: values[[row]] for name, values in tiled.items()} for row in range(NUM_CANDIDATES)]
    row_by_row = np.concatenate([model(_tensors(row), training=False)["logit"].numpy() for row in one_by_one])
    difference = float(np.abs(served - row_by_row).max())
    if not difference <= TOLERANCE:
        raise ValueError(
            "The logits of one user's candidates must equal the same scored row by row. Received: a difference of "
            f"{difference:.3g}. What one row gives must not depend on the others, nor on chance."
        )


def _rows(
    feature_set: FeatureSet, sizes: typing.Mapping[str, int], num_rows: int, generator: np.random.Generator
) -> Arrays:
    """Returns random inputs of the click model."""
    inputs: Arrays = {}
    for column in feature_set.columns:
        shape = (num_rows, *column.shape)
        if column.feature.is_embedded:
            inputs[column.input] = generator.integers(0, sizes[column.feature.embedding], shape)
        else:
            values = np.where(generator.random(shape) < 0.2, np.nan, generator.normal(size=shape))
            inputs[column.input] = values.astype(np.float32)
    for sequence in (None, *feature_set.sequences):
        shape = (num_rows,) if sequence is None else (num_rows, sequence.length)
        vectors = Vectors(
            generator.integers(-127, 128, (*shape, DIM)).astype(np.int8),
            np.full(shape, 1 / 127 / DIM**0.5, np.float32),
            generator.random(shape) < 0.7,
        )
        inputs |= vectors_lib.named(_MODALITY, vectors_lib.TARGET if sequence is None else sequence.name, vectors)
    return inputs


def _tensors(inputs: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in inputs.items()}
