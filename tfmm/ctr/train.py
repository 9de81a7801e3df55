"""CTR training: one pass over impressions in time order (section 4), IDs alone or with SimTier and MAKE."""

from __future__ import annotations

import functools
import json
import math
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import artifacts, own_classes, preprocessing, source
from tfmm import config as config_lib
from tfmm.ctr import integrations
from tfmm.ctr import model as model_lib
from tfmm.ctr.hidden_vectors import hide_behaviors
from tfmm.ctr.optimizer import HeldRate, TwoRateAdam
from tfmm.features import LABEL, FeatureSet
from tfmm.index import item_vectors
from tfmm.index.item_vectors import ItemVectors
from tfmm.make import model as make_model
from tfmm.metrics.log_loss import log_loss
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import devices, evaluation, loop, precision, sources
from tfmm.training import examples as examples_lib
from tfmm.training import progress as progress_lib
from tfmm.training.labels import click_rate, metric_weights, weighing


@devices.placed("`ctr.batch_size`, `data.max_behaviors`, or `dim` and `num_buckets` of features")
def train(
    config: config_lib.CTRConfig,
    train_pattern: examples_lib.Patterns,
    eval_pattern: examples_lib.Patterns,
    vocabulary_dir: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    feature_set: FeatureSet,
    *,
    modalities: typing.Sequence[str] = (),
    methods: typing.Sequence[config_lib.Method] = config_lib.DEFAULT_METHODS,
    snapshot_dir: str | pathlib.Path | None = None,
    make_dir: str | pathlib.Path | None = None,
    make_config: config_lib.MAKEConfig | None = None,
    training: config_lib.TrainingConfig = config_lib.DEFAULT_TRAINING,
    checkpoint_dir: str | pathlib.Path | None = None,
    progress: progress_lib.Progress = progress_lib.silent,
) -> dict[str, typing.Any]:
    """Trains a click model and writes it.

    Args:
        config: the settings.
        train_pattern: glob pattern(s) of transformed training examples.
        eval_pattern: the same for evaluation.
        vocabulary_dir: vocabularies and statistics, see `tfmm.preprocessing`.
        output_dir: gets `ctr.weights.h5`, `history.json` and `manifest.json`.
        feature_set: what the examples hold.
        modalities: whose vectors the model uses; () is the ID-only twin, which reads neither snapshot nor MAKE.
        methods: how it uses them.
        snapshot_dir: the index snapshot with the vectors of `modalities`.
        make_dir: pre-trained MAKE blocks, which stay frozen. None, or blocks trained for 0 epochs: MAKE is
            trained jointly with the rest.
        make_config: the shape of MAKE blocks where `make_dir` is None.
        training: on what devices, and how exactly.
        checkpoint_dir: where to keep the state, `segments` times per epoch, to go on from after a stop.
        progress: called with the steps done.
    Returns:
        The manifest; `metrics` has AUC, GAUC and LogLoss on the evaluation rows.
    Raises:
        FileNotFoundError: examples, vocabularies, snapshot or MAKE are missing.
        ValueError: a modality is not in the snapshot or not in MAKE, dims differ, indices exceed the
            vocabulary; what `devices.placed` refuses, and a batch that the devices do not divide.
    """
    devices.require_divisible(config.batch_size)
    if modalities and snapshot_dir is None:
        raise ValueError(f"`snapshot_dir` must be given for the modalities {list(modalities)}.")
    tables = item_vectors.load_vectors(str(snapshot_dir), modalities) if modalities else {}
    preprocessor = preprocessing.load(feature_set, vocabulary_dir)
    train_rows, eval_rows = (
        sources.open_source(examples_lib.example_files(pattern), feature_set, tables, preprocessor)
        for pattern in (train_pattern, eval_pattern)
    )

    keras.utils.set_random_seed(config.seed)
    uses_make = bool(tables and integrations.make_sequences(methods, feature_set))
    extractor = make_model.load_model(make_dir) if make_dir is not None and uses_make else None
    model = model_lib.CTRModel(
        config,
        extractor.settings if extractor else make_config or config_lib.MAKEConfig(),
        feature_set,
        preprocessor.sizes,
        {modality: table.dim for modality, table in tables.items()},
        methods,
    )
    model.build()
    for name, table in tables.items():
        model.fit_vectors(name, table.unit_vectors())
    if extractor is not None:
        model.take_make(extractor)
        model.freeze_make(extractor.settings.epochs > 0)
    if feature_set.label.is_sampled:  # few steps: those that bring the mean score to the click rate are saved
        shown = {name: train_rows.column(name) for name in feature_set.label.sources}
        model.start_at(click_rate(shown, feature_set.label))
    num_rows = train_rows.num_rows
    segment_rows = config.block_rows * math.ceil(num_rows / config.block_rows / config.segments)
    starts = range(0, num_rows, segment_rows)
    steps = sum(math.ceil(min(segment_rows, num_rows - start) / config.batch_size) for start in starts)
    rate = HeldRate(config.learning_rate, config.epochs * steps, config.decay_from)
    optimizer = precision.scaled(TwoRateAdam(rate, config.embedding_learning_rate))
    optimizer.build(model.trainable_variables)

    def segment_data(segment: int) -> tf.data.Dataset:
        start = starts[segment % len(starts)]
        block_rows, seed = config.block_rows, config.seed
        order = examples_lib.blocked_order(min(segment_rows, num_rows - start), block_rows, seed, segment)
        hide = functools.partial(hide_behaviors, config, list(tables), feature_set, segment)
        return sources.dataset(train_rows, start + order, config.batch_size, hide)

    def at_epoch_end(segment: int) -> dict[str, float]:
        return evaluate(model, tables, eval_rows) if (segment + 1) % len(starts) == 0 else {}

    checkpoint = None
    if checkpoint_dir is not None:
        key = artifacts.fingerprint(
            model.get_config(),
            config_lib.to_dict(training),
            source.digest_of(__name__),
            own_classes.source_digest((config.model, *(method.name for method in methods))),
            [rows.digest for rows in (train_rows, eval_rows)],
            preprocessor.digest,
            [table.digest() for table in tables.values()],
            [] if extractor is None else [artifacts.read_manifest(str(make_dir))["id"]],
        )
        checkpoint = checkpoint_lib.Checkpoint(
            checkpoint_dir, key, {"model": model.variables, "optimizer": optimizer.variables}
        )
    history = loop.run(
        step_of(model, tables, feature_set, optimizer),
        segment_data,
        config.epochs * len(starts),
        checkpoint=checkpoint,
        progress=progress,
        stage="ctr_multimodal" if tables else "ctr_id",
        evaluate=at_epoch_end,
    )
    lines = [
        {**line, "epoch": segment // len(starts), "segment": segment % len(starts)}
        for segment, line in enumerate(history)
    ]
    folder = pathlib.Path(output_dir)
    used = ((snapshot_dir, tables), (make_dir, extractor))
    parents = [path for path, of in used if path is not None and of]
    metrics = {name: lines[-1][name] for name in ("auc", "gauc", "logloss") if lines and name in lines[-1]}

    def write() -> dict[str, typing.Any]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.json").write_text(json.dumps(lines, indent=2) + "\n")
        return model_lib.save_model(model, folder, parents, metrics=metrics)

    return devices.write(write, folder)


def step_of(
    model: model_lib.CTRModel,
    tables: typing.Mapping[str, ItemVectors],
    feature_set: FeatureSet,
    optimizer: typing.Any,
) -> loop.StepFn:
    """Returns the step of `train`: a batch of `training.sources` -> its losses, after one update of the weights."""

    def step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            inputs, counts = model_inputs(batch, tables, feature_set), weighing(batch, feature_set.label)
            losses = model.losses(inputs, batch[LABEL], batch[examples_lib.IS_ROW], **counts)
            loop.apply_gradients(tape, tf.add_n(list(losses.values())), model.trainable_variables, optimizer)
        return losses

    return step


def model_inputs(
    batch: typing.Mapping[str, tf.Tensor], tables: typing.Mapping[str, ItemVectors], feature_set: FeatureSet
) -> dict[str, tf.Tensor]:
    """Returns the inputs of CTRModel for a batch of `training.sources`."""
    own = {column.input: batch[column.input] for column in feature_set.columns}
    return own | item_vectors.vector_inputs(batch, tables, feature_set)


def predict(
    model: model_lib.CTRModel, tables: typing.Mapping[str, ItemVectors], rows: sources.ExampleSource
) -> np.ndarray:
    """Returns the score float32 [n] of each row."""
    score = tf.function(lambda batch: model(model_inputs(batch, tables, model.feature_set), training=False)["score"])
    batches = sources.dataset(rows, np.arange(rows.num_rows), evaluation.BATCH_SIZE)
    with precision.in_float32(model):
        return np.concatenate([score(batch).numpy() for batch in batches])[: rows.num_rows]


def evaluate(
    model: model_lib.CTRModel, tables: typing.Mapping[str, ItemVectors], rows: sources.ExampleSource
) -> dict[str, float]:
    """Returns AUC, GAUC and LogLoss on rows; a metric that the rows cannot give is left out."""
    label = model.feature_set.label
    columns = {name: rows.column(name) for name in ("user_id", *label.sources)}
    scores, weights = predict(model, tables, rows), metric_weights(columns, label)
    return {
        **evaluation.ranking_metrics(columns[LABEL], scores, columns["user_id"], weights),
        "logloss": log_loss(columns[LABEL], scores, weights),
    }
