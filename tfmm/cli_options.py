"""What the commands of `tfmm` share: how errors are told, kinds of paths, the options that name a run."""

from __future__ import annotations

import os
import pathlib
import typing

import click

from tfmm import extras

Folder = click.Path(file_okay=False, path_type=pathlib.Path)
ExistingFolder = click.Path(exists=True, file_okay=False, path_type=pathlib.Path)
File = click.Path(dir_okay=False, path_type=pathlib.Path)


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
        except (ValueError, OSError, ImportError) as error:
            if os.environ.get("TFMM_TRACEBACK"):
                raise
            answer = extras.explain(error) if isinstance(error, ImportError) else None
            raise click.ClickException(answer or f"{error}\n(TFMM_TRACEBACK=1 shows where.)") from error


def run_options(function: typing.Callable) -> typing.Callable:
    """Adds `--run` and `--set`, which give `run` and `assignments`."""
    for option in (
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="STAGE.FIELD=VALUE",
            help="Override one setting, checked against its stage; may be repeated.",
        ),
        click.option(
            "--run",
            "--preset",
            "run",
            default="quickstart",
            show_default=True,
            metavar="RUN",
            help="The settings: a preset (quickstart, small, paper), module:function, a .toml or .json file.",
        ),
    ):
        function = option(function)
    return function


def load_config(run: str, assignments: tuple[str, ...]) -> typing.Any:
    """Returns the RunConfig that the options name."""
    from tfmm import config, own, runs

    return own.require(config.override(runs.load(run), assignments))
