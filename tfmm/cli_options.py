"""What the commands of `tfmm` share: how errors are told, kinds of paths, the options that name a run."""

from __future__ import annotations

import os
import pathlib
import typing

import click

from tfmm import buckets, extras, full_disk
from tfmm.assignments import override
from tfmm.config import MULTI_WORKER

if typing.TYPE_CHECKING:
    from tfmm.config import RunConfig


class _Folder(click.Path):
    """A folder of this machine; a URL is refused with the way out, as no folder of that name is meant."""

    def convert(self, value: typing.Any, param: click.Parameter | None, ctx: click.Context | None) -> typing.Any:
        try:
            buckets.require_local(value, f"What `{param.opts[0] if param else 'it'}` names")
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


class _DataFolder(click.Path):
    """A folder of tables: one of this machine, or the URL of one in a bucket, which stays a str."""

    def convert(self, value: typing.Any, param: click.Parameter | None, ctx: click.Context | None) -> typing.Any:
        if not buckets.is_url(value):
            return super().convert(value, param, ctx)
        if not buckets.walk(value):
            self.fail(f"{value} is no folder with anything in it.", param, ctx)
        return str(value).rstrip("/")


Folder = _Folder(file_okay=False, path_type=pathlib.Path)
ExistingFolder = _Folder(exists=True, file_okay=False, path_type=pathlib.Path)
DataFolder = _DataFolder(exists=True, file_okay=False, path_type=pathlib.Path)
DEFAULT_RUN = "quickstart"
_F = typing.TypeVar("_F", bound=typing.Callable[..., typing.Any])


class Command(click.Command):
    """A command whose help ends with an example that keeps its lines."""

    def __init__(self, *args: typing.Any, example: str = "", **kwargs: typing.Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(" " * formatter.current_indent + line + "\n")


class Group(click.Group):
    """Turns the errors that a user can mend into one line without a traceback."""

    command_class = Command
    group_class = type

    def invoke(self, ctx: click.Context) -> typing.Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except Exception as error:
            full = full_disk.told(error)
            is_mendable = full or isinstance(error, (ValueError, OSError, ImportError, MemoryError))
            if os.environ.get("TFMM_TRACEBACK") or not is_mendable:
                raise
            if full:
                raise click.ClickException(full) from error
            answer = extras.explain(error) if isinstance(error, ImportError) else None
            where = "" if isinstance(error, BlockingIOError) else "\n(TFMM_TRACEBACK=1 shows where.)"
            raise click.ClickException(answer or f"{error}{where}") from error


def _set_option() -> typing.Callable[[_F], _F]:
    return click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="STAGE.FIELD=VALUE",
        help="Override one setting, checked against its stage; may be repeated.",
    )


def _run_option(default: str | None, meaning: str) -> typing.Callable[[_F], _F]:
    return click.option(
        "--run",
        "--preset",
        "run",
        default=default,
        show_default=default is not None,
        metavar="RUN",
        help=f"{meaning}a preset (quickstart, small, rich, paper), module:function, a .toml or .json file.",
    )


def run_options(function: _F) -> _F:
    """Adds `--run` and `--set`, which give `run` and `assignments`."""
    return _run_option(DEFAULT_RUN, "The settings: ")(_set_option()(function))


def later_run_options(function: _F) -> _F:
    """Adds `--run` and `--set` to a stage that reads another's artifact, and with it the run that made it."""
    meaning = "Default: the run that made what is read (its run.json). Another, if it differs in nothing that is made: "
    return _run_option(None, meaning)(_set_option()(function))


def load_config(
    run: str,
    assignments: tuple[str, ...],
    seed: int | None = None,
    is_training: bool = False,
    data_dir: pathlib.Path | str | None = None,
) -> RunConfig:
    """Returns the run that the options name, verified; a `seed` is every stage's, unless `--set` gives others.

    A command that trains itself, `is_training`, meets the other processes of a cluster here. What the tables in
    `data_dir` lack of the run is said together with what is wrong with it.
    """
    from tfmm import runs

    settings = runs.load(run)
    result = override(settings if seed is None else settings.with_seed(seed), assignments)
    _meet_others(result, is_training)
    if data_dir is None:
        runs.verify(result)
        return result
    from tfmm.data import declared, schema
    from tfmm.stages import inputs

    lacking = declared.faults(data_dir, result.feature_set, result.modality_set)
    if not result.modalities and schema.has_table(data_dir, "items"):  # declared ones are among the faults
        lacking += inputs.faults(result, data_dir)
    if lacking:
        found = [*lacking, *runs.faults(result)]
        raise ValueError(f"{data_dir} must have what the run declares. Received:\n- " + "\n- ".join(found))
    runs.verify(result)
    return result


def take_config(
    stage: str,
    folder: pathlib.Path,
    run: str | None,
    assignments: tuple[str, ...],
    default: str | None = None,
    is_training: bool = False,
) -> RunConfig:
    """Returns the run that made an artifact, changed as the options say and verified, see `run_file.taken`.

    `is_training` is as `load_config` takes it.
    """
    from tfmm import runs
    from tfmm.stages import run_file

    result = run_file.taken(stage, folder, run, assignments, default)
    _meet_others(result, is_training)
    runs.verify(result)
    return result


def _meet_others(config: RunConfig, is_training: bool) -> None:
    """Starts a training of several processes, before anything is computed."""
    if is_training and config.training.strategy == MULTI_WORKER:
        from tfmm.training import devices

        devices.start(config.training)
