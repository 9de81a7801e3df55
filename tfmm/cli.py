"""The `tfmm` command: each subcommand calls one stage's entry, and imports it only when it runs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import warnings

import click

from tfmm import (
    __version__,
    cli_data,
    cli_dead_letters,
    cli_demo,
    cli_experiments,
    cli_index,
    cli_label,
    cli_live,
    cli_page,
    cli_pipeline,
    cli_pre_ranking,
    cli_running,
    cli_similar,
    cli_simulate,
)
from tfmm.cli_options import (
    DEFAULT_RUN,
    DataFolder,
    ExistingFolder,
    Folder,
    Group,
    later_run_options,
    load_config,
    run_options,
    take_config,
)
from tfmm.modalities import CHECKPOINTS, PAIRS


def _quiet_libraries() -> None:
    """Keeps notices of libraries about themselves off the terminal; errors still come as exceptions."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tfmm")
def main() -> None:
    """Multimodal representations for recommendation: from raw logs to a served score."""
    _quiet_libraries()


main.add_command(cli_data.data)
main.add_command(cli_data.run)
main.add_command(cli_dead_letters.dead_letters)
main.add_command(cli_demo.demo)
main.add_command(cli_index.index)
main.add_command(cli_label.label)
main.add_command(cli_live.live)
main.add_command(cli_page.page)
main.add_command(cli_pipeline.pipeline)
main.add_command(cli_experiments.experiments)
main.add_command(cli_running.nearline)
main.add_command(cli_running.serve)
main.add_command(cli_running.stream)
main.add_command(cli_similar.similar)
main.add_command(cli_simulate.simulate)


@main.command(example="tfmm quickstart --workdir quickstart\ntfmm quickstart --data my_tables --workdir my_run")
@click.option(
    "--workdir",
    type=Folder,
    default=pathlib.Path("quickstart"),
    show_default=True,
    help="Everything that the run writes; run again in it to go on where it stopped.",
)
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables of your own (`tfmm data schema`).")
@click.option("--seed", type=int, help="Of the marketplace and of every training.  [default: as the run declares]")
@run_options
def quickstart(
    workdir: pathlib.Path, data_dir: pathlib.Path | None, seed: int | None, run: str, assignments: tuple[str, ...]
) -> None:
    """Run the whole road: data, encoders, index, models, gate, server, a new item in the stream, a report."""
    from tfmm.quickstart import run as quickstart_run

    unread = [assignment for assignment in assignments if assignment.startswith("marketplace.")]
    if data_dir is not None and unread:
        raise ValueError(
            "The marketplace's settings must be left out where --data stands in its place. Received: "
            f"{', '.join(unread)}."
        )
    raise SystemExit(quickstart_run.main(workdir, data_dir, load_config(run, assignments, seed, data_dir=data_dir)))


@main.command(example="tfmm pretrain --data my_tables --output run/encoders --preset small")
@click.option("--data", "data_dir", type=DataFolder, required=True, help="Parquet tables.")
@click.option("--output", "output_dir", type=Folder, required=True, help="One encoder folder per modality.")
@run_options
def pretrain(data_dir: pathlib.Path | str, output_dir: pathlib.Path, run: str, assignments: tuple[str, ...]) -> None:
    """Pre-train item encoders on search query -> purchased item (SCL)."""
    from tfmm.data import declared, schema, unread
    from tfmm.stages import encoders, pairs, run_file
    from tfmm.training import devices, progress

    config = load_config(run, assignments, is_training=True, data_dir=data_dir)
    unread.say(data_dir, click.echo, declared.tables(config.feature_set, config.modality_set))
    names = schema.modalities(data_dir, config.modality_set)
    pairs_dir, checkpoints = output_dir / PAIRS, output_dir / CHECKPOINTS
    with run_file.beside(config, output_dir) if devices.is_chief(config.training) else contextlib.nullcontext():
        devices.by_chief(config.training, lambda: pairs.make_pairs(config, data_dir, pairs_dir, click.echo))
        lines = progress.lines(click.echo)
        encoders.train_encoders(config, names, pairs_dir, output_dir, checkpoints, click.echo, lines)


@main.command(
    example="tfmm embed --data my_tables --encoders run/encoders --index run/items.sqlite --snapshot run/snapshot"
)
@click.option("--data", "data_dir", type=DataFolder, required=True, help="Parquet tables.")
@click.option("--encoders", "encoders_dir", type=Folder, required=True, help="As `tfmm pretrain` wrote them.")
@click.option("--index", "index_url", required=True, help="The item index, a path or a URL; made where missing.")
@click.option("--snapshot", "snapshot_dir", type=Folder, required=True, help="A frozen copy for training.")
@click.option("--no-activate", is_flag=True, help="Fill these encoders' tables beside the active ones, which stay so.")
@later_run_options
def embed(
    data_dir: pathlib.Path | str,
    encoders_dir: pathlib.Path,
    index_url: str,
    snapshot_dir: pathlib.Path,
    no_activate: bool,
    run: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Embed the catalog by Beam into the item index."""
    from tfmm.data import declared, schema, unread
    from tfmm.stages import catalog, run_file

    config = take_config("encoders", encoders_dir, run, assignments, DEFAULT_RUN)
    unread.say(data_dir, click.echo, declared.tables(config.feature_set, config.modality_set))
    names = schema.modalities(data_dir, config.modality_set)
    with run_file.beside(config, snapshot_dir):
        folders = data_dir, encoders_dir, index_url, snapshot_dir
        catalog.embed_catalog(config, names, *folders, click.echo, activate=not no_activate)


@main.command(
    example="tfmm train --data my_tables --snapshot run/snapshot --output run/models\n"
    "tfmm train --data my_tables --snapshot run/snapshot_2 --output run/models_2 --continue-from run/models\n"
    "tfmm train --data my_tables --snapshot run/snapshot --output run/models --head pre-ranking"
)
@click.option("--data", "data_dir", type=DataFolder, required=True, help="Parquet tables.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, required=True, help="As `tfmm embed` wrote it.")
@click.option("--output", "output_dir", type=Folder, required=True, help="Examples, MAKE and both click models.")
@click.option(
    "--continue-from",
    "parent_dir",
    type=ExistingFolder,
    help="Go on from the models that `tfmm train` wrote there, over what the data has since; MAKE stays theirs.",
)
@click.option(
    "--head",
    type=click.Choice(["ranking", "pre-ranking"]),
    default="ranking",
    show_default=True,
    help="pre-ranking: a light head on the models that `tfmm train` wrote to --output, which teach it.",
)
@click.option(
    "--served",
    "log_dir",
    type=ExistingFolder,
    help="Train on what was served: the log of `tfmm serve --served_log` in place of the tables' impressions.",
)
@click.option("--events", "events_dir", type=ExistingFolder, help="What became of the items of --served.")
@click.option(
    "--label-window",
    "window_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds after an item of --served was shown in which a click counts.  [default: 86400]",
)
@later_run_options
def train(
    data_dir: pathlib.Path | str,
    snapshot_dir: pathlib.Path,
    output_dir: pathlib.Path,
    parent_dir: pathlib.Path | None,
    head: str,
    log_dir: pathlib.Path | None,
    events_dir: pathlib.Path | None,
    window_s: float | None,
    run: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Generate examples, pre-train MAKE, train the ID-only and the multimodal model."""
    from tfmm.ctr import integrations
    from tfmm.data import declared, served_examples, spans, unread
    from tfmm.stages import click_model, continued, examples, folders, inputs, make, run_file
    from tfmm.training import devices, progress

    if head != "ranking":
        given = {"--continue-from": parent_dir, "--served": log_dir, "--events": events_dir, "--label-window": window_s}
        cli_pre_ranking.train(given, data_dir, snapshot_dir, output_dir, run, assignments)
        return
    if (log_dir is None) != (events_dir is None) or (window_s is not None and log_dir is None):
        raise ValueError(
            "--served and --events must be given together: events say what was shown and clicked; --label-window needs "
            f"both. Received: --served {log_dir}, --events {events_dir}, --label-window {window_s}."
        )
    log: served_examples.Log | None = None
    if log_dir is not None and events_dir is not None:
        log = served_examples.Log(log_dir, events_dir, window_s or served_examples.LABEL_WINDOW_S)
    if parent_dir is not None:
        own_run = continued.run_of(parent_dir, output_dir)
        run = own_run if run is None else run
    config = take_config("catalog", snapshot_dir, run, assignments, is_training=True)
    unread.say(data_dir, click.echo, declared.tables(config.feature_set, config.modality_set))
    names = inputs.modalities_of(config, data_dir)
    for line in inputs.coverage(names, data_dir, snapshot_dir):
        click.echo(line)
    parent: continued.Parent | None = None
    make_dir: pathlib.Path | None = output_dir / "make"
    if parent_dir is not None:
        models = {name: parent_dir / name for name in (folders.ID, folders.MULTIMODAL)}
        parent, make_dir = continued.parent(config, models, run_file.read(parent_dir), snapshot_dir, names), None
    patterns = examples.patterns(output_dir)
    vocabulary, checkpoints = output_dir / examples.VOCABULARY, output_dir / CHECKPOINTS
    lines = progress.lines(click.echo)
    try:
        if parent is not None and log is None:  # before anything is touched
            spans.require_new(data_dir, config.data, config.feature_set, parent.before)
        with run_file.beside(config, output_dir) if devices.is_chief(config.training) else contextlib.nullcontext():
            devices.by_chief(
                config.training, lambda: examples.make_examples(config, data_dir, output_dir, click.echo, parent, log)
            )
            if make_dir is not None:
                sequences = integrations.make_sequences(config.methods, config.feature_set)
                make.train_make(config, sequences, patterns, snapshot_dir, make_dir, checkpoints / "make", lines)
            span = spans.read(output_dir / examples.EXAMPLES)
            for name in (folders.ID, folders.MULTIMODAL):
                vectors = click_model.Vectors(names, snapshot_dir, make_dir) if name == folders.MULTIMODAL else None
                click_model.train_click_model(
                    config, patterns, vocabulary, data_dir, output_dir / name, checkpoints / name, vectors, lines,
                    parent_dir=parent.states[name] if parent else None, span=span,
                )  # fmt: skip
    except spans.EmptySpan as nothing:
        click.echo(str(nothing))


@main.command(example="tfmm evaluate --models run/models --output run/evaluation --snapshot run/snapshot")
@click.option("--models", "models_dir", type=ExistingFolder, required=True, help="As `tfmm train` wrote them.")
@click.option("--in-service", "in_service_dir", type=ExistingFolder, help="SavedModel in service, to be compared.")
@click.option("--index", "index_url", help="Item index, a path or a URL: the model in service sees it as it stands.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, help="Probe its vectors, as `tfmm embed` wrote it.")
@click.option("--encoders", "encoders_dir", type=ExistingFolder, help="Probe them untrained too; needs --data.")
@click.option("--data", "data_dir", type=DataFolder, help="Parquet tables: what untrained encoders read.")
@click.option("--output", "output_dir", type=Folder, required=True, help="report.json, verdict.json.")
@later_run_options
def evaluate(
    models_dir: pathlib.Path,
    in_service_dir: pathlib.Path | None,
    index_url: str | None,
    snapshot_dir: pathlib.Path | None,
    encoders_dir: pathlib.Path | None,
    data_dir: pathlib.Path | None,
    output_dir: pathlib.Path,
    run: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Score held-out impressions with the exported models and judge them; exit 1 where the gate refuses."""
    from tfmm.data import declared, unread
    from tfmm.index import store
    from tfmm.stages import examples, folders, judgement, run_file

    if index_url is not None and in_service_dir is None:
        raise ValueError(f"--index must stand beside --in-service, whose model sees it. Received: {index_url} alone.")
    if index_url is not None:
        store.open_store(index_url, create=False).close()
    config = take_config("models", models_dir, run, assignments)
    if data_dir is not None:
        unread.say(data_dir, click.echo, declared.tables(config.feature_set, config.modality_set))
    with run_file.beside(config, output_dir):
        _, verdict = judgement.judge(
            config,
            {name: models_dir / name for name in (folders.ID, folders.MULTIMODAL)},
            examples.patterns(models_dir),
            output_dir,
            click.echo,
            in_service_dir=in_service_dir,
            index_url=index_url,
            snapshot_dir=snapshot_dir,
            encoders_dir=encoders_dir,
            data_dir=data_dir,
        )
    raise SystemExit(0 if verdict.passed else 1)


@main.command(example="tfmm export --models run/models --evaluation run/evaluation --output run/serving/tfmm")
@click.option("--models", "models_dir", type=ExistingFolder, required=True, help="As `tfmm train` wrote them.")
@click.option("--evaluation", "evaluation_dir", type=ExistingFolder, help="As `tfmm evaluate` wrote it: the verdict.")
@click.option("--unjudged", is_flag=True, help="Export a model that the gate refused, or did not see.")
@click.option("--output", "output_dir", type=Folder, required=True, help="A new version is made in this folder.")
def export(
    models_dir: pathlib.Path, evaluation_dir: pathlib.Path | None, unjudged: bool, output_dir: pathlib.Path
) -> None:
    """Ship the multimodal model that was judged, byte by byte, as a new version that TF Serving loads."""
    from tfmm.stages import version

    made = version.ship(models_dir, evaluation_dir, output_dir, unjudged)
    click.echo(f"Wrote version {made}{', unjudged' if unjudged else ''}.")


if __name__ == "__main__":
    main()
