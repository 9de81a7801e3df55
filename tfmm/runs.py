"""Where a run's settings come from: a preset, a function of the user's, or a file."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
import typing

from tfmm import config as config_lib
from tfmm import own_classes, presets
from tfmm.config import DEFAULT_METHODS, RunConfig
from tfmm.pretrain import own_encoders

PRESET = "preset"  # of a file: the preset that its settings change
_MOVED = {  # settings of earlier versions, and where they are now
    "modalities": "the data, which says what it has",
    "use_simtier": "methods",
    "use_make": "methods",
    "num_tiers": "methods.simtier.num_tiers",
    "tier_output": "methods.simtier.tier_output",
    "user_dim": "features.user_id.dim",
    "item_dim": "features.item_id.dim",
    "category_dim": "features.category.dim",
}


def load(reference: str) -> RunConfig:
    """Returns the run that a reference names.

    Args:
        reference: a preset (`small`); a function without arguments that returns a RunConfig, by module and name
            (`my_team.runs:weekly`), looked for in the current folder first; or a file, `.toml` or `.json`, with the
            fields of RunConfig that differ from its `preset` (default: quickstart). Lists, such as features, are
            given whole.
    Returns:
        The run.
    Raises:
        ValueError: it names nothing, or what it names cannot be used; all faults of a declaration at once.

    >>> load("small").data.max_behaviors
    20
    """
    if reference in presets.PRESETS:
        return presets.PRESETS[reference]()
    if reference.endswith((".toml", ".json")):
        return _from_file(pathlib.Path(reference))
    if ":" in reference:
        return _from_function(*reference.split(":", 1))
    raise ValueError(
        f"A run must be a preset ({', '.join(presets.PRESETS)}), module:function, or a file .toml or .json. "
        f"Received: {reference!r}."
    )


def verify(config: RunConfig) -> None:
    """Checks that the encoders, methods and model of a run can be built, and do what is needed of them.

    Raises:
        ValueError: all that is wrong with them, a line each.
    """
    if found := faults(config):
        raise ValueError(
            "The run's encoders, methods and model must work on its features. Received:\n- " + "\n- ".join(found)
        )


def faults(config: RunConfig) -> list[str]:
    """Returns what is wrong with the encoders, methods and model of a run, a line each."""
    found = own_encoders.faults(config.modalities)
    is_default = (config.methods, config.ctr.model, config.ctr.model_settings) == (DEFAULT_METHODS, "", {})
    if not is_default or not all(sequence.simtier and sequence.make for sequence in config.sequences):
        from tfmm.ctr import rehearsal  # it loads TensorFlow, which what is known to be right need not

        found += rehearsal.faults(config)
    return found


def _from_function(module: str, name: str) -> RunConfig:
    own_classes.look_here()
    try:
        run = getattr(importlib.import_module(module), name)()
    except Exception as error:  # a user's module may fail in any way
        raise ValueError(
            f"The run {module}:{name} must name a function that can be imported from here, and called without "
            f"arguments. Received{own_classes.place_of(error)}: {own_classes.in_words(error)}"
        ) from error
    if not isinstance(run, RunConfig):
        raise ValueError(f"The run {module}:{name} must return a RunConfig. Received: {type(run).__name__}.")
    return run


def _from_file(path: pathlib.Path) -> RunConfig:
    if not path.is_file():
        raise ValueError(f"The run {path} must be a file. Received: none of that name.")
    try:
        values = _parse(path)
    except ValueError as error:
        raise ValueError(f"The run {path} must be readable {path.suffix[1:].upper()}. Received: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"The run {path} must hold the fields of RunConfig. Received: {type(values).__name__}.")
    ctr = values.get("ctr")
    if isinstance(ctr, dict) and (moved := sorted(set(ctr) & set(_MOVED))):
        places = ", ".join(f"ctr.{name} to {_MOVED[name]}" for name in moved)
        raise ValueError(f"The run {path} was written for an earlier version, whose settings have moved: {places}.")
    preset = values.pop(PRESET, "quickstart")
    if not isinstance(preset, str) or preset not in presets.PRESETS:
        raise ValueError(f"The run {path}: `{PRESET}` must be one of {list(presets.PRESETS)}. Received: {preset!r}.")
    merged = _merged(config_lib.to_dict(presets.PRESETS[preset]()), values)
    return typing.cast(RunConfig, config_lib.from_dict(RunConfig, merged))


def _parse(path: pathlib.Path) -> typing.Any:
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(path.read_text("utf-8"))


def _merged(base: dict[str, typing.Any], changes: typing.Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    result = dict(base)
    for name, value in changes.items():
        is_stage = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = _merged(result[name], value) if is_stage else value
    return result
