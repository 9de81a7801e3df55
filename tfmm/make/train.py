"""MAKE pre-training: many shuffled epochs over clicks, on item vectors alone (section 4.3)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import artifacts, source
from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.features import LABEL, FeatureSet, Label
from tfmm.index import item_vectors
from tfmm.make import model as model_lib
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import devices, evaluation, loop, precision, sources
from tfmm.training import examples as examples_lib
from tfmm.training import progress as progress_lib
from tfmm.training.labels import metric_weights, weighing, weights_of

HISTORY = "history.json"


@devices.placed("`make.batch_size`, `make.units` or `data.max_behaviors`")
def train(
    config: config_lib.MAKEConfig,
    train_pattern: examples_lib.Patterns,
    eval_pattern: examples_lib.Patterns,
    snapshot_dir: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    feature_set: FeatureSet,
    *,
    modalities: typing.Sequence[str] | None = None,
    sequences: typing.Collection[str] | None = None,
    training: config_lib.TrainingConfig = config_lib.DEFAULT_TRAINING,
    checkpoint_dir: str | pathlib.Path | None = None,
    progress: progress_lib.Progress = progress_lib.silent,
) -> dict[str, typing.Any]:
    """Trains one knowledge extractor per modality and sequence and writes them.

    Args:
        config: the settings; with 0 epochs the blocks are written untrained, to be trained jointly with the
            click model.
        train_pattern: glob pattern(s) of raw or transformed training examples.
        eval_pattern: the same for evaluation.
        snapshot_dir: the index snapshot that holds the item vectors.
        output_dir: gets `make.weights.h5`, `history.json` and `manifest.json`.
        feature_set: what the examples hold; the sequences that MAKE reads get an extractor each.
        modalities: those to train; all of the snapshot where None.
        sequences: names of those that a method reads, see `ctr.integrations.make_sequences`; of none, nothing is read
            or trained, and the artifact says so. None: those whose `make` is True.
        training: on what devices, and how exactly.
        checkpoint_dir: where to keep the state of each epoch, to go on from after a stop.
        progress: called with the steps done.
    Returns:
        The manifest; `metrics` has AUC and GAUC per extractor after the last epoch.
    Raises:
        FileNotFoundError: examples or snapshot are missing.
        ValueError: a modality is not in the snapshot, it has no vector at all; what
            `devices.placed` refuses, and a batch that the devices do not divide.
    """
    devices.require_divisible(config.batch_size)
    if sequences is None:
        sequences = [sequence.name for sequence in feature_set.sequences if sequence.make]
    read = _of_sequences(feature_set, sequences)
    folder = pathlib.Path(output_dir)
    if not read.sequences:
        return devices.write(lambda: _write_nothing(config, folder), folder)
    tables = item_vectors.load_vectors(snapshot_dir, modalities)
    train_rows, eval_rows = (
        sources.open_source(examples_lib.example_files(pattern), read, tables)
        for pattern in (train_pattern, eval_pattern)
    )

    keras.utils.set_random_seed(config.seed)
    dims = {modality: table.dim for modality, table in tables.items()}
    model = model_lib.MAKEModel(config, dims, [sequence.name for sequence in read.sequences])
    model.build()
    optimizer = precision.scaled(keras.optimizers.Adam(config.learning_rate))
    optimizer.build(model.trainable_variables)
    checkpoint = None
    if checkpoint_dir is not None:
        key = artifacts.fingerprint(
            source.digest_of(__name__),
            config_lib.to_dict(config),
            config_lib.to_dict(training),
            model.dims,
            model.sequences,
            config_lib.to_dict(read.label),
            [rows.digest for rows in (train_rows, eval_rows)],
            [table.digest() for table in tables.values()],
        )
        checkpoint = checkpoint_lib.Checkpoint(
            checkpoint_dir, key, {"model": model.variables, "optimizer": optimizer.variables}
        )

    def step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = item_vectors.vector_inputs(batch, tables, read)
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            losses = {}
            for modality in tables:
                counts = vectors_lib.take(inputs, modality, vectors_lib.TARGET).mask & batch[examples_lib.IS_ROW]
                for name in _blocks(model, modality):
                    losses[name] = model_lib.loss(logits[name], batch[LABEL], counts, **weighing(batch, read.label))
            loop.apply_gradients(tape, tf.add_n(list(losses.values())), model.trainable_variables, optimizer)
        return {f"loss_{m}": value for m, value in losses.items()}

    def epoch_data(epoch: int) -> tf.data.Dataset:
        order = examples_lib.shuffled_order(train_rows.num_rows, config.seed, epoch)
        return sources.dataset(train_rows, order, config.batch_size)

    forward = tf.function(lambda batch: model(item_vectors.vector_inputs(batch, tables, read), training=False))
    history = loop.run(
        step,
        epoch_data,
        config.epochs,
        checkpoint=checkpoint,
        progress=progress,
        stage="make",
        evaluate=lambda epoch: evaluate(forward, model, eval_rows, read.label),
    )

    def write() -> dict[str, typing.Any]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HISTORY).write_text(json.dumps(history, indent=2) + "\n")
        metrics = {name: value for name, value in (history[-1] if history else {}).items() if "auc" in name}
        return model_lib.save_model(model, folder, [snapshot_dir], metrics=metrics)

    return devices.write(write, folder)


def _of_sequences(feature_set: FeatureSet, names: typing.Collection[str]) -> FeatureSet:
    """Returns the part of a feature set that some of its sequences need; without any, `sequences` is ()."""
    kept = tuple(sequence for sequence in feature_set.sequences if sequence.name in names)
    riding = {feature for sequence in kept for feature in sequence.features}
    features = tuple(f for f in feature_set.features if f.role != "behavior" or f.name in riding)
    return dataclasses.replace(feature_set, features=features, sequences=kept)


def _write_nothing(config: config_lib.MAKEConfig, folder: pathlib.Path) -> dict[str, typing.Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / model_lib.WEIGHTS).unlink(missing_ok=True)
    (folder / HISTORY).write_text("[]\n")
    return artifacts.write_manifest(folder, model_lib.KIND, config, dims={}, sequences=[], metrics={})


def evaluate(
    forward: typing.Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    model: model_lib.MAKEModel,
    rows: sources.ExampleSource,
    label: Label,
) -> dict[str, float]:
    """Returns `auc_{block}` and `gauc_{block}` per extractor, over the rows whose target has an embedding.

    Args:
        forward: from a batch to logits [B] per block.
        model: names the blocks.
        rows: with slots.
        label: says what each row counts.
    """
    columns = {name: rows.column(name) for name in ("user_id", *label.sources)}
    weights = metric_weights(columns, label)
    logits: dict[str, list[np.ndarray]] = {block: [] for name in model.dims for block in _blocks(model, name)}
    known: dict[str, list[np.ndarray]] = {modality: [] for modality in model.dims}
    with precision.in_float32(model):
        for batch in sources.dataset(rows, np.arange(rows.num_rows), evaluation.BATCH_SIZE):
            for block, values in forward(batch).items():
                logits[block].append(values.numpy())
            for modality, parts in known.items():
                parts.append(item_vectors.has_vector(batch, modality).numpy())
    result = {}
    for modality in model.dims:
        has = np.concatenate(known[modality])[: rows.num_rows]
        for block in _blocks(model, modality):
            scores, counted = np.concatenate(logits[block])[: rows.num_rows][has], weights_of(weights, has)
            metrics = evaluation.ranking_metrics(columns[LABEL][has], scores, columns["user_id"][has], counted)
            result.update({f"{name}_{block}": value for name, value in metrics.items()})
    return result


def _blocks(model: model_lib.MAKEModel, modality: str) -> list[str]:
    return [model_lib.block_name(modality, sequence) for sequence in model.sequences]
