"""A run's methods and model, built and tried on a few rows before any work: all that is wrong is said at once."""

from __future__ import annotations

import functools
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import own_classes
from tfmm import vectors as vectors_lib
from tfmm.config import CTRConfig, Method, RunConfig
from tfmm.ctr import head, integrations
from tfmm.ctr import model as model_lib
from tfmm.ctr.impressions import Impressions
from tfmm.ctr.knowledge import Knowledge
from tfmm.features import FeatureSet
from tfmm.vectors import Vectors

DIMS = {"rehearsal_one": 64, "rehearsal_two": 48}  # modalities, of dims that differ
NUM_INDICES, NUM_CANDIDATES, NUM_VECTORS = 8, 5, 4_096
TOLERANCE = 1e-4  # of a logit, ranked for one user and scored row by row
_NAME, _DIM = next(iter(DIMS.items()))

Arrays = dict[str, np.ndarray]


def faults(config: RunConfig) -> list[str]:
    """Returns what is wrong with the methods and the model that a run declares, a line each.

    Each is built; where one of them is the user's own, the click model is then run on random rows, with vectors of two
    modalities and, where it has no `id_head` that is so, of ids alone: what methods learn from all vectors, a training
    step, and the scores of one user's candidates as they are served, against the same row by row.
    """
    feature_set = config.feature_set
    sizes = {name: min(f.num_indices or NUM_INDICES, NUM_INDICES) for name, f in feature_set.embeddings.items()}
    found = [] if config.methods else ["`methods` must name at least one way to bring item vectors in"]
    faulty: dict[str, list[str]] = {}
    for method in config.methods:
        build = functools.partial(integrations.build, method, config.make, _DIM, _NAME)
        found += faulty.setdefault(method.name, _fault(method.name, build))
    sound = [method for method in config.methods if not faulty[method.name]]
    for place, method in enumerate(sound):
        found += _unread(method, sound[place + 1 :], feature_set)
    if config.ctr.model_settings and not config.ctr.model:
        found.append("`ctr.model_settings` are of a model of your own, which `ctr.model` names; ours has `ctr.units`")
    if config.ctr.model and config.ctr.units != CTRConfig().units:
        found.append(
            f"`ctr.units` are of our model, and {config.ctr.model!r} stands in its place: leave them out, or give it "
            f"`ctr.model_settings`. Received: {config.ctr.units}"
        )
    found += _fault(config.ctr.model, lambda: head.build_ranker(config.ctr, feature_set, sizes, _NAME))
    own = list(filter(own_classes.is_own, (config.ctr.model, *(method.name for method in config.methods))))
    if own and not found:
        found = _fault(" with ".join(own), lambda: _try_model(config, sizes, DIMS))
    if config.ctr.model and not config.ctr.id_head and not found:
        found = _fault(config.ctr.model, lambda: _try_model(config, sizes, {}))
    return found


def _unread(method: Method, later: typing.Sequence[Method], feature_set: FeatureSet) -> list[str]:
    """Returns that a method changes nothing, where it is so: what it would work on, or for, is not declared."""
    kind, base = integrations.find(method.name), integrations.Integration
    read = [sequence for sequence in feature_set.sequences if integrations.of_sequence([method], sequence)]
    if not read:
        switch = "make" if issubclass(kind, integrations.MAKE) else "simtier"
        return [
            f"the method {method.name!r} reads no sequence: each says `{switch}=False`. Leave it out of `methods`, or "
            "let it read one"
        ]
    if kind.parts is not base.parts:
        return []
    if kind.beside is not base.beside and any(sequence.din for sequence in read):
        return []
    if kind.beside is not base.beside and kind.search is base.search:
        return [
            f"the method {method.name!r} works inside the attention, which reads no sequence: each says `din=False`. "
            "Leave it out of `methods`, or let attention read one"
        ]  # fmt: skip
    after = [one for one in later if integrations.find(one.name).parts is not base.parts]
    if kind.search is base.search or any(integrations.of_sequence(after, sequence) for sequence in read):
        return []
    return [
        f"the method {method.name!r} chooses behaviors for the methods after it, and there is none that takes them. "
        "Put it in front of one, such as simtier, or leave it out"
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


def _try_model(config: RunConfig, sizes: typing.Mapping[str, int], dims: typing.Mapping[str, int]) -> None:
    feature_set, generator = config.feature_set, np.random.default_rng(0)
    model = model_lib.CTRModel(config.ctr, config.make, feature_set, sizes, dims, config.methods)
    model.build()
    if feature_set.label.is_sampled:
        model.start_at(0.5)
    _fit_vectors(model, generator)
    for variable in model.trainable_variables:  # so that every part moves the logit
        variable.assign(variable + generator.normal(0.0, 0.1, variable.shape).astype("float32"))
    rows = _rows(feature_set, sizes, dims, NUM_CANDIDATES, generator)
    user = _rows(feature_set, sizes, dims, 1, generator)
    for modality in dims:  # the first target has no vector at all
        vectors_lib.take(rows, modality, vectors_lib.TARGET).mask[0] = False
    _try_training(model, _tensors(rows))
    _try_hiding(model, rows)
    _try_serving(model, rows, user, config.export.jit_compile)


def _fit_vectors(model: model_lib.CTRModel, generator: np.random.Generator) -> None:
    """Lets methods learn from random vectors; not those of ours, which want as many as their settings say."""
    kinds: list[type[integrations.Integration]] = [integrations.Integration, *integrations.INTEGRATIONS.values()]
    ours = {kind.fit_vectors for kind in kinds}
    for modality, dim in model.dims.items():
        vectors = generator.normal(size=(NUM_VECTORS, dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for sequence in model.feature_set.sequences:
            for layer in model.integrations_of(modality, sequence):
                if type(layer).fit_vectors not in ours:
                    layer.fit_vectors(vectors)


def _try_training(model: model_lib.CTRModel, rows: typing.Mapping[str, tf.Tensor]) -> None:
    @tf.function(autograph=False)
    def losses(inputs: typing.Any) -> typing.Any:
        labels = tf.range(NUM_CANDIDATES) % 2
        with tf.GradientTape() as tape:
            total = tf.add_n(list(model.losses(inputs, labels, tf.ones(NUM_CANDIDATES, tf.bool)).values()))
        gradients = tape.gradient(total, [variable.value for variable in model.trainable_variables])
        return [total, *(tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None)]

    if not all(np.isfinite(values).all() for values in losses(rows)):
        raise ValueError("Losses and gradients of random rows must be finite.")


def _try_hiding(model: model_lib.CTRModel, rows: Arrays) -> None:
    """Checks that what is hidden from the methods is what the index would not have."""
    for hidden in model.hidden_sets():
        without = dict(rows)
        for modality in hidden:
            name = vectors_lib.names(modality, vectors_lib.TARGET).mask
            without[name] = np.zeros_like(rows[name])
        pairs = zip(_parts(model, rows, hidden), _parts(model, without, ()), strict=True)
        if not all(np.allclose(found, expected, atol=TOLERANCE) for found, expected in pairs):
            raise ValueError(
                "`is_zero_without_target` must be True only of methods whose parts are all zero where the target has "
                "no vector. Received: parts that are not."
            )


def _parts(model: model_lib.CTRModel, rows: Arrays, hidden: typing.Collection[str]) -> list[typing.Any]:
    impressions = Impressions(model.feature_set, _tensors(rows), model.embeddings, model.attention, False)
    return Knowledge(model, impressions, False).parts(hidden)


def _try_serving(model: model_lib.CTRModel, rows: Arrays, user: Arrays, jit_compile: bool) -> None:
    feature_set = model.feature_set
    of_user = [column.input for column in feature_set.columns if column.side == "user"]
    of_user += [n for m in model.dims for s in feature_set.sequences for n in vectors_lib.names(m, s.name)]
    shared = {name: user[name] if name in of_user else values for name, values in rows.items()}
    tiled = {name: np.repeat(v, NUM_CANDIDATES, 0) if name in of_user else v for name, v in shared.items()}
    specs = {
        name: tf.TensorSpec([1 if name in of_user else None, *values.shape[1:]], values.dtype)
        for name, values in shared.items()
    }
    served = tf.function(
        lambda inputs: model(inputs, training=False)["logit"],
        input_signature=[specs],
        jit_compile=jit_compile or None,
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
    feature_set: FeatureSet,
    sizes: typing.Mapping[str, int],
    dims: typing.Mapping[str, int],
    num_rows: int,
    generator: np.random.Generator,
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
    for modality, dim in dims.items():
        for sequence in (None, *feature_set.sequences):
            shape = (num_rows,) if sequence is None else (num_rows, sequence.length)
            vectors = Vectors(
                generator.integers(-127, 128, (*shape, dim)).astype(np.int8),
                np.full(shape, 1 / 127 / dim**0.5, np.float32),
                generator.random(shape) < 0.7,
            )
            inputs |= vectors_lib.named(modality, vectors_lib.TARGET if sequence is None else sequence.name, vectors)
    return inputs


def _tensors(inputs: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in inputs.items()}
