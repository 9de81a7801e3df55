"""The nodes of the DAG that are ours: each calls one stage's entry in tfmm and hands over folders.

`code` is a fingerprint of the source that a node runs: TFX's cache key holds a function's path, not its body.
No postponed annotations here: TFX reads the signatures.
"""

import dataclasses
import json
import pathlib

import apache_beam as beam
from absl import logging
from tfx import v1 as tfx
from tfx.dsl.component.experimental.annotations import BeamComponentParameter

from tfmm import config as config_lib
from tfmm.features import FeatureSet, Label
from tfmm.modalities import ModalitySet
from tfmm.training import progress
from tfx_pipeline import environments
from tfx_pipeline.artifact_types import DataReport, Dataset, Encoders, IndexSnapshot, Make, Pairs

component = tfx.dsl.components.component
InputArtifact = tfx.dsl.components.InputArtifact
OutputArtifact = tfx.dsl.components.OutputArtifact
Parameter = tfx.dsl.components.Parameter
Examples = tfx.types.standard_artifacts.Examples
Model = tfx.types.standard_artifacts.Model
TransformGraph = tfx.types.standard_artifacts.TransformGraph


def _config(kind, text):
    return config_lib.from_dict(kind, json.loads(text))


@component
def Marketplace(config: Parameter[str], code: Parameter[str], dataset: OutputArtifact[Dataset]):
    """Makes the synthetic marketplace."""
    from tfmm.data import marketplace

    marketplace.generate(_config(config_lib.MarketplaceConfig, config), dataset.uri)


@component
def DataCheck(
    dataset: InputArtifact[Dataset],
    config: Parameter[str],
    feature_set: Parameter[str],
    modality_set: Parameter[str],
    code: Parameter[str],
    report: OutputArtifact[DataReport],
):
    """Writes down every fault of the tables and what is not read, and stops the run where leaving rows out fails."""
    from tfmm.data import checks, unread

    data_config = _config(config_lib.DataConfig, config)
    declared = _config(FeatureSet, feature_set), _config(ModalitySet, modality_set)
    found = checks.check(dataset.uri, data_config, *declared)
    (pathlib.Path(report.uri) / "report.json").write_text(json.dumps(dataclasses.asdict(found), default=str))
    for line in unread.in_words(found.unread):
        logging.warning("%s: %s", dataset.uri, line)
    stopping = found.stopping(data_config.max_bad_fraction)
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
    config: Parameter[str],
    data_config: Parameter[str],
    modality_set: Parameter[str],
    label: Parameter[str],
    code: Parameter[str],
    pairs: OutputArtifact[Pairs],
):
    """Query -> purchased item pairs from the search and purchase logs before the evaluation period."""
    from tfmm.data import pairs as pairs_lib

    pairs_lib.build_pairs(
        dataset.uri,
        _config(config_lib.PairsConfig, config),
        pairs.uri,
        _config(config_lib.DataConfig, data_config),
        _config(ModalitySet, modality_set),
        FeatureSet(label=_config(Label, label)),
    )


@component
def SCLTrainer(
    pairs: InputArtifact[Pairs],
    configs: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    encoders: OutputArtifact[Encoders],
):
    """Semantic-aware contrastive pre-training of one encoder per modality."""
    from tfmm.pretrain import train

    for modality, config in json.loads(configs).items():
        train.train(
            config_lib.from_dict(config_lib.SCLConfig, config),
            str(pathlib.Path(pairs.uri) / modality),
            str(pathlib.Path(encoders.uri) / modality),
            checkpoint_dir=str(pathlib.Path(checkpoint_dir) / modality),
            progress=progress.jsonl(progress_path),
        )


@component
def CatalogEmbedder(
    dataset: InputArtifact[Dataset],
    encoders: InputArtifact[Encoders],
    index_path: Parameter[str],
    modalities: Parameter[str],
    modality_set: Parameter[str],
    code: Parameter[str],
    snapshot: OutputArtifact[IndexSnapshot],
):
    """Embeds the catalog by Beam into the item index, and takes a snapshot of it."""
    from tfmm.index import beam as index_beam
    from tfmm.index import item_index
    from tfmm.index import snapshot as snapshot_lib

    declared, names = _config(ModalitySet, modality_set), json.loads(modalities)
    index_beam.embed_catalog(
        dataset.uri,
        {name: str(pathlib.Path(encoders.uri) / name) for name in names if not declared[name].is_ready},
        index_path,
        dead_letter_dir=str(pathlib.Path(snapshot.uri) / "dead_letter"),
        modality_set=declared,
    )
    with item_index.ItemIndex(index_path) as index:
        active = index.active_encoders()
        versions = {name: active[name].encoder_version for name in names}
        snapshot_lib.write_snapshot(index, snapshot.uri, versions)


@component(use_beam=True)
def ExampleGenerator(
    dataset: InputArtifact[Dataset],
    report: InputArtifact[DataReport],
    config: Parameter[str],
    feature_set: Parameter[str],
    code: Parameter[str],
    examples: OutputArtifact[Examples],
    pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Joins impressions with each user's earlier behaviors into tf.Examples, by Beam."""
    from tfmm.data import beam as data_beam

    examples.split_names = json.dumps(["train", "eval"])
    with pipeline as root:
        declared = _config(FeatureSet, feature_set)
        data_beam.write(root, dataset.uri, _config(config_lib.DataConfig, config), declared, examples.uri)


@component
def FeatureSchema(
    feature_set: Parameter[str],
    code: Parameter[str],
    schema: OutputArtifact[tfx.types.standard_artifacts.Schema],
):
    """The examples' schema, from the declared features."""
    from tensorflow_transform.tf_metadata import schema_utils
    from tfx.utils import io_utils

    from tfmm import preprocessing

    proto = schema_utils.schema_from_feature_spec(preprocessing.raw_spec(_config(FeatureSet, feature_set)))
    io_utils.write_pbtxt_file(str(pathlib.Path(schema.uri) / "schema.pbtxt"), proto)


def _patterns(examples):
    return [f"{examples.uri}/Split-{split}/*" for split in ("train", "eval")]


@component
def MAKETrainer(
    examples: InputArtifact[Examples],
    snapshot: InputArtifact[IndexSnapshot],
    config: Parameter[str],
    feature_set: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    make: OutputArtifact[Make],
):
    """Pre-trains the multimodal knowledge extractor on clicks, for several epochs."""
    from tfmm.make import train

    train_pattern, eval_pattern = _patterns(examples)
    train.train(
        _config(config_lib.MAKEConfig, config),
        train_pattern,
        eval_pattern,
        snapshot.uri,
        make.uri,
        _config(FeatureSet, feature_set),
        checkpoint_dir=checkpoint_dir,
        progress=progress.jsonl(progress_path),
    )


def _train_ctr(
    examples,
    transform_graph,
    dataset,
    config,
    export,
    feature_set,
    checkpoint_dir,
    progress_path,
    model,
    snapshot_dir=None,
    make_dir=None,
    modalities="[]",
    methods="[]",
):
    from tfmm.ctr import train
    from tfmm.data import declared
    from tfmm.export import saved_model
    from tfx_pipeline import preprocessing

    train_pattern, eval_pattern = _patterns(examples)
    vocabulary_dir = f"{model.uri}/vocabulary"
    preprocessing.collect(transform_graph.uri, _config(FeatureSet, feature_set), vocabulary_dir)
    model_dir = f"{model.uri}/Format-TFMM"
    train.train(
        _config(config_lib.CTRConfig, config),
        train_pattern,
        eval_pattern,
        vocabulary_dir,
        model_dir,
        _config(FeatureSet, feature_set),
        modalities=json.loads(modalities),
        methods=[config_lib.from_dict(config_lib.Method, method) for method in json.loads(methods)],
        snapshot_dir=snapshot_dir,
        make_dir=make_dir,
        checkpoint_dir=checkpoint_dir,
        progress=progress.jsonl(progress_path),
    )
    saved_model.export(
        model_dir,
        vocabulary_dir,
        snapshot_dir,
        declared.id_types(dataset.uri, _config(FeatureSet, feature_set)),
        _config(config_lib.ExportConfig, export),
        f"{model.uri}/Format-Serving",
    )


@component
def IDTrainer(
    examples: InputArtifact[Examples],
    transform_graph: InputArtifact[TransformGraph],
    dataset: InputArtifact[Dataset],
    config: Parameter[str],
    export: Parameter[str],
    feature_set: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    model: OutputArtifact[Model],
):
    """Trains the ID-only twin for one epoch and exports it."""
    _train_ctr(
        examples,
        transform_graph,
        dataset,
        config,
        export,
        feature_set,
        checkpoint_dir,
        progress_path,
        model,
    )


@component
def MultimodalTrainer(
    examples: InputArtifact[Examples],
    transform_graph: InputArtifact[TransformGraph],
    dataset: InputArtifact[Dataset],
    snapshot: InputArtifact[IndexSnapshot],
    make: InputArtifact[Make],
    modalities: Parameter[str],
    methods: Parameter[str],
    config: Parameter[str],
    export: Parameter[str],
    feature_set: Parameter[str],
    checkpoint_dir: Parameter[str],
    progress_path: Parameter[str],
    code: Parameter[str],
    model: OutputArtifact[Model],
):
    """Trains the click model with SimTier and MAKE for one epoch and exports it with its item index."""
    _train_ctr(
        examples,
        transform_graph,
        dataset,
        config,
        export,
        feature_set,
        checkpoint_dir,
        progress_path,
        model,
        snapshot.uri,
        make.uri,
        modalities,
        methods,
    )


@component
def ModelGate(
    examples: InputArtifact[Examples],
    id_model: InputArtifact[Model],
    multimodal_model: InputArtifact[Model],
    dataset: InputArtifact[Dataset],
    encoders: InputArtifact[Encoders],
    snapshot: InputArtifact[IndexSnapshot],
    serving_dir: Parameter[str],
    index_path: Parameter[str],
    config: Parameter[str],
    feature_set: Parameter[str],
    modality_set: Parameter[str],
    code: Parameter[str],
    evaluation: OutputArtifact[tfx.types.standard_artifacts.ModelEvaluation],
    blessing: OutputArtifact[tfx.types.standard_artifacts.ModelBlessing],
):
    """Judges the exported model against thresholds, its ID-only twin and the model in service."""
    from tfmm.evaluate import encoders as encoders_lib
    from tfmm.evaluate import gate, in_service, report

    train_pattern, eval_pattern = _patterns(examples)
    models = {"id": f"{id_model.uri}/Format-Serving", "multimodal": f"{multimodal_model.uri}/Format-Serving"}
    version = environments.newest_version(serving_dir)
    if version is not None:
        models[in_service.NAME] = str(version)
    declared, folders = _config(FeatureSet, feature_set), encoders_lib.encoder_folders(encoders.uri)
    modalities = _config(ModalitySet, modality_set)
    probed = encoders_lib.probe_encoders(eval_pattern, declared, snapshot.uri, dataset.uri, folders, modalities)
    patterns = (train_pattern, eval_pattern)
    judged = report.evaluate(
        models,
        *patterns,
        evaluation.uri,
        declared,
        encoders=probed,
        snapshot_dir=snapshot.uri,
        index_path=index_path,
    )
    verdict = gate.decide(judged, _config(config_lib.GateConfig, config))
    (pathlib.Path(evaluation.uri) / "verdict.json").write_text(json.dumps(dataclasses.asdict(verdict), indent=2))
    blessing.set_int_custom_property("blessed", int(verdict.passed))
    (pathlib.Path(blessing.uri) / ("BLESSED" if verdict.passed else "NOT_BLESSED")).touch()
