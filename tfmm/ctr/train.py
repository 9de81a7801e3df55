"""CTR training: one pass over impressions in time order (section 4), IDs alone or with SimTier and MAKE."""

from __future__ import annotations

import json
import math
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import artifacts, features
from tfmm import config as config_lib
from tfmm.ctr import model as model_lib
from tfmm.ctr.hidden_vectors import hide_behaviors
from tfmm.ctr.optimizer import HeldRate, TwoRateAdam
from tfmm.make import examples as examples_lib
from tfmm.make import model as make_model
from tfmm.make import train as make_train
from tfmm.make.item_vectors import ItemVectors
from tfmm.metrics.log_loss import log_loss
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import loop
from tfmm.training import progress as progress_lib

BLOCK_ROWS = 4096  # rows are shuffled inside blocks of this many, in time order
SEGMENTS = 16  # parts of an epoch, each followed by a line of the history and a checkpoint
COLUMNS = ("user_id", "item_id", "behavior_item_ids", "timestamp", features.LABEL, *model_lib.ID_INPUTS)


def train(
    config: config_lib.CTRConfig,
    train_pattern: examples_lib.Patterns,
    eval_pattern: examples_lib.Patterns,
    vocabulary_dir: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    *,
    max_behaviors: int,
    snapshot_dir: str | pathlib.Path | None = None,
    make_dir: str | pathlib.Path | None = None,
    make_config: config_lib.MAKEConfig | None = None,
    checkpoint_dir: str | pathlib.Path | None = None,
    progress: progress_lib.Progress = progress_lib.silent,
) -> dict[str, typing.Any]:
    """Trains a click model and writes it.

    Args:
        config: the settings; `modalities=()` is the ID-only twin, which reads neither snapshot nor MAKE.
        train_pattern: glob pattern(s) of transformed training examples.
        eval_pattern: the same for evaluation.
        vocabulary_dir: `user_id`, `item_id`, `category`, one id a line.
        output_dir: gets `ctr.weights.h5`, `history.json` and `manifest.json`.
        max_behaviors: L of the examples.
        snapshot_dir: the index snapshot with the vectors of `config.modalities`.
        make_dir: pre-trained MAKE blocks, which stay frozen. None, or blocks trained for 0 epochs: MAKE is
            trained jointly with the rest.
        make_config: the shape of MAKE blocks where `make_dir` is None.
        checkpoint_dir: where to keep the state, 16 times per epoch, to go on from after a stop.
        progress: called with the steps done.
    Returns:
        The manifest; `metrics` has AUC, GAUC and LogLoss on the evaluation rows.
    Raises:
        FileNotFoundError: examples, vocabularies, snapshot or MAKE are missing.
        ValueError: a modality is not in the snapshot or not in MAKE, dims differ, or indices exceed the
            vocabulary.
    """
    if config.modalities and snapshot_dir is None:
        raise ValueError(f"`snapshot_dir` must be given for the modalities {list(config.modalities)}.")
    tables = make_train.load_vectors(str(snapshot_dir), config.modalities) if config.modalities else {}
    sizes = vocabulary_sizes(vocabulary_dir)
    train_columns, eval_columns = (
        read_examples(examples_lib.example_files(pattern), max_behaviors, sizes, tables)
        for pattern in (train_pattern, eval_pattern)
    )

    keras.utils.set_random_seed(config.seed)
    extractor = make_model.load_model(make_dir) if make_dir is not None and tables and config.use_make else None
    model = model_lib.CTRModel(
        config,
        extractor.settings if extractor else make_config or config_lib.MAKEConfig(),
        sizes,
        {modality: table.dim for modality, table in tables.items()},
        max_behaviors,
    )
    model.build()
    if extractor is not None:
        model.take_make(extractor)
        model.freeze_make(extractor.settings.epochs > 0)
    num_rows = len(train_columns[features.LABEL])
    segment_rows = BLOCK_ROWS * math.ceil(num_rows / BLOCK_ROWS / SEGMENTS)
    starts = range(0, num_rows, segment_rows)
    steps = sum(math.ceil(min(segment_rows, num_rows - start) / config.batch_size) for start in starts)
    rate = HeldRate(config.learning_rate, config.epochs * steps, config.decay_from)
    optimizer = TwoRateAdam(rate, config.embedding_learning_rate)
    optimizer.build(model.trainable_variables)

    def step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            losses = model.losses(model_inputs(batch, tables), batch[features.LABEL], batch[examples_lib.IS_ROW])
            loop.apply_gradients(tape, tf.add_n(list(losses.values())), model.trainable_variables, optimizer)
        return losses

    def segment_data(segment: int) -> tf.data.Dataset:
        start = starts[segment % len(starts)]
        order = examples_lib.blocked_order(min(segment_rows, num_rows - start), BLOCK_ROWS, config.seed, segment)
        rows = {name: values[start + order] for name, values in train_columns.items()}
        rows = hide_behaviors(rows, config, segment)
        return examples_lib.dataset(rows, np.arange(len(order)), config.batch_size)

    def at_epoch_end(segment: int) -> dict[str, float]:
        return evaluate(model, tables, eval_columns) if (segment + 1) % len(starts) == 0 else {}

    checkpoint = None
    if checkpoint_dir is not None:
        key = artifacts.fingerprint(
            model.get_config(),
            [examples_lib.digest(columns) for columns in (train_columns, eval_columns)],
            [table.digest() for table in tables.values()],
            [] if extractor is None else [artifacts.read_manifest(str(make_dir))["id"]],
        )
        checkpoint = checkpoint_lib.Checkpoint(
            checkpoint_dir, key, {"model": model.variables, "optimizer": optimizer.variables}
        )
    history = loop.run(
        step,
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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps(lines, indent=2) + "\n")
    parents = [path for path in (snapshot_dir, make_dir) if path is not None and tables]
    metrics = {name: lines[-1][name] for name in ("auc", "gauc", "logloss") if lines and name in lines[-1]}
    return model_lib.save_model(model, folder, parents, metrics=metrics)


def vocabulary_sizes(vocabulary_dir: str | pathlib.Path) -> dict[str, int]:
    """Returns the number of indices per vocabulary: its lines, and 2 for padding and unknown ids."""
    sizes = {}
    for name in features.VOCABULARIES:
        path = pathlib.Path(vocabulary_dir) / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing. Transform the examples first; that writes the vocabularies.")
        sizes[name] = len(path.read_text().split()) + 2
    return sizes


def model_inputs(batch: typing.Mapping[str, tf.Tensor], tables: typing.Mapping[str, ItemVectors]) -> dict:
    """Returns the inputs of CTRModel for a batch of `read_examples`."""
    return {**{name: batch[name] for name in model_lib.ID_INPUTS}, **make_train.vector_inputs(batch, tables)}


def predict(
    model: model_lib.CTRModel, tables: typing.Mapping[str, ItemVectors], columns: examples_lib.Columns
) -> np.ndarray:
    """Returns the score float32 [n] of each row."""
    score = tf.function(lambda batch: model(model_inputs(batch, tables), training=False)["score"])
    num_rows = len(columns[features.LABEL])
    batches = examples_lib.dataset(columns, np.arange(num_rows), make_train.EVAL_BATCH_SIZE)
    return np.concatenate([score(batch).numpy() for batch in batches])[:num_rows]


def evaluate(
    model: model_lib.CTRModel, tables: typing.Mapping[str, ItemVectors], columns: examples_lib.Columns
) -> dict[str, float]:
    """Returns AUC, GAUC and LogLoss on rows; a metric that the rows cannot give is left out."""
    scores = predict(model, tables, columns)
    return {
        **make_train.ranking_metrics(columns[features.LABEL], scores, columns["user_id"]),
        "logloss": log_loss(columns[features.LABEL], scores),
    }


def read_examples(
    files: typing.Sequence[str],
    max_behaviors: int,
    sizes: typing.Mapping[str, int],
    tables: typing.Mapping[str, ItemVectors],
) -> examples_lib.Columns:
    """Reads transformed examples in time order, with the slots of their item vectors.

    Raises:
        ValueError: a column is missing, or an index is not in the vocabulary.
    """
    columns = examples_lib.in_time_order(examples_lib.read_columns(files, COLUMNS, max_behaviors))
    for feature in features.FEATURES:
        if feature.index is not None:
            highest, size = int(columns[feature.index].max()), sizes[str(feature.vocabulary)]
            if highest >= size or int(columns[feature.index].min()) < 0:
                raise ValueError(
                    f"`{feature.index}` must be below {size}, the size of vocabulary "
                    f"{feature.vocabulary!r}. Received: {highest}. Examples and `vocabulary_dir` must come "
                    "from the same Transform."
                )
    return make_train.add_slots(columns, tables)
