"""CTR training: one pass over impressions in time order (section 4), IDs alone or with SimTier and MAKE."""

from __future__ import annotations

import json
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import artifacts, own_classes, preprocessing, source
from tfmm import config as config_lib
from tfmm.ctr import integrations, lineage
from tfmm.ctr import model as model_lib
from tfmm.ctr import state as state_lib
from tfmm.ctr.continuing import continue_over, model_inputs
from tfmm.data import spans
from tfmm.features import LABEL, FeatureSet
from tfmm.index import item_vectors
from tfmm.index.item_vectors import ItemVectors
from tfmm.make import model as make_model
from tfmm.metrics.log_loss import log_loss
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import devices, evaluation, precision, sources
from tfmm.training import examples as examples_lib
from tfmm.training import progress as progress_lib
from tfmm.training.labels import click_rate, metric_weights


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
    parent_dir: str | pathlib.Path | None = None,
    state_dir: str | pathlib.Path | None = None,
    span: spans.Span | None = None,
    evaluations: int = 1,
    progress: progress_lib.Progress = progress_lib.silent,
) -> dict[str, typing.Any]:
    """Trains a click model, from scratch or on from another, and writes it.

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
        make_dir: pre-trained MAKE blocks, which stay frozen, but for methods with the setting `fine_tune`. None, or
            blocks trained for 0 epochs: MAKE is trained jointly with the rest.
        make_config: the shape of MAKE blocks where `make_dir` is None.
        training: on what devices, and how exactly.
        checkpoint_dir: where to keep the state, `segments` times per epoch, to go on from after a stop.
        parent_dir: the state of a model (see `ctr.state`) that is trained further over these rows, which come after its
            own: with its MAKE, as it stands, and vocabularies that begin with its own. None: from scratch.
        state_dir: gets the state, to be trained further; None: it is not kept.
        span: what the join found of the data, for the state to know what comes late; None: nothing is known.
        evaluations: how often per epoch the history has metrics of the evaluation rows, at the ends of segments.
        progress: called with the steps done.
    Returns:
        The manifest; `metrics` has AUC, GAUC and LogLoss on the evaluation rows, `training` what it was trained
        through, see `ctr.lineage`.
    Raises:
        FileNotFoundError: examples, vocabularies, snapshot, MAKE or the parent's state are missing.
        ValueError: a modality is not in the snapshot or not in MAKE, dims differ, indices exceed the
            vocabulary; rows, vocabularies, vectors or variables do not go on from the parent's; what `devices.placed`
            refuses, and a batch that the devices do not divide.
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
    extractor = make_model.load_model(make_dir) if make_dir is not None and uses_make and not parent_dir else None
    own_make = make_dir if extractor else None
    trained = lineage.facts(train_rows, eval_rows, parent_dir, snapshot_dir, tables, own_make, span)
    if parent_dir is None:
        state = fresh_state(config, feature_set, preprocessor, tables, methods, extractor, make_config, train_rows)
    else:
        state = state_lib.load(parent_dir, config, vocabulary_dir, tables)
    model = state.model

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
            *([] if parent_dir is None else [state_lib.read_manifest(parent_dir)["id"]]),
        )
        checkpoint = checkpoint_lib.Checkpoint(checkpoint_dir, key, state.variables)
    state, lines = continue_over(
        state,
        config,
        train_rows,
        checkpoint=checkpoint,
        progress=progress,
        evaluate=lambda: evaluate(model, tables, eval_rows),
        evaluations=evaluations,
    )
    folder = pathlib.Path(output_dir)
    used = ((snapshot_dir, tables), (make_dir, extractor), (parent_dir, True))
    parents = [path for path, of in used if path is not None and of]
    metrics = {name: lines[-1][name] for name in ("auc", "gauc", "logloss") if lines and name in lines[-1]}

    def write() -> dict[str, typing.Any]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.json").write_text(json.dumps(lines, indent=2) + "\n")
        if state_dir is not None:
            state.note_span(trained["trained_through"]["timestamp"], train_rows.column("item_id"))
            state_lib.save(state, state_dir, vocabulary_dir, parents, training=trained, seen=span.seen if span else {})
        return model_lib.save_model(model, folder, parents, metrics=metrics, training=trained)

    return devices.write(write, folder)


def fresh_state(
    config: config_lib.CTRConfig,
    feature_set: FeatureSet,
    preprocessor: preprocessing.Preprocessor,
    tables: typing.Mapping[str, ItemVectors],
    methods: typing.Sequence[config_lib.Method],
    extractor: make_model.MAKEModel | None,
    make_config: config_lib.MAKEConfig | None,
    rows: sources.ExampleSource,
) -> state_lib.State:
    """Returns an untrained state; what is known of the rows before training, it knows."""
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
        shown = {name: rows.column(name) for name in feature_set.label.sources}
        model.start_at(click_rate(shown, feature_set.label))
    return state_lib.State(model, state_lib.optimizer_of(model, config), tables)


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
