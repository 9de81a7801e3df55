"""The nodes of the DAG that are ours: each calls one stage's entry in tfmm and hands over folders.

`run` is the run as far as the node reads it (`run_file.part`), so that nothing else is in the cache's key; the whole
run lies in `run_path`, and is copied beside the artifact. `code` is a fingerprint of the source that a node runs:
TFX's cache key holds a function's path, not its body. `stamp` tells the cache what lies outside (`outside`). No
postponed annotations here: TFX reads the signatures.
"""

import dataclasses
import json
import pathlib

import apache_beam as beam
from absl import logging
from tfx import v1 as tfx

from tfmm import config as config_lib
from tfmm.features import FeatureSet
from tfmm.stages import folders, run_file
from tfmm.training import progress
from tfx_pipeline import click_models, environments
from tfx_pipeline.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
    Parameter,
    beam_component,
    component,
)
from tfx_pipeline.artifact_types import DataReport, Dataset, Encoders, IndexSnapshot, Make, Pairs

Examples = tfx.types.standard_artifacts.Examples
ExampleAnomalies = tfx.types.standard_artifacts.ExampleAnomalies
ExampleStatistics = tfx.types.standard_artifacts.ExampleStatistics
InfraBlessing = tfx.types.standard_artifacts.InfraBlessing
Model = tfx.types.standard_artifacts.Model
Schema = tfx.types.standard_artifacts.Schema
TransformGraph = tfx.types.standard_artifacts.TransformGraph
ModelBlessing = tfx.types.standard_artifacts.ModelBlessing
ModelEvaluation = tfx.types.standard_artifacts.ModelEvaluation


def _run(text: str) -> config_lib.RunConfig:
    run: config_lib.RunConfig = config_lib.from_dict(config_lib.RunConfig, json.loads(text))
    return run


@component
def Marketplace(run: Parameter[str], code: Parameter[str], dataset: OutputArtifact[Dataset]):
    """Makes the synthetic marketplace."""
    from tfmm.marketplace import generator

    generator.generate(_run(run).marketplace, dataset.uri)


@component
def DataCheck(
    dataset: InputArtifact[Dataset],
    run: Parameter[str],
    max_pixels: Parameter[str],
    code: Parameter[str],
    report: OutputArtifact[DataReport],
):
    """Writes down every fault of the tables and what is not read, and stops the run where leaving rows out fails."""
    from tfmm.data import checks, unread

    config = _run(run)
    declared = config.feature_set, config.modality_set
    found = checks.check(dataset.uri, config.data, *declared, json.loads(max_pixels))
    (pathlib.Path(report.uri) / folders.REPORT).write_text(json.dumps(dataclasses.asdict(found), default=str))
    for line in unread.in_words(found.unread):
        logging.warning("%s: %s", dataset.uri, line)
    stopping = found.stopping(config.data.max_bad_fraction)
    if stopping:
        raise ValueError(
            f"{dataset.uri} breaks {len(stopping)} rules of the data schema too often to leave rows out: "
            f"{'; '.join(map(str, stopping[:5]))}. `tfmm data check` lists every fault; `data.max_bad_fraction` says "
            "how many rows may be left out."
        )


@component
def PairBuilder(
    dataset: InputArtifact[Dataset],
    report: InputArtifact[DataReport],
    run: Parameter[str],
    code: Parameter[str],
    pairs: OutputArtifact[Pairs],
):
    """Query -> purchased item pairs from the search and purchase logs before the evaluation period."""
    from tfmm.stages import pairs as pairs_lib

    pairs_lib.make_pairs(_run(run), dataset.uri, pairs.uri, logging.warning)


@component
def SCLTrainer(
    pairs: InputArtifact[Pairs],
    modalities: Parameter[str],
    run: Parameter[str],
    run_path: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    encoders: OutputArtifact[Encoders],
):
    """Semantic-aware contrastive pre-training of one encoder per modality."""
    from tfmm.stages import encoders as encoders_lib

    names, say, report = json.loads(modalities), logging.warning, progress.jsonl(progress_path)
    encoders_lib.train_encoders(_run(run), names, pairs.uri, encoders.uri, checkpoint_dir, say, report)
    run_file.copy(run_path, encoders.uri)


@component
def CatalogEmbedder(
    dataset: InputArtifact[Dataset],
    encoders: InputArtifact[Encoders],
    index_url: Parameter[str],
    modalities: Parameter[str],
    run: Parameter[str],
    run_path: Parameter[str],
    stamp: Parameter[str],
    code: Parameter[str],
    snapshot: OutputArtifact[IndexSnapshot],
):
    """Embeds the catalog by Beam into the item index, and takes a snapshot of it."""
    from tfmm.stages import catalog

    names, say = json.loads(modalities), logging.warning
    catalog.embed_catalog(_run(run), names, dataset.uri, encoders.uri, index_url, snapshot.uri, say)
    run_file.copy(run_path, snapshot.uri)


@beam_component
def ExampleGenerator(
    dataset: InputArtifact[Dataset],
    report: InputArtifact[DataReport],
    before: Parameter[str],
    run: Parameter[str],
    code: Parameter[str],
    examples: OutputArtifact[Examples],
    pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Joins impressions with each user's earlier behaviors into tf.Examples, by Beam; stops where too many are lost.

    `before` says what is held out, and what a parent knows of the data (`spans.Before`, as JSON); "": neither does.
    """
    from tfmm import dead_letters
    from tfmm.data import beam as data_beam
    from tfmm.data import spans

    config, known = _run(run), spans.Before(**json.loads(before)) if before else spans.FROM_SCRATCH
    examples.split_names = json.dumps(folders.SPLITS)
    span, lost = data_beam.generate(pipeline, dataset.uri, config.data, config.feature_set, examples.uri, known)
    for line in (*span.lines(), *dead_letters.count_lines(lost, examples.uri)):
        logging.warning(line)


@component
def FeatureSchema(feature_set: Parameter[str], code: Parameter[str], schema: OutputArtifact[Schema]):
    """The examples' schema, from the declared features."""
    from tensorflow_transform.tf_metadata import schema_utils
    from tfx.utils import io_utils

    from tfmm import preprocessing

    declared = config_lib.from_dict(FeatureSet, json.loads(feature_set))
    proto = schema_utils.schema_from_feature_spec(preprocessing.raw_spec(declared))
    io_utils.write_pbtxt_file(str(pathlib.Path(schema.uri) / "schema.pbtxt"), proto)


@component
def AnomalyCheck(
    statistics: InputArtifact[ExampleStatistics],
    schema: InputArtifact[Schema],
    found: InputArtifact[ExampleAnomalies],
    previous_dir: Parameter[str],
    run: Parameter[str],
    code: Parameter[str],
    report: OutputArtifact[DataReport],
):
    """Stops the run, with a table, where examples are not as declared or far from those of the span before."""
    from tfmm import drift
    from tfx_pipeline import anomalies

    config = _run(run)
    before = pathlib.Path(previous_dir) if pathlib.Path(previous_dir).is_dir() else None
    changes = anomalies.changes(statistics.uri, before, schema.uri, drift.compared(config.feature_set))
    wrong = [*anomalies.of_schema(found.uri, schema.uri), *anomalies.of_changes(changes, config.drift)]
    facts = {"anomalies": [dataclasses.asdict(one) for one in wrong], "changes": changes}
    (pathlib.Path(report.uri) / anomalies.FILE).write_text(json.dumps(facts, indent=2))
    for one in wrong:
        logging.warning("Anomaly. %s", one)
    if stopping := [one for one in wrong if one.stops]:
        logging.warning("Distances of columns: %s", json.dumps(changes))  # the report of a node that fails is removed
        raise ValueError(anomalies.in_words(stopping))


@component
def MAKETrainer(
    examples: InputArtifact[Examples],
    snapshot: InputArtifact[IndexSnapshot],
    sequences: Parameter[str],
    run: Parameter[str],
    run_path: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    make: OutputArtifact[Make],
):
    """Pre-trains the multimodal knowledge extractor on clicks, for several epochs."""
    from tfmm.stages import make as make_lib

    own, report = json.loads(sequences), progress.jsonl(progress_path)
    make_lib.train_make(_run(run), own, click_models.patterns(examples), snapshot.uri, make.uri, checkpoint_dir, report)
    run_file.copy(run_path, make.uri)


@component
def IDTrainer(
    examples: InputArtifact[Examples],
    raw_examples: InputArtifact[Examples],
    transform_graph: InputArtifact[TransformGraph],
    dataset: InputArtifact[Dataset],
    run: Parameter[str],
    run_path: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    model: OutputArtifact[Model],
):
    """Trains the ID-only twin for one epoch and exports it."""
    places = click_models.Places(examples, raw_examples, transform_graph, dataset, model)
    click_models.train(_run(run), places, run_path, checkpoint_dir, progress_path)


@component
def MultimodalTrainer(
    examples: InputArtifact[Examples],
    raw_examples: InputArtifact[Examples],
    transform_graph: InputArtifact[TransformGraph],
    dataset: InputArtifact[Dataset],
    snapshot: InputArtifact[IndexSnapshot],
    make: InputArtifact[Make],
    modalities: Parameter[str],
    run: Parameter[str],
    run_path: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    model: OutputArtifact[Model],
):
    """Trains the click model with SimTier and MAKE for one epoch and exports it with its item index."""
    places = click_models.Places(examples, raw_examples, transform_graph, dataset, model)
    vectors = json.loads(modalities), snapshot.uri, make.uri
    click_models.train(_run(run), places, run_path, checkpoint_dir, progress_path, vectors)


@component
def IDContinuer(
    parent: InputArtifact[Model],
    examples: InputArtifact[Examples],
    raw_examples: InputArtifact[Examples],
    transform_graph: InputArtifact[TransformGraph],
    dataset: InputArtifact[Dataset],
    run: Parameter[str],
    run_path: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    model: OutputArtifact[Model],
):
    """Trains an earlier ID-only twin on, over the new span, and exports it."""
    places = click_models.Places(examples, raw_examples, transform_graph, dataset, model)
    click_models.train(_run(run), places, run_path, checkpoint_dir, progress_path, parent=parent)


@component
def MultimodalContinuer(
    parent: InputArtifact[Model],
    examples: InputArtifact[Examples],
    raw_examples: InputArtifact[Examples],
    transform_graph: InputArtifact[TransformGraph],
    dataset: InputArtifact[Dataset],
    snapshot: InputArtifact[IndexSnapshot],
    modalities: Parameter[str],
    run: Parameter[str],
    run_path: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    model: OutputArtifact[Model],
):
    """Trains an earlier click model on, over the new span, with its MAKE, and exports it with its item index."""
    places = click_models.Places(examples, raw_examples, transform_graph, dataset, model)
    vectors = json.loads(modalities), snapshot.uri, None
    click_models.train(_run(run), places, run_path, checkpoint_dir, progress_path, vectors, parent)


@component
def ModelGate(
    examples: InputArtifact[Examples],
    id_model: InputArtifact[Model],
    multimodal_model: InputArtifact[Model],
    dataset: InputArtifact[Dataset],
    encoders: InputArtifact[Encoders],
    snapshot: InputArtifact[IndexSnapshot],
    serving_dir: Parameter[str],
    index_url: Parameter[str],
    run: Parameter[str],
    run_path: Parameter[str],
    stamp: Parameter[str],
    code: Parameter[str],
    evaluation: OutputArtifact[ModelEvaluation],
    blessing: OutputArtifact[ModelBlessing],
):
    """Judges the exported model against thresholds, its ID-only twin and the model in service."""
    from tfmm.stages import judgement

    _, verdict = judgement.judge(
        _run(run),
        {folders.ID: id_model.uri, folders.MULTIMODAL: multimodal_model.uri},
        click_models.patterns(examples),
        evaluation.uri,
        logging.warning,
        in_service_dir=environments.newest_version(serving_dir),
        index_url=index_url,
        snapshot_dir=snapshot.uri,
        encoders_dir=encoders.uri,
        data_dir=dataset.uri,
    )
    run_file.copy(run_path, evaluation.uri)
    blessing.set_int_custom_property("blessed", int(verdict.passed))
    (pathlib.Path(blessing.uri) / ("BLESSED" if verdict.passed else "NOT_BLESSED")).touch()


@component
def InfraCheck(
    model: InputArtifact[Model],
    gate: InputArtifact[ModelBlessing],
    stamp: Parameter[str],
    code: Parameter[str],
    blessing: OutputArtifact[InfraBlessing],
):
    """Loads a model that the gate passed as TF Serving does, and stops the run where a signature does not answer."""
    from tfx_pipeline import infra_check

    if gate.get_int_custom_property("blessed") != 1:
        blessing.set_int_custom_property("blessed", 0)
        return
    version_dir = pathlib.Path(model.uri) / folders.SERVING
    if wrong := infra_check.fault(version_dir, infra_check.server_path(), pathlib.Path(blessing.uri) / "server.log"):
        raise ValueError(
            f"A model must answer each of its signatures where it is served. Received, of {version_dir}: {wrong}\n"
            "It is not pushed; the model in service, if there is one, stays."
        )
    blessing.set_int_custom_property("blessed", 1)
