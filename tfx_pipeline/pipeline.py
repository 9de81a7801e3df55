"""The batch DAG, the only one, for every runner: raw logs in, a pushed SavedModel out."""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import typing

from tfx import v1 as tfx

from tfmm import beam as beam_lib
from tfmm import config as config_lib
from tfmm import own_classes, runs, source
from tfmm.ctr import integrations
from tfmm.data import declared, spans
from tfmm.index import store
from tfmm.pretrain import frozen
from tfmm.pretrain import own_encoders as encoders_of_others
from tfmm.stages import inputs, run_file
from tfx_pipeline import artifact_types, components, continued, engines, infra_check, outside, published, push
from tfx_pipeline.environments import PIPELINE_NAME, Environment, data_fingerprint

_LOG = logging.getLogger(__name__)
MARKETPLACE_CONTENTS = ("image", "title")  # columns of its items


TRAINERS = ("SCLTrainer", "MAKETrainer", "IDTrainer", "MultimodalTrainer")  # the nodes that a GPU makes faster


def create_pipeline(
    environment: Environment,
    beam_pipeline_args: tuple[str, ...] | None = None,
    *,
    root: str | None = None,
    stamps: outside.AnyStamps | None = None,
    road: continued.Road | None = None,
    is_here: bool = True,
    say: typing.Callable[[str], object] = _LOG.warning,
) -> tfx.dsl.Pipeline:
    """Builds the DAG for the folders and settings of one environment, and writes its run into the workdir.

    Args:
        environment: where data, index and models are, and the RunConfig.
        beam_pipeline_args: for every Beam node, but for that of the catalog, which writes the index from its own
            process; None: the environment's.
        root: where artifacts go; None: into the workdir.
        stamps: of what lies outside of artifacts; None: by what the workdir's metadata know of it.
        road: what is taken from earlier runs; None: by what the workdir's metadata know of them.
        is_here: whether the nodes run on this machine: else neither its memory, nor what its network or its PATH has,
            says anything of them.
        say: is told what may go wrong, before anything runs.
    Returns:
        The pipeline, for LocalDagRunner or another TFX runner.
    Raises:
        EmptySpan: the run would go on from a model that has seen all of the data.
        ValueError: the named data has nothing to represent an item by, methods or model cannot be used, the workdir
            has something else where links go, the training is one of several processes, Beam's options cannot be
            used, workers on other machines do not see the folders, or the tables are larger than what their engine can
            join here.
    """
    config = environment.config
    beam_options = environment.beam if beam_pipeline_args is None else beam_pipeline_args
    beam_lib.verify(beam_options, is_here)
    if is_here and environment.index:
        _open_index(environment.index)
    places = [environment.workdir, root or environment.pipeline_root]
    places += [] if environment.data_dir is None else [environment.data_dir]
    engines.verify_places(beam_options, places, environment.mount)
    if config.training.strategy == config_lib.MULTI_WORKER:
        raise ValueError(
            "A node of the pipeline is one process, so `training.strategy` must be one or mirrored. Received: "
            "multi_worker. Train with several by `tfmm pretrain` and `tfmm train`, see docs/training.md."
        )
    feature_set = json.dumps(config_lib.to_dict(config.feature_set), sort_keys=True)
    published.require_room(environment)
    runs.verify(config)
    environment.write_run()
    own_models = (config.ctr.model, *(method.name for method in config.methods))
    own_encoders = tuple(modality.encoder for modality in config.modality_set.known)

    @functools.cache
    def _code(*modules: str, own: tuple[str, ...] = ()) -> str:
        """Returns a fingerprint of all code that modules run, the user's own classes' with it."""
        wiring = ("tfx_pipeline.components", "tfx_pipeline.click_models", "tfx_pipeline.preprocessing")
        code = source.fingerprint(*wiring, *source.imported_modules(*modules))
        return f"{code}-{own_classes.source_digest(own)}"

    def _reads(stage: str) -> str:
        """Returns what a stage reads of the run."""
        return json.dumps(config_lib.to_dict(run_file.part(config, stage)), sort_keys=True)

    def _training(stage: str, own: tuple[str, ...] = ()) -> dict[str, str]:
        """Returns the parameters of a node that trains."""
        module = "click_model" if stage.endswith("_model") else stage
        return {
            "run": _reads(stage),
            "run_path": str(environment.run_path),
            "checkpoint_dir": str(environment.checkpoint_dir / stage),
            "progress_path": str(environment.progress_path),
            "code": _code(f"tfmm.stages.{module}", own=own),
        }

    def _recipe(*nodes: typing.Any) -> list[typing.Any]:
        """Returns what nodes are given beside artifacts."""
        return [fingerprint, *(sorted(node.exec_properties.items()) for node in nodes)]

    road = continued.road(environment) if road is None else road
    fingerprint = ""  # of the data, where it is the user's
    stamps = stamps or outside.Stamps(environment)
    if environment.data_dir is None:
        origin = components.Marketplace(run=_reads("marketplace"), code=_code("tfmm.marketplace.generator"))
        dataset, modalities = origin.outputs["dataset"], config.modality_set.present(MARKETPLACE_CONTENTS.__contains__)
    else:
        tables = declared.tables(config.feature_set, config.modality_set)
        if is_here:
            engines.require_memory(beam_options, environment.data_dir, config.feature_set, say, road.num_rows)
        fingerprint = data_fingerprint(environment.data_dir, tables)
        origin = tfx.dsl.Importer(
            source_uri=str(environment.data_dir),
            artifact_type=artifact_types.Dataset,
            custom_properties={"fingerprint": fingerprint},
        ).with_id("Dataset")
        dataset = origin.outputs["result"]
        modalities = inputs.modalities_of(config, environment.data_dir)

    check = components.DataCheck(
        dataset=dataset,
        run=_reads("check"),
        max_pixels=json.dumps(config.max_pixels),
        code=_code("tfmm.data.checks"),
    )
    making: list[typing.Any] = []  # of encoders
    if road.encoders is None:
        pairs = components.PairBuilder(
            dataset=dataset, report=check.outputs["report"], run=_reads("pairs"), code=_code("tfmm.stages.pairs")
        )
        training = _training("encoders", own_encoders)
        settings_of = config.encoders(modalities).values()
        frozen_versions = (frozen.version(settings) for settings in settings_of if settings.frozen)
        files = encoders_of_others.file_digests(config.modality_set.known)
        training["code"] = "-".join((training["code"], *frozen_versions, *files))
        scl = components.SCLTrainer(pairs=pairs.outputs["pairs"], modalities=json.dumps(modalities), **training)
        making, encoders = [pairs, scl], scl.outputs["encoders"]
    else:
        making = [_taken(road.encoders, artifact_types.Encoders, "Encoders")]
        encoders = making[0].outputs["result"]
    embedding = {"run": _reads("catalog"), "code": _code("tfmm.stages.catalog", own=own_encoders)}
    catalog = components.CatalogEmbedder(
        dataset=dataset,
        encoders=encoders,
        index_url=environment.index_url,
        modalities=json.dumps(modalities),
        run_path=str(environment.run_path),
        stamp=stamps.of_index(embedding, *_recipe(origin, check, *making)),
        **embedding,
    )
    snapshot = catalog.outputs["snapshot"]

    joined = _code("tfmm.data.beam")
    examples = components.ExampleGenerator(
        dataset=dataset,
        report=check.outputs["report"],
        before="" if road.before == spans.FROM_SCRATCH else json.dumps(dataclasses.asdict(road.before)),
        run=_reads("examples"),
        code=joined,
    )
    statistics = tfx.components.StatisticsGen(examples=examples.outputs["examples"])
    feature_schema = components.FeatureSchema(feature_set=feature_set, code=_code("tfmm.preprocessing"))
    validator = tfx.components.ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=feature_schema.outputs["schema"]
    )
    anomalies = components.AnomalyCheck(
        statistics=statistics.outputs["statistics"],
        schema=feature_schema.outputs["schema"],
        found=validator.outputs["anomalies"],
        previous_dir=str(environment.statistics_dir),  # as it is then: what passed once is not asked again
        run=_reads("anomalies"),
        code=_code("tfx_pipeline.anomalies", "tfmm.drift"),
    )
    transform = tfx.components.Transform(
        examples=examples.outputs["examples"],
        schema=feature_schema.outputs["schema"],
        preprocessing_fn="tfx_pipeline.preprocessing.preprocessing_fn",
        disable_statistics=True,
        custom_config={"feature_set": feature_set, "code": _code("tfmm.preprocessing"), "parent": road.vocabulary},
    )
    for node in (*making[1:], catalog, transform):  # the first that learn of a span, or write what is in service
        node.add_upstream_node(anomalies)
    transformed = transform.outputs["transformed_examples"]

    shared = {
        "examples": transformed,
        "raw_examples": examples.outputs["examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "dataset": dataset,
    }
    of_vectors = {"snapshot": snapshot, "modalities": json.dumps(modalities)}
    trainings = _training("id_model", own_models), _training("multimodal_model", own_models)
    if road.models:
        parents = [_taken(road.models[name], components.Model, f"Parent_{name}") for name in sorted(road.models)]
        id_parent, multimodal_parent = (parent.outputs["result"] for parent in parents)
        id_trainer = components.IDContinuer(parent=id_parent, **shared, **trainings[0])
        multimodal_trainer = components.MultimodalContinuer(
            parent=multimodal_parent, **of_vectors, **shared, **trainings[1]
        )
        making += parents
    else:
        sequences = json.dumps(integrations.make_sequences(config.methods, config.feature_set))
        make = components.MAKETrainer(examples=transformed, snapshot=snapshot, sequences=sequences, **_training("make"))
        id_trainer = components.IDTrainer(**shared, **trainings[0])
        multimodal_trainer = components.MultimodalTrainer(
            make=make.outputs["make"], **of_vectors, **shared, **trainings[1]
        )
        making.append(make)
    id_trainer, multimodal_trainer = id_trainer.with_id("IDTrainer"), multimodal_trainer.with_id("MultimodalTrainer")

    trained = [origin, check, *making, catalog, examples, statistics, feature_schema, validator, transform]
    trained += [id_trainer, multimodal_trainer]
    judging = {"run": _reads("judgement"), "code": _code("tfmm.stages.judgement")}
    stamp = stamps.of_serving(judging, *_recipe(*trained))
    gate = components.ModelGate(
        examples=examples.outputs["examples"],
        id_model=id_trainer.outputs["model"],
        multimodal_model=multimodal_trainer.outputs["model"],
        dataset=dataset,
        encoders=encoders,
        snapshot=snapshot,
        serving_dir=str(environment.serving_dir),
        index_url=environment.index_url,
        run_path=str(environment.run_path),
        stamp=stamp,
        **judging,
    )
    infra = components.InfraCheck(
        model=multimodal_trainer.outputs["model"],
        gate=gate.outputs["blessing"],
        stamp=infra_check.server_path() if is_here else "",
        code=_code("tfmm.export.trial", "tfx_pipeline.infra_check"),
    )
    pusher = push.Pusher(
        model=multimodal_trainer.outputs["model"],
        model_blessing=gate.outputs["blessing"],
        infra_blessing=infra.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(environment.serving_dir))
        ),
        custom_config={outside.STAMP: stamp},
    )

    return tfx.dsl.Pipeline(
        pipeline_name=PIPELINE_NAME,
        pipeline_root=root or str(environment.pipeline_root),
        components=[*trained, anomalies, gate, infra, pusher],
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(pathlib.Path(environment.metadata_path))
        ),
        beam_pipeline_args=list(beam_options),
    )


def _open_index(url: str) -> None:
    """Raises what opening the index does, before anything is trained for it; one that is yet to be made is none."""
    with contextlib.suppress(FileNotFoundError):
        store.open_store(url, create=False).close()


def _taken(uri: str, kind: typing.Any, name: str) -> typing.Any:
    """Returns a node that gives what an earlier run made."""
    return tfx.dsl.Importer(source_uri=uri, artifact_type=kind).with_id(name)
