"""Which model a run of the DAG goes on from, by ML Metadata: the last one that was blessed and pushed."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

from tfmm.config import RunConfig
from tfmm.ctr import state as state_lib
from tfmm.data import spans
from tfmm.days import LATEST
from tfmm.export import saved_model
from tfmm.stages import continued, folders, run_file
from tfx_pipeline import metadata
from tfx_pipeline.environments import Environment, newest_version

PUSHED = "pushed_version"  # property that a Pusher gives a model


@dataclasses.dataclass(frozen=True)
class Road:
    """What a run takes from earlier ones instead of making it.

    Attributes:
        encoders: folder; None: they are trained.
        models: folders of the click models that this run's go on from, by `folders.ID` and `folders.MULTIMODAL`; {}:
            MAKE and both are trained from scratch.
        num_rows: impressions that are joined; None: all of the data.
        before: what is held out, and what these models know of the data.
    """

    encoders: str | None = None
    models: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)
    before: spans.Before = spans.FROM_SCRATCH
    num_rows: int | None = None

    @property
    def vocabulary(self) -> str:
        """The folder of the vocabularies that this run's go on from; "": there is none."""
        if not self.models:
            return ""
        return str(pathlib.Path(self.models[folders.MULTIMODAL]) / folders.STATE / state_lib.VOCABULARY)


@dataclasses.dataclass(frozen=True)
class _Pushed:
    """A model that was blessed and pushed, and what it was made of, by folder."""

    version: str
    encoders: str
    models: typing.Mapping[str, str]


def alone(config: RunConfig) -> Road:
    """Returns what a run takes that looks at no earlier one."""
    return Road(before=continued.from_scratch(config.days))


def road(environment: Environment) -> Road:
    """Returns what this run takes from earlier ones, as its settings want it.

    A run that trains in full is held against the model in service, so it holds out what that one was not trained on.

    Raises:
        EmptySpan: the run goes on, or its turn has come to train in full, and the data has nothing newer.
        FileNotFoundError: the model has no training state.
        ValueError: it cannot be gone on from, see `continued.parent`.
    """
    config, days = environment.config, environment.config.days
    if days.continue_from != LATEST:
        return Road(before=_judged_alike(environment))
    pushed = _pushed(metadata.executions(environment.metadata_path))
    newest = newest_version(environment.serving_dir)
    chosen = [one for one in pushed if newest is not None and one.version == newest.name] or pushed
    if not chosen:
        return Road(before=_judged_alike(environment))  # the first run
    last = chosen[-1]
    age = len({one.models[folders.MULTIMODAL] for one in pushed if one.encoders == last.encoders})
    manifest = state_lib.read_manifest(pathlib.Path(last.models[folders.MULTIMODAL]) / folders.STATE)
    is_encoders_turn = bool(days.encoders_every) and age >= days.encoders_every
    if is_encoders_turn or (days.make_every and manifest["training"]["span"]["number"] >= days.make_every):
        if environment.data_dir is not None:
            trained = manifest["training"]
            known = spans.Before(trained["trained_through"]["timestamp"], trained["newest"], manifest["seen"])
            spans.require_new(environment.data_dir, config.data, config.feature_set, known)
        return Road(None if is_encoders_turn else last.encoders, before=_judged_alike(environment))
    made_by = run_file.read(last.models[folders.MULTIMODAL])
    parent = continued.parent(config, last.models, made_by)
    if environment.data_dir is None:
        raise spans.EmptySpan(
            "A model goes on over data that grows, which the marketplace does not. No new version is made. Name a "
            'folder of tables (TFMM_DATA), or train from scratch (days.continue_from="").'
        )
    span = spans.require_new(environment.data_dir, config.data, config.feature_set, parent.before)
    return Road(last.encoders, last.models, parent.before, span.rows)


def _judged_alike(environment: Environment) -> spans.Before:
    """Returns what a training from scratch is told, which will be held against the model in service."""
    config, version = environment.config, newest_version(environment.serving_dir)
    before = continued.from_scratch(config.days)
    trained = None if version is None else saved_model.training_of(version)
    if environment.data_dir is None or not trained:
        return before
    through = trained["trained_through"]["timestamp"]
    return spans.judged_alike(environment.data_dir, config.data, config.feature_set, before, through)


def _pushed(found: typing.Sequence[metadata.Execution]) -> list[_Pushed]:
    """Returns the models that were pushed, oldest first."""
    makers = {artifact.id: execution for execution in reversed(found) for artifact in execution.outputs}
    uris = {artifact.id: artifact.uri for execution in found for artifact in execution.outputs}
    result = []
    for execution in found:
        versions = [str(v) for one in execution.outputs if (v := one.properties.get(PUSHED))]
        if execution.state not in metadata.FINISHED or not versions:
            continue
        (model,), (blessing,) = execution.inputs["model"], execution.inputs["model_blessing"]
        (twin,) = makers[blessing].inputs["id_model"]
        (snapshot,) = makers[model].inputs["snapshot"]
        (encoders,) = makers[snapshot].inputs["encoders"]
        models = {folders.ID: uris[twin], folders.MULTIMODAL: uris[model]}
        result.append(_Pushed(versions[0], uris[encoders], models))
    return result
