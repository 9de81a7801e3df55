"""The batch DAG, the only one, for every runner: raw logs in, a pushed SavedModel out."""

import functools
import json
import pathlib

from tfx import v1 as tfx

from tfmm import config as config_lib
from tfmm import own_classes, runs
from tfmm.data import declared, schema
from tfx_pipeline import artifact_types, components
from tfx_pipeline.environments import (
    PIPELINE_NAME,
    Environment,
    code_fingerprint,
    data_fingerprint,
    imported_modules,
)

# Where Beam runs on this machine: pinned, as DirectRunner may become a runner that downloads itself.
LOCAL_BEAM = ("--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1")

MARKETPLACE_CONTENTS = ("image", "title")  # columns of its items


def _json(config: object) -> str:
    return json.dumps(config_lib.to_dict(config), sort_keys=True)


def create_pipeline(environment: Environment, beam_pipeline_args: tuple[str, ...] = LOCAL_BEAM) -> tfx.dsl.Pipeline:
    """Builds the DAG for the folders and settings of one environment.

    Args:
        environment: where data, index and models are, and the RunConfig.
        beam_pipeline_args: for every Beam node.
    Returns:
        The pipeline, for LocalDagRunner or another TFX runner.
    Raises:
        ValueError: the named data has nothing to represent an item by, or methods or model cannot be used.
    """
    config = environment.config
    feature_set, modality_set = _json(config.feature_set), _json(config.modality_set)
    runs.verify(config)
    own_models = (config.ctr.model, *(method.name for method in config.methods))
    own_encoders = tuple(modality.encoder for modality in config.modality_set.known)

    @functools.cache
    def _code(*stages: str, own: tuple[str, ...] = ()) -> str:
        """Returns a fingerprint of all code that stages may run, the user's own classes' with it."""
        modules = imported_modules(*(f"tfmm.{stage}" for stage in stages))
        code = code_fingerprint("tfx_pipeline.components", "tfx_pipeline.preprocessing", *modules)
        return f"{code}-{own_classes.source_digest(own)}"

    checkpoints, progress_path = environment.checkpoint_dir, str(environment.progress_path)

    if environment.data_dir is None:
        source = components.Marketplace(config=_json(config.marketplace), code=_code("data"))
        dataset, modalities = source.outputs["dataset"], config.modality_set.present(MARKETPLACE_CONTENTS.__contains__)
    else:
        source = tfx.dsl.Importer(
            source_uri=str(environment.data_dir),
            artifact_type=artifact_types.Dataset,
            custom_properties={
                "fingerprint": data_fingerprint(
                    environment.data_dir, declared.tables(config.feature_set, config.modality_set)
                )
            },
        ).with_id("Dataset")
        dataset = source.outputs["result"]
        modalities = schema.modalities(environment.data_dir, config.modality_set)
        if not modalities:
            raise ValueError(
                f"{environment.data_dir} must have titles or images with searches or orders that teach an encoder, or "
                "items' own vectors. Received: none. `tfmm data schema` prints the columns."
            )

    check = components.DataCheck(
        dataset=dataset,
        config=_json(config.data),
        feature_set=feature_set,
        modality_set=modality_set,
        code=_code("data"),
    )
    pairs = components.PairBuilder(
        dataset=dataset,
        report=check.outputs["report"],
        config=_json(config.pairs),
        data_config=_json(config.data),
        modality_set=modality_set,
        label=_json(config.label),
        code=_code("data"),
    )
    scl = components.SCLTrainer(
        pairs=pairs.outputs["pairs"],
        configs=json.dumps({m: config_lib.to_dict(c) for m, c in config.encoders(modalities).items()}),
        checkpoint_dir=str(checkpoints / "scl" / _code("pretrain", own=own_encoders)),
        progress_path=progress_path,
        code=_code("pretrain", own=own_encoders),
    )
    catalog = components.CatalogEmbedder(
        dataset=dataset,
        encoders=scl.outputs["encoders"],
        index_path=str(environment.index_path),
        modalities=json.dumps(modalities),
        modality_set=modality_set,
        code=_code("index", own=own_encoders),
    )
    snapshot = catalog.outputs["snapshot"]

    examples = components.ExampleGenerator(
        dataset=dataset,
        report=check.outputs["report"],
        config=_json(config.data),
        feature_set=feature_set,
        code=_code("data"),
    )
    statistics = tfx.components.StatisticsGen(examples=examples.outputs["examples"])
    feature_schema = components.FeatureSchema(feature_set=feature_set, code=_code("data"))
    validator = tfx.components.ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=feature_schema.outputs["schema"]
    )
    transform = tfx.components.Transform(
        examples=examples.outputs["examples"],
        schema=feature_schema.outputs["schema"],
        preprocessing_fn="tfx_pipeline.preprocessing.preprocessing_fn",
        disable_statistics=True,
        custom_config={"feature_set": feature_set, "code": _code("data")},
    )
    transformed = transform.outputs["transformed_examples"]

    make = components.MAKETrainer(
        examples=transformed,
        snapshot=snapshot,
        config=_json(config.make),
        feature_set=feature_set,
        checkpoint_dir=str(checkpoints / "make" / _code("make")),
        progress_path=progress_path,
        code=_code("make"),
    )
    shared = {
        "examples": transformed,
        "transform_graph": transform.outputs["transform_graph"],
        "dataset": dataset,
        "export": _json(config.export),
        "config": _json(config.ctr),
        "feature_set": feature_set,
        "progress_path": progress_path,
        "code": _code("ctr", "export", own=own_models),
    }
    id_trainer = components.IDTrainer(
        checkpoint_dir=str(checkpoints / "id" / _code("ctr", "export", own=own_models)),
        **shared,
    )
    multimodal_trainer = components.MultimodalTrainer(
        snapshot=snapshot,
        modalities=json.dumps(modalities),
        methods=json.dumps([config_lib.to_dict(method) for method in config.methods]),
        make=make.outputs["make"],
        checkpoint_dir=str(checkpoints / "multimodal" / _code("ctr", "export", own=own_models)),
        **shared,
    )

    gate = components.ModelGate(
        examples=examples.outputs["examples"],
        id_model=id_trainer.outputs["model"],
        multimodal_model=multimodal_trainer.outputs["model"],
        dataset=dataset,
        encoders=scl.outputs["encoders"],
        snapshot=snapshot,
        serving_dir=str(environment.serving_dir),
        index_path=str(environment.index_path),
        config=_json(config.gate),
        feature_set=feature_set,
        modality_set=modality_set,
        code=_code("evaluate"),
    )
    pusher = tfx.components.Pusher(
        model=multimodal_trainer.outputs["model"],
        model_blessing=gate.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(environment.serving_dir))
        ),
    )

    return tfx.dsl.Pipeline(
        pipeline_name=PIPELINE_NAME,
        pipeline_root=str(environment.pipeline_root),
        components=[
            source,
            check,
            pairs,
            scl,
            catalog,
            examples,
            statistics,
            feature_schema,
            validator,
            transform,
            make,
            id_trainer,
            multimodal_trainer,
            gate,
            pusher,
        ],
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(pathlib.Path(environment.metadata_path))
        ),
        beam_pipeline_args=list(beam_pipeline_args),
    )
