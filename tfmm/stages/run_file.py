"""The run beside every artifact, and what of it the artifact depends on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import typing

from tfmm import config as config_lib
from tfmm import folder_lock, runs
from tfmm.assignments import override
from tfmm.config import RunConfig
from tfmm.stages.folders import Folder

FILE = "run.json"
_SHOWN = 5  # settings that differ, of a message
_EXAMPLES = ("data", "features", "sequences", "label")
_DEVICES = ("training",)  # each command says its own: what is trained on does not ask where it was made


@dataclasses.dataclass(frozen=True)
class Stage:
    """What makes one kind of artifact.

    Attributes:
        reads: the fields of RunConfig that it reads.
        after: the stages whose artifacts it is made of.
    """

    reads: tuple[str, ...]
    after: tuple[str, ...] = ()


STAGES = {
    "marketplace": Stage(("marketplace",)),
    "check": Stage((*_EXAMPLES, "modalities")),
    "pairs": Stage(("pairs", "data", "modalities", "label")),
    "encoders": Stage(("image", "text", "modalities", "seed", *_DEVICES), ("pairs",)),
    "catalog": Stage(("modalities", "features", "sequences", "data"), ("encoders",)),
    "examples": Stage(_EXAMPLES),
    "anomalies": Stage(("drift", *_EXAMPLES), ("examples",)),
    "make": Stage(("make", *_DEVICES, *_EXAMPLES), ("catalog", "examples")),
    "id_model": Stage(("ctr", "export", *_DEVICES, *_EXAMPLES), ("examples",)),
    "multimodal_model": Stage(("ctr", "export", "methods", *_DEVICES, *_EXAMPLES), ("catalog", "make")),
    "pre_ranking": Stage(("pre_ranking", *_DEVICES), ("multimodal_model",)),
    "models": Stage((), ("id_model", "multimodal_model")),
    "judgement": Stage(("gate", "pre_ranking", "modalities", *_EXAMPLES), ("models",)),
}


def part(run: RunConfig, stage: str) -> RunConfig:
    """Returns the run as far as a stage reads it: all other fields have their defaults, so that it depends on no more.

    >>> part(RunConfig(seed=3), "encoders").seed, part(RunConfig(seed=3), "pairs").seed
    (3, 0)
    """
    return RunConfig(**{name: getattr(run, name) for name in STAGES[stage].reads})


def depends_on(stage: str) -> set[str]:
    """Returns the fields of RunConfig that a stage's artifact depends on, by way of those before it too."""
    before = [depends_on(name) for name in STAGES[stage].after]
    return set(STAGES[stage].reads).union(*before)


def write(run: RunConfig, folder: Folder) -> None:
    """Writes the whole run into an artifact's folder, made where missing."""
    path = pathlib.Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config_lib.to_dict(run), indent=2) + "\n")


@contextlib.contextmanager
def beside(run: RunConfig, folder: Folder) -> typing.Iterator[None]:
    """Writes the run into an artifact's folder once what is inside the `with` has made it; until then there is none.

    Nobody else may write there meanwhile, see `folder_lock`.
    """
    with folder_lock.hold(folder):
        (pathlib.Path(folder) / FILE).unlink(missing_ok=True)
        yield
        write(run, folder)


def copy(source: Folder, folder: Folder) -> None:
    """Puts a run that is written down into an artifact's folder."""
    shutil.copyfile(source, pathlib.Path(folder) / FILE)


def read(folder: Folder) -> RunConfig | None:
    """Returns the run beside an artifact; None where there is none.

    Raises:
        ValueError: it cannot be used.
    """
    path = pathlib.Path(folder) / FILE
    return runs.load(str(path)) if path.is_file() else None


def taken(
    stage: str,
    folder: Folder,
    reference: str | None,
    assignments: typing.Sequence[str] = (),
    default: str | None = None,
) -> RunConfig:
    """Returns the run of a command that works on an artifact: that which made it, changed as the options say.

    Args:
        stage: what makes such an artifact.
        folder: the artifact's.
        reference: another run, as `runs.load` takes it; None: the artifact's own.
        assignments: settings to change, see `tfmm.assignments`.
        default: the run to take where there is no folder yet; None: there must be one.
    Raises:
        ValueError: nothing says what made the artifact and no run is named, or the run asked for differs in what the
            artifact depends on.
    """
    made_by = read(folder)
    if made_by is None:
        reference = reference or (None if pathlib.Path(folder).exists() else default)
        if reference is None:
            raise ValueError(
                f"{folder} must hold {FILE}, which says what made it. Received: none; an earlier version of tfmm did "
                "not write it. Name the run that it was made with: --run, and --set where there was one."
            )
        return override(runs.load(reference), assignments)
    run = override(made_by if reference is None else runs.load(reference), assignments)
    if found := differences(made_by, run, stage):
        shown = "; ".join(found[:_SHOWN]) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        raise ValueError(
            f"{folder} was made by another run, and would not be the same by this one. Received: {shown}. Leave --run "
            f"and --set out to go on with the run that made it, or make it anew."
        )
    return run


def differences(made_by: RunConfig, given: RunConfig, stage: str) -> list[str]:
    """Returns the settings that a stage's artifact depends on and that differ, with both values; not the devices."""
    fields = sorted(depends_on(stage) - {*_DEVICES})
    left, right = ({name: config_lib.to_dict(run)[name] for name in fields} for run in (made_by, given))
    return list(_differences(left, right, ""))


def _differences(left: typing.Any, right: typing.Any, path: str) -> typing.Iterator[str]:
    left, right = (_by_name(value) for value in (left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        for name in {**left, **right}:
            yield from _differences(left.get(name), right.get(name), f"{path}.{name}" if path else name)
    elif left != right:
        yield f"{path}: {_in_words(left)}, not {_in_words(right)}"


def _by_name(value: typing.Any) -> typing.Any:
    """Returns a list of things with names, such as features, by name."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        return {one["name"]: one for one in value}
    return value


def _in_words(value: typing.Any) -> str:
    return "none" if value is None else "declared" if isinstance(value, dict) else json.dumps(value)
