"""The stock `tfx` command with two more options: `tfx run create --pipeline tfx_pipeline/ --verbose`."""

import os
import pathlib
import subprocess
import sys
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TFX loads TensorFlow, which would print of GPUs

import click
from tfx.tools.cli import labels
from tfx.tools.cli.cli_context import pass_context
from tfx.tools.cli.cli_main import cli_group
from tfx.tools.cli.commands.run import run_group
from tfx.tools.cli.handler import handler_factory

from tfx_pipeline import kubeflow, workdir

KUBEFLOW = "kubeflow"
RUNNERS = {"local": "local_runner.py", KUBEFLOW: "kubeflow_v2_runner.py"}


def _pipeline_file(path: str, engine: str) -> pathlib.Path:
    location = pathlib.Path(path).resolve()
    if location.is_dir():
        if engine not in RUNNERS:
            raise click.BadParameter(
                f"a folder can be run by --engine {' or '.join(RUNNERS)}. Received: {engine}. "
                "For another engine name the runner's file.",
                param_hint="--pipeline",
            )
        location = location / RUNNERS[engine]
    if not location.is_file():
        raise click.BadParameter(
            f"{location} does not exist. Name the folder that holds {RUNNERS['local']}, or a runner's file.",
            param_hint="--pipeline",
        )
    return location


def _register(ctx, engine: str, dsl_path: pathlib.Path) -> str:
    """Does what `tfx pipeline create` (or `update`) does; returns the name that the file gives its pipeline."""
    ctx.flags_dict[labels.ENGINE_FLAG] = engine
    ctx.flags_dict[labels.PIPELINE_DSL_PATH] = str(dsl_path)
    handler: typing.Any = handler_factory.create_handler(ctx.flags_dict)  # one that runs pipelines on this machine
    context = handler.execute_dsl(handler._get_dag_runner_patcher())
    name = context["pipeline_name"]
    handler._save_pipeline({labels.PIPELINE_NAME: name, labels.PIPELINE_ROOT: context["pipeline_root"]})
    return name


def _run_on_kubeflow(path: str, endpoint: str, namespace: str) -> None:
    """Compiles a pipeline and hands it to Kubeflow Pipelines, once nothing is missing for it."""
    missing = kubeflow.faults()
    if not endpoint:
        missing.append("--endpoint is not given: the address of the Kubeflow Pipelines API")
    if missing:
        raise click.ClickException(kubeflow.in_words(missing))
    place = workdir.named()
    if subprocess.run([sys.executable, str(_pipeline_file(path, KUBEFLOW))], check=False).returncode:
        raise SystemExit(1)  # it has said why
    spec = kubeflow.spec_path(place)
    try:
        run_id = kubeflow.submit(spec, endpoint, namespace)
    except Exception as error:  # kfp, its API's client and urllib3 each have their own
        raise click.ClickException(
            f"{endpoint} must take the run. Received: {type(error).__name__}: {error}. The spec that was sent: {spec}"
        ) from error
    click.echo(f"Run {run_id} on {endpoint}")


def add_options() -> None:
    """Adds `--pipeline PATH` and `--verbose` to `tfx run create`; without the first, the stock command does its own."""
    command = run_group.commands["create"]
    if any(parameter.name == "pipeline" for parameter in command.params):
        return
    stock = command.callback
    assert stock is not None, "`tfx run create` must do something"
    command.params.append(
        click.Option(
            ["--pipeline"],
            default=None,
            metavar="PATH",
            help="Folder or file of a pipeline: registers it and runs it, in place of --pipeline-name.",
        )
    )
    command.params.append(
        click.Option(["--verbose"], is_flag=True, help="Show TFX's whole log, which is kept in the workdir otherwise.")
    )
    for parameter in command.params:
        if parameter.name == "pipeline_name":
            parameter.required = False

    @pass_context
    def create_run(ctx, pipeline=None, verbose=False, **options):
        if verbose:
            os.environ[workdir.VERBOSE] = "1"
        if pipeline is None and not options["pipeline_name"]:
            raise click.UsageError("Missing option '--pipeline-name' / '--pipeline_name', or '--pipeline'.")
        if pipeline is not None and options["engine"] == KUBEFLOW:
            _run_on_kubeflow(pipeline, options["endpoint"], options["namespace"])
            return None
        if pipeline is not None:
            if options["engine"] == "auto":
                options["engine"] = "local"
            options["pipeline_name"] = _register(ctx, options["engine"], _pipeline_file(pipeline, options["engine"]))
        return click.get_current_context().invoke(stock, **options)

    command.callback = create_run


def main() -> None:
    add_options()
    cli_group()


if __name__ == "__main__":
    main()
