"""Training of the pre-ranking head: clicks, and the ranking model's logits on the same rows (distillation)."""

from __future__ import annotations

import json
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import artifacts, own_classes, preprocessing, source
from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.ctr import lineage
from tfmm.ctr import model as model_lib
from tfmm.ctr import pre_ranking as pre_ranking_lib
from tfmm.ctr import train as train_lib
from tfmm.ctr.continuing import model_inputs
from tfmm.features import LABEL
from tfmm.index import item_vectors
from tfmm.make import model as make_model
from tfmm.pre_ranking import PreRankingConfig
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import devices, loop, precision, replicas, sources
from tfmm.training import examples as examples_lib
from tfmm.training import progress as progress_lib
from tfmm.training.labels import weighing

_STREAM = 2  # of random numbers, apart from the order of rows
HIDDEN = "_is_hidden"  # of a batch: whether the target's vectors are hidden


@devices.placed("`pre_ranking.batch_size` or `data.max_behaviors`")
def train(
    config: PreRankingConfig,
    train_pattern: examples_lib.Patterns,
    eval_pattern: examples_lib.Patterns,
    vocabulary_dir: str | pathlib.Path,
    ranking_dir: str | pathlib.Path,
    snapshot_dir: str | pathlib.Path | None,
    output_dir: str | pathlib.Path,
    *,
    training: config_lib.TrainingConfig = config_lib.DEFAULT_TRAINING,
    checkpoint_dir: str | pathlib.Path | None = None,
    progress: progress_lib.Progress = progress_lib.silent,
) -> dict[str, typing.Any]:
    """Trains the light head of a ranking model, which stays as it is, and writes it.

    In each batch the ranking model scores the rows as they are given to the head: with the same vectors hidden.

    Args:
        config: the settings.
        train_pattern, eval_pattern: glob pattern(s) of transformed examples, those of the ranking model.
        vocabulary_dir: of the same Transform.
        ranking_dir: the ranking model, see `ctr.train.train`.
        snapshot_dir: with vectors of the encoders that it was trained with; None: of a model of ids alone.
        output_dir: gets `pre_ranking.weights.h5`, `history.json` and `manifest.json`.
        training: on what devices; the head computes in float32, as the ranking model does here.
        checkpoint_dir: where to keep the state of each epoch, to go on from after a stop.
        progress: called with the steps done.
    Returns:
        The manifest; `metrics` has AUC, GAUC and LogLoss of the head on the evaluation rows.
    Raises:
        FileNotFoundError: examples, vocabularies, snapshot or the ranking model are missing.
        ValueError: vectors are of other encoders, indices exceed the vocabulary; what `devices.placed` refuses, and a
            batch that the devices do not divide.
    """
    devices.require_divisible(config.batch_size)
    ranking = model_lib.load_model(ranking_dir)
    precision.to_float32(ranking)
    of_ranking = artifacts.read_manifest(ranking_dir)
    lineage.require_encoders(of_ranking["training"], lineage.encoder_versions(snapshot_dir, ranking.modalities))
    feature_set = ranking.feature_set
    tables = item_vectors.load_vectors(str(snapshot_dir), ranking.modalities) if ranking.modalities else {}
    preprocessor = preprocessing.load(feature_set, vocabulary_dir)
    train_rows, eval_rows = (
        sources.open_source(examples_lib.example_files(pattern), feature_set, tables, preprocessor)
        for pattern in (train_pattern, eval_pattern)
    )

    keras.utils.set_random_seed(config.seed)
    model = pre_ranking_lib.PreRankingModel(config, ranking)
    model.build()
    optimizer = keras.optimizers.Adam(config.learning_rate)
    optimizer.build(model.trainable_variables)
    checkpoint = None
    if checkpoint_dir is not None:
        key = artifacts.fingerprint(
            source.digest_of(__name__),
            own_classes.source_digest((ranking.settings.model, *(method.name for method in ranking.methods))),
            config_lib.to_dict(config),
            config_lib.to_dict(training),
            artifacts.digest(ranking_dir),
            [rows.digest for rows in (train_rows, eval_rows)],
            preprocessor.digest,
            [table.digest() for table in tables.values()],
        )
        variables = {"model": list(model.variables), "optimizer": list(optimizer.variables)}
        checkpoint = checkpoint_lib.Checkpoint(checkpoint_dir, key, variables)

    def step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = with_hidden(model_inputs(batch, tables, feature_set), batch[HIDDEN], ranking.modalities)
        teacher = ranking(inputs, training=False)["logit"]
        with tf.GradientTape() as tape:
            logit = model(inputs, training=True)["logit"]
            counts, weights = batch[examples_lib.IS_ROW], weighing(batch, feature_set.label)
            losses = {
                "loss": make_model.loss(logit, batch[LABEL], counts, **weights),
                "loss_distillation": config.distillation_weight
                * distance(logit, teacher, counts, weights.get("weight")),
            }
            loop.apply_gradients(tape, tf.add_n(list(losses.values())), model.trainable_variables, optimizer)
        return losses

    def epoch_data(epoch: int) -> tf.data.Dataset:
        order = examples_lib.shuffled_order(train_rows.num_rows, config.seed, epoch)

        def hide(columns: examples_lib.Columns, batch: int) -> examples_lib.Columns:
            generator = np.random.default_rng([config.seed, epoch, _STREAM, batch])
            return {**columns, HIDDEN: generator.random(len(columns[LABEL])) < config.hidden_fraction}

        return sources.dataset(train_rows, order, config.batch_size, hide)

    history = loop.run(
        step,
        epoch_data,
        config.epochs,
        checkpoint=checkpoint,
        progress=progress,
        stage="pre_ranking",
        evaluate=lambda epoch: train_lib.evaluate(model, tables, eval_rows),
    )
    folder = pathlib.Path(output_dir)

    def write() -> dict[str, typing.Any]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.json").write_text(json.dumps(history, indent=2) + "\n")
        metrics = {name: history[-1][name] for name in ("auc", "gauc", "logloss") if name in history[-1]}
        parents = [ranking_dir, *([snapshot_dir] if snapshot_dir is not None and tables else [])]
        return pre_ranking_lib.save_model(model, folder, parents, ranking=of_ranking["id"], metrics=metrics)

    return devices.write(write, folder)


def with_hidden(
    inputs: typing.Mapping[str, tf.Tensor], is_hidden: tf.Tensor, modalities: typing.Iterable[str]
) -> dict[str, tf.Tensor]:
    """Returns a model's inputs as if the targets of some rows, bool [B], had no vector in any modality."""
    result = dict(inputs)
    for modality in modalities:
        name = vectors_lib.names(modality, vectors_lib.TARGET).mask
        result[name] = result[name] & ~is_hidden
    return result


def distance(logit: tf.Tensor, teacher: tf.Tensor, mask: tf.Tensor, weight: tf.Tensor | None = None) -> tf.Tensor:
    """Returns the mean squared distance to a teacher's logits, by weight, over the rows that count; 0 where none does.

    On several replicas, what has that of the global batch as its mean over them, as `make.model.loss`.

    >>> float(distance(tf.constant([1.0, 9.0]), tf.constant([3.0, 0.0]), tf.constant([True, False])))
    4.0
    """
    counts = tf.cast(mask, tf.float32)
    if weight is not None:
        counts *= weight
    total = replicas.mean(tf.reduce_sum(counts))
    squared = tf.square(logit - tf.stop_gradient(teacher))
    return tf.reduce_sum(squared * counts) / tf.where(total > 0.0, total, 1.0)
