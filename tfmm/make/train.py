"""MAKE pre-training: many shuffled epochs over clicks, on item vectors alone (section 4.3)."""

from __future__ import annotations

import json
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import artifacts
from tfmm import config as config_lib
from tfmm.index import snapshot as snapshot_lib
from tfmm.make import examples as examples_lib
from tfmm.make import model as model_lib
from tfmm.make.item_vectors import NO_EMBEDDING, ItemVectors
from tfmm.metrics.auc import auc
from tfmm.metrics.gauc import user_aucs
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import loop
from tfmm.training import progress as progress_lib

COLUMNS = ("user_id", "item_id", "behavior_item_ids", "timestamp", "label")
EVAL_BATCH_SIZE = 2048


def train(
    config: config_lib.MAKEConfig,
    train_pattern: examples_lib.Patterns,
    eval_pattern: examples_lib.Patterns,
    snapshot_dir: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    *,
    modalities: typing.Sequence[str] | None = None,
    checkpoint_dir: str | pathlib.Path | None = None,
    progress: progress_lib.Progress = progress_lib.silent,
) -> dict[str, typing.Any]:
    """Trains one knowledge extractor per modality and writes them.

    Args:
        config: the settings; with 0 epochs the blocks are written untrained, to be trained jointly with the
            click model.
        train_pattern: glob pattern(s) of raw or transformed training examples.
        eval_pattern: the same for evaluation.
        snapshot_dir: the index snapshot that holds the item vectors.
        output_dir: gets `make.weights.h5`, `history.json` and `manifest.json`.
        modalities: those to train; all of the snapshot where None.
        checkpoint_dir: where to keep the state of each epoch, to go on from after a stop.
        progress: called with the steps done.
    Returns:
        The manifest; `metrics` has AUC and GAUC per modality after the last epoch.
    Raises:
        FileNotFoundError: examples or snapshot are missing.
        ValueError: a modality is not in the snapshot, or it has no vector at all.
    """
    tables = load_vectors(snapshot_dir, modalities)
    train_columns, eval_columns = (
        _read(examples_lib.example_files(pattern), tables) for pattern in (train_pattern, eval_pattern)
    )

    keras.utils.set_random_seed(config.seed)
    model = model_lib.MAKEModel(config, {modality: table.dim for modality, table in tables.items()})
    model.build()
    optimizer = keras.optimizers.Adam(config.learning_rate)
    optimizer.build(model.trainable_variables)
    checkpoint = None
    if checkpoint_dir is not None:
        key = artifacts.fingerprint(
            config_lib.to_dict(config),
            model.dims,
            [examples_lib.digest(columns) for columns in (train_columns, eval_columns)],
            [table.digest() for table in tables.values()],
        )
        checkpoint = checkpoint_lib.Checkpoint(
            checkpoint_dir, key, {"model": model.variables, "optimizer": optimizer.variables}
        )

    def step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = vector_inputs(batch, tables)
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            losses = {
                m: model_lib.loss(logits[m], batch["label"], inputs[f"{m}_target_mask"] & batch[examples_lib.IS_ROW])
                for m in tables
            }
            loop.apply_gradients(tape, tf.add_n(list(losses.values())), model.trainable_variables, optimizer)
        return {f"loss_{m}": value for m, value in losses.items()}

    def epoch_data(epoch: int) -> tf.data.Dataset:
        order = examples_lib.shuffled_order(len(train_columns["label"]), config.seed, epoch)
        return examples_lib.dataset(train_columns, order, config.batch_size)

    forward = tf.function(lambda batch: model(vector_inputs(batch, tables), training=False))
    history = loop.run(
        step,
        epoch_data,
        config.epochs,
        checkpoint=checkpoint,
        progress=progress,
        stage="make",
        evaluate=lambda epoch: evaluate(forward, tables, eval_columns),
    )
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps(history, indent=2) + "\n")
    metrics = {name: value for name, value in (history[-1] if history else {}).items() if "auc" in name}
    return model_lib.save_model(model, folder, [snapshot_dir], metrics=metrics)


def evaluate(
    forward: typing.Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    tables: typing.Mapping[str, ItemVectors],
    columns: examples_lib.Columns,
) -> dict[str, float]:
    """Returns `auc_{m}` and `gauc_{m}` per modality, over the rows whose target has an embedding.

    Args:
        forward: from a batch to logits [B] per modality.
        tables: the item vectors per modality.
        columns: the rows.
    """
    num_rows = len(columns["label"])
    order = np.arange(num_rows)
    outputs = [forward(batch) for batch in examples_lib.dataset(columns, order, EVAL_BATCH_SIZE)]
    result = {}
    for modality in tables:
        rows = columns[f"{modality}_target_slot"] != NO_EMBEDDING
        logits = np.concatenate([output[modality].numpy() for output in outputs])[:num_rows][rows]
        metrics = ranking_metrics(columns["label"][rows], logits, columns["user_id"][rows])
        result.update({f"{name}_{modality}": value for name, value in metrics.items()})
    return result


def ranking_metrics(labels: np.ndarray, scores: np.ndarray, user_ids: np.ndarray) -> dict[str, float]:
    """Returns `auc` and `gauc`; one that the rows cannot give (a single class) is left out."""
    if labels.min(initial=1) == labels.max(initial=0):
        return {}
    users = user_aucs(labels, scores, user_ids)
    result = {"auc": auc(labels, scores)}
    if not np.isnan(users.auc).all():
        result["gauc"] = users.gauc().value
    return result


def load_vectors(
    snapshot_dir: str | pathlib.Path, modalities: typing.Sequence[str] | None = None
) -> dict[str, ItemVectors]:
    """Loads the item vectors of a snapshot, per modality.

    Raises:
        ValueError: a modality is not in the snapshot, or it holds no vector.
    """
    snapshot = snapshot_lib.load_snapshot(snapshot_dir)
    names = tuple(snapshot.modalities if modalities is None else modalities)
    unknown = sorted(set(names) - set(snapshot.modalities))
    if unknown or not names:
        raise ValueError(
            f"`modalities` must be in the index snapshot {snapshot_dir}, which holds "
            f"{list(snapshot.modalities)}. Received: {list(names)}. Embed the catalog first."
        )
    tables = {}
    for name in names:
        table = snapshot[name]
        if not len(table.ids):
            raise ValueError(f"The index snapshot {snapshot_dir} must hold vectors of {name!r}. Received: none.")
        tables[name] = ItemVectors(table.ids, table.rows, table.scales)
    return tables


def add_slots(columns: examples_lib.Columns, tables: typing.Mapping[str, ItemVectors]) -> examples_lib.Columns:
    """Adds `{m}_target_slot` int32 [n] and `{m}_behavior_slots` int32 [n, L] per modality."""
    result = dict(columns)
    for modality, table in tables.items():
        result[f"{modality}_target_slot"] = table.slots(columns["item_id"])
        result[f"{modality}_behavior_slots"] = table.slots(columns["behavior_item_ids"])
    return result


def _read(files: typing.Sequence[str], tables: typing.Mapping[str, ItemVectors]) -> examples_lib.Columns:
    """Reads what MAKE needs, in time order (so the files' order never matters), as slots."""
    columns = add_slots(examples_lib.in_time_order(examples_lib.read_columns(files, COLUMNS)), tables)
    return {name: values for name, values in columns.items() if name not in ("behavior_item_ids", "timestamp")}


def vector_inputs(
    batch: typing.Mapping[str, tf.Tensor], tables: typing.Mapping[str, ItemVectors]
) -> dict[str, tf.Tensor]:
    """Gathers the vector inputs of a batch that has slots: rows, scales and mask of target and behaviors."""
    inputs = {}
    for modality, table in tables.items():
        for side, slots in (("target", "target_slot"), ("behavior", "behavior_slots")):
            parts = table.lookup(batch[f"{modality}_{slots}"])
            inputs.update(
                {
                    f"{modality}_{side}_{part}": tensor
                    for part, tensor in zip(("rows", "scales", "mask"), parts, strict=True)
                }
            )
    return inputs
