"""`stage.field=value`: one setting of a run, changed from a command line."""

from __future__ import annotations

import dataclasses
import json
import typing

from tfmm import modalities as modalities_lib
from tfmm.config import Method, RunConfig
from tfmm.modalities import Modality
from tfmm.scl_config import SCLConfig
from tfmm.scl_config import require as _require

_ANY = "serving_value"  # of a feature: a value of whatever type its kind has, or null


def override(config: RunConfig, assignments: typing.Iterable[str]) -> RunConfig:
    """Applies `stage.field=value` assignments, each checked against its dataclass; the run is checked once, with all.

    Args:
        config: the run to change.
        assignments: strings such as `"make.epochs=6"` or `"ctr.units=[64, 32]"`; values are JSON, or plain text. A
            feature, sequence, modality or method is found by its name: `"features.user_id.dim=32"`,
            `"methods.simtier.num_tiers=10"`, `"methods.my_team.methods:Recency.units=8"`.
    Returns:
        A new RunConfig.
    Raises:
        ValueError: unknown stage, name or field, or a value of another type.

    >>> override(RunConfig(), ["make.epochs=6"]).make.epochs
    6
    """
    changed: dict[str, typing.Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        stage_name, _, rest = path.strip().partition(".")
        name, _, field_name = rest.rpartition(".")  # a name such as `pkg.mod:Class` has dots, and no field has
        _require(bool(separator and stage_name and field_name), "An override must read stage.field=value.", assignment)
        stages = {field.name for field in dataclasses.fields(config)} - {"seed"}
        _require(stage_name in stages, f"The stage must be one of {sorted(stages)}.", stage_name)
        stage = changed.get(stage_name, getattr(config, stage_name))
        if isinstance(stage, tuple):
            _require(bool(name), f"An override of `{stage_name}` must read {stage_name}.name.field=value.", path)
            known = [part.name for part in stage]
            _require(name in known, f"`{stage_name}` must be one of {known}.", name)
            stage = tuple(_replace(part, field_name, text, path) if part.name == name else part for part in stage)
        else:
            _require(not name, "An override must read stage.field=value.", assignment)
            stage = _replace(stage, field_name, text, path)
        changed[stage_name] = stage
    return dataclasses.replace(config, **changed)


def _replace(stage: typing.Any, field_name: str, text: str, path: str) -> typing.Any:
    fields = {field.name for field in dataclasses.fields(stage)}
    if isinstance(stage, Method) or (isinstance(stage, Modality) and field_name not in fields):
        return dataclasses.replace(stage, settings={**stage.settings, field_name: _json(text)})  # its class knows them
    _require(field_name in fields, f"`{path.rpartition('.')[0]}` has the fields {sorted(fields)}.", field_name)
    is_read = not (isinstance(stage, SCLConfig) and modalities_lib.unread(stage.modality, [field_name]))
    _require(is_read, f"`{path}` must be a setting that the encoder reads.", field_name)
    current = getattr(stage, field_name)
    is_any = current is None or field_name == _ANY
    value = _json(text) if is_any else _parse(text.strip(), type(current), path)
    return dataclasses.replace(stage, **{field_name: value})


def _json(text: str) -> typing.Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()


def _parse(text: str, kind: type, path: str) -> object:
    value = _json(text)
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _require(type(value) is kind, f"`{path}` must be a {kind.__name__}.", value)
    return value
