"""Which model a run of the DAG goes on from, by ML Metadata: the last one that was blessed and pushed."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

from tfmm.ctr import state as state_lib
from tfmm.data import spans
from tfmm.days import LATEST
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
        before: what these models know of the data.
    """

    encoders: str | None = None
    models: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)
    before: spans.Before | None = None

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


def road(environment: Environment) -> Road:
    """Returns what this run takes from earlier ones, as its settings want it.

    Raises:
        EmptySpan: the data has nothing that the model has not seen.
        FileNotFoundError: the model has no training state.
        ValueError: it cannot be gone on from, see `continued.parent`.
    """
    days = environment.config.days
    if days.continue_from != LATEST:
        return Road()
    pushed = _pushed(metadata.executions(environment.metadata_path))
    newest = newest_version(environment.serving_dir)
    chosen = [one for one in pushed if newest is not None and one.version == newest.name] or pushed
    if not chosen:
        return Road()  # the first run
    last = chosen[-1]
    age = len({one.models[folders.MULTIMODAL] for one in pushed if one.encoders == last.encoders})
    if days.encoders_every and age >= days.encoders_every:
        return Road()
    spans_since = state_lib.read_manifest(pathlib.Path(last.models[folders.MULTIMODAL]) / folders.STATE)
    if days.make_every and spans_since["training"]["span"]["number"] >= days.make_every:
        return Road(last.encoders)
    made_by = run_file.read(last.models[folders.MULTIMODAL])
    parent = continued.parent(environment.config, last.models, made_by)
    if environment.data_dir is None:
        raise spans.EmptySpan(
            "A model goes on over data that grows, which the marketplace does not. No new version is made. Name a "
            'folder of tables (TFMM_DATA), or train from scratch (days.continue_from="").'
        )
    spans.require_new(environment.data_dir, environment.config.data.time_zone, parent.before)
    return Road(last.encoders, last.models, parent.before)


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
