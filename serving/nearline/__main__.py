"""`python -m serving.nearline`: trains on over what is served, and pushes, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pathlib
import signal
import threading
import typing

from serving import logs, metrics

if typing.TYPE_CHECKING:
    from tfmm.config import RunConfig


def main(arguments: typing.Sequence[str] | None = None, command: str = "python -m serving.nearline") -> None:
    """Runs the trainer; `command` is what its help calls it."""
    parser = argparse.ArgumentParser(
        prog=command,
        description=__doc__,
        epilog=f"Example: {command} --log run/served.sqlite --models run/models "
        "--index run/items.sqlite --workdir run/nearline --output run/serving/tfmm",
    )
    add_options(parser)
    options = parser.parse_args(arguments)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logs.configure(options.log_format, options.log_level)
    from serving.nearline import trainer
    from tfmm import folder_lock, runs
    from tfmm.stages import run_file

    work_dir = pathlib.Path(options.workdir).absolute()
    work_dir.mkdir(parents=True, exist_ok=True)
    letters_url = options.dead_letters
    if letters_url is None:
        (work_dir / "dead_letters").mkdir(exist_ok=True)
        letters_url = f"folder://{work_dir / 'dead_letters'}"
    settings = trainer.Settings(
        logs=tuple(options.log),
        models_dir=pathlib.Path(options.models),
        index_url=options.index,
        work_dir=work_dir,
        serving_dir=pathlib.Path(options.output).absolute(),
        letters_url=letters_url,
        window_s=options.window_seconds,
        lateness_s=options.lateness_seconds,
        max_waiting=options.max_waiting,
        slice_rows=options.slice_rows,
        slice_minutes=options.slice_minutes,
        judged_rows=options.judged_rows,
        block_s=options.block_seconds,
        checkpoint_s=options.checkpoint_seconds,
        keep_versions=options.keep_versions,
        server=options.server,
        model_name=options.model_name,
        log_format=options.log_format,
    )
    run = runs.load(options.run) if options.run else run_of(settings.models_dir)
    if run is None:
        raise ValueError(f"{settings.models_dir} must hold {run_file.FILE}. Received: none. Name the run: --run.")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    @contextlib.contextmanager
    def served(running: trainer.Trainer) -> typing.Iterator[None]:
        with metrics.served(running.metrics.registry, options.metrics_port, options.metrics_host):
            logging.getLogger("serving.nearline").info("ready")
            yield

    with folder_lock.hold(work_dir):
        trainer.run(run, settings, stop, training=run.training, on_start=served)


def run_of(models_dir: pathlib.Path) -> RunConfig | None:
    """Returns the run beside models, of one click model that beside all of them; None where there is none."""
    from tfmm.stages import run_file
    from tfmm.stages.folders import STATE

    run = run_file.read(models_dir)
    if run is None and (models_dir / STATE).is_dir():
        return run_file.read(models_dir.resolve().parent)
    return run


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the trainer's options to a command line."""
    add = parser.add_argument
    add("--log", action="append", required=True, help="log of served requests, of labels or of both: a path (a SQLite "
        "log or a folder), kafka://host:port/topic, redis://host:port/0?stream=key, folder:///path, or your URL;"
        " may stand again")
    add("--models", required=True, help="as `tfmm train` wrote them, or one click model of them: what it goes on from")
    add("--run", help="of the models, a preset or a file (default: run.json beside them)")
    add("--index", required=True, help="item index, a path or a URL")
    add("--workdir", required=True, help="checkpoints, candidates and dead letters")
    add("--output", required=True, help="the folder of versions, which servers watch")
    add("--dead-letters", help="log that gets records which cannot be used (default: a folder in the workdir)")
    add("--window-seconds", type=float, default=300.0, help="until what was shown and not clicked is a negative (300)")
    add("--lateness-seconds", type=float, default=1.0, help="how far records may be out of order (default: 1)")
    add("--max-waiting", type=int, default=100_000, help="requests that may wait for labels (default: 100000)")
    add("--slice-rows", type=int, default=5_000, help="rows after which a candidate is judged (default: 5000)")
    add("--slice-minutes", type=float, default=10.0, help="or minutes, by the rows' own time (default: 10)")
    add("--judged-rows", type=int, default=0, help="the newest of them, that it is judged on (default: all)")
    add("--block-seconds", type=float, default=10.0, help="until rows are trained that fill no batch (default: 10)")
    add("--checkpoint-seconds", type=float, default=10.0, help="between checkpoints, at least (default: 10)")
    add("--keep-versions", type=int, default=5, help="versions kept of those that it pushed; 0: all (default: 5)")
    add("--server", default="", help="host:port of a server's gRPC, which is asked when it serves what was pushed")
    add("--model-name", default="tfmm", help="the model's name there (default: tfmm)")
    metrics.add_options(parser)
    logs.add_options(parser)


if __name__ == "__main__":
    main()
