"""The `tfmm` command: each subcommand calls one stage's entry, and imports it only when it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import time
import typing
import warnings

import click

from tfmm import __version__, extras

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


def _run_options(function: typing.Callable) -> typing.Callable:
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


def _config(run: str, assignments: tuple[str, ...]) -> typing.Any:
    from tfmm import config, runs

    return config.override(runs.load(run), assignments)


def _quiet_libraries() -> None:
    """Keeps notices of libraries about themselves off the terminal; errors still come as exceptions."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tfmm")
def main() -> None:
    """Multimodal representations for recommendation: from raw logs to a served score."""
    _quiet_libraries()


@main.command(example="tfmm quickstart --workdir quickstart\ntfmm quickstart --data my_tables --workdir my_run")
@click.option(
    "--workdir",
    type=Folder,
    default=pathlib.Path("quickstart"),
    show_default=True,
    help="Everything that the run writes; run again in it to go on where it stopped.",
)
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables of your own (`tfmm data schema`).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the marketplace and of every training.")
@_run_options
def quickstart(
    workdir: pathlib.Path, data_dir: pathlib.Path | None, seed: int, run: str, assignments: tuple[str, ...]
) -> None:
    """Run the whole road: data, encoders, index, models, gate, server, a new item in the stream, a report."""
    from tfmm import config
    from tfmm.quickstart import run as quickstart_run

    settings = _config(run, ()).with_seed(seed)
    raise SystemExit(quickstart_run.main(workdir, data_dir, config.override(settings, assignments)))


@main.group(cls=Group)
def run() -> None:
    """Look at what a run declares."""


@run.command("show", example="tfmm run show --run my_team.runs:weekly\ntfmm run show --data my_tables --run run.toml")
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables: check that they have what is declared.")
@_run_options
def run_show(data_dir: pathlib.Path | None, run: str, assignments: tuple[str, ...]) -> None:
    """Print what a declaration means: features, sequences, methods, tables, inputs of the signatures."""
    from rich import console

    from tfmm.quickstart import declaration

    config, terminal = _config(run, assignments), console.Console()
    for part in declaration.tables(config):
        terminal.print(part)
    if data_dir is not None:
        from tfmm.data import declared

        if faults := declared.faults(data_dir, config.feature_set):
            raise click.ClickException("The data lacks what is declared:\n- " + "\n- ".join(faults))
        click.echo(f"{data_dir} has what is declared.")


@main.group(cls=Group)
def data() -> None:
    """Make, check and convert data folders."""


@data.command("schema", example="tfmm data schema\ntfmm data schema --run my_team.runs:weekly")
@_run_options
def data_schema(run: str, assignments: tuple[str, ...]) -> None:
    """Print the tables and columns that a data folder may hold, those that the run declares among them."""
    from tfmm.data import declared, schema

    click.echo(schema.schema_text(declared.tables(_config(run, assignments).feature_set)))


@data.command("check", example="tfmm data check my_tables --set data.time_zone=Europe/Berlin")
@click.argument("data_dir", type=ExistingFolder)
@_run_options
def data_check(data_dir: pathlib.Path, run: str, assignments: tuple[str, ...]) -> None:
    """Check a data folder against the schema: every fault with table, row, column, rule, and a count."""
    from rich import console, markup, table

    from tfmm.data import checks, unread

    config = _config(run, assignments)
    report = checks.check(data_dir, config.data, config.feature_set)
    terminal = console.Console()
    terminal.print(", ".join(f"{name}: {rows:,} rows" for name, rows in report.counts.items()))
    for line in unread.in_words(report.unread):
        terminal.print(line, style="yellow", markup=False, highlight=False)
    for note in report.notes:
        terminal.print(f"[yellow]Note:[/] {markup.escape(note)}")
    if report.ok:
        terminal.print("[green]No fault found.")
        return
    faults = table.Table("table", "column", "rule", "count", "first rows", "values", title="Faults")
    for fault in report.faults:
        cells = (fault.table, fault.column, fault.rule, f"{fault.count:,}", _joined(fault.rows), _joined(fault.values))
        faults.add_row(*(markup.escape(cell) for cell in cells))
    terminal.print(faults)
    raise SystemExit(1)


def _joined(values: typing.Iterable[object]) -> str:
    return ", ".join(map(str, values))


@data.command("marketplace", example="tfmm data marketplace my_tables --preset small")
@click.argument("output_dir", type=Folder)
@_run_options
def data_marketplace(output_dir: pathlib.Path, run: str, assignments: tuple[str, ...]) -> None:
    """Make the synthetic marketplace: images, titles, searches, purchases, a week of impressions."""
    from tfmm.data import marketplace

    marketplace.generate(_config(run, assignments).marketplace, output_dir)
    click.echo(f"Wrote the marketplace to {output_dir}.")


@data.command("convert", example="tfmm data convert online-retail downloads/online_retail my_tables")
@click.argument("source", type=click.Choice(["online-retail", "taobao-mm"]))
@click.argument("source_dir", type=ExistingFolder)
@click.argument("output_dir", type=Folder)
def data_convert(source: str, source_dir: pathlib.Path, output_dir: pathlib.Path) -> None:
    """Convert a public data set to the tables that `tfmm data schema` describes."""
    from tfmm.data import online_retail, taobao_mm

    {"online-retail": online_retail, "taobao-mm": taobao_mm}[source].convert(source_dir, output_dir)
    click.echo(f"Wrote {source} to {output_dir}.")


@main.command(example="tfmm pretrain --data my_tables --output run/encoders --preset small")
@click.option("--data", "data_dir", type=ExistingFolder, required=True, help="Parquet tables.")
@click.option("--output", "output_dir", type=Folder, required=True, help="One encoder folder per modality.")
@_run_options
def pretrain(data_dir: pathlib.Path, output_dir: pathlib.Path, run: str, assignments: tuple[str, ...]) -> None:
    """Pre-train item encoders on search query -> purchased item (SCL)."""
    from tfmm.data import declared, pairs, schema, unread
    from tfmm.evaluate import encoder_lines
    from tfmm.pretrain import train
    from tfmm.training import progress

    config = _config(run, assignments)
    unread.say(data_dir, click.echo, declared.tables(config.feature_set))
    pairs.build_pairs(data_dir, config.pairs, output_dir / "pairs", config.data)
    for modality in schema.modalities(data_dir):
        if modality != "vector":
            result = train.train(
                getattr(config, modality),
                output_dir / "pairs" / modality,
                output_dir / modality,
                checkpoint_dir=output_dir / "checkpoints" / modality,
                progress=progress.lines(click.echo),
            )
            click.echo(f"{modality}: {encoder_lines.plan_text(result)}. {encoder_lines.accuracy_text(result)}.")


@main.command(
    example="tfmm embed --data my_tables --encoders run/encoders --index run/items.sqlite --snapshot run/snapshot"
)
@click.option("--data", "data_dir", type=ExistingFolder, required=True, help="Parquet tables.")
@click.option("--encoders", "encoders_dir", type=Folder, required=True, help="As `tfmm pretrain` wrote them.")
@click.option("--index", "index_path", type=File, required=True, help="SQLite file of the item index.")
@click.option("--snapshot", "snapshot_dir", type=Folder, required=True, help="A frozen copy for training.")
def embed(
    data_dir: pathlib.Path, encoders_dir: pathlib.Path, index_path: pathlib.Path, snapshot_dir: pathlib.Path
) -> None:
    """Embed the catalog by Beam into the item index."""
    from tfmm.data import schema, unread
    from tfmm.index import beam, item_index, snapshot

    unread.say(data_dir, click.echo)
    folders = {m: str(encoders_dir / m) for m in schema.modalities(data_dir) if m != "vector"}
    beam.embed_catalog(data_dir, folders, index_path, dead_letter_dir=snapshot_dir / "dead_letter")
    with item_index.ItemIndex(index_path) as index:
        active = index.active_encoders()
        versions = {m: active[m].encoder_version for m in schema.modalities(data_dir)}
        manifest = snapshot.write_snapshot(index, snapshot_dir, versions)
    for modality, facts in manifest["modalities"].items():
        click.echo(f"{modality}: {facts['size']:,} items of dim {facts['dim']}, encoder {facts['encoder_version']}")


@main.command(example="tfmm train --data my_tables --snapshot run/snapshot --output run/models --preset small")
@click.option("--data", "data_dir", type=ExistingFolder, required=True, help="Parquet tables.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, required=True, help="As `tfmm embed` wrote it.")
@click.option("--output", "output_dir", type=Folder, required=True, help="Examples, MAKE and both click models.")
@_run_options
def train(
    data_dir: pathlib.Path,
    snapshot_dir: pathlib.Path,
    output_dir: pathlib.Path,
    run: str,
    assignments: tuple[str, ...],
) -> None:
    """Generate examples, pre-train MAKE, train the ID-only and the multimodal model."""
    from tfmm.ctr import train as ctr_train
    from tfmm.data import beam, declared, examples, schema, unread
    from tfmm.export import saved_model
    from tfmm.make import train as make_train
    from tfmm.training import progress as progress_lib

    config = _config(run, assignments)
    feature_set = config.feature_set
    raw, transformed, progress = output_dir / "examples", output_dir / "transformed", progress_lib.lines(click.echo)
    unread.say(data_dir, click.echo, declared.tables(feature_set))
    beam.write_examples(data_dir, config.data, feature_set, raw)
    examples.transform(raw, transformed)
    train_pattern, eval_pattern = (str(transformed / f"{split}-*") for split in ("train", "eval"))
    make_train.train(
        config.make,
        train_pattern,
        eval_pattern,
        snapshot_dir,
        output_dir / "make",
        feature_set,
        checkpoint_dir=output_dir / "checkpoints" / "make",
        progress=progress,
    )
    vocabulary = transformed / "vocabulary"
    for name, modalities in (("id", ()), ("multimodal", schema.modalities(data_dir))):
        own: dict[str, typing.Any] = (
            {"snapshot_dir": snapshot_dir, "make_dir": output_dir / "make"} if modalities else {}
        )
        ctr_train.train(
            config.ctr,
            train_pattern,
            eval_pattern,
            vocabulary,
            output_dir / name / "Format-TFMM",
            feature_set,
            modalities=modalities,
            methods=config.methods,
            checkpoint_dir=output_dir / "checkpoints" / name,
            progress=progress,
            **own,
        )
        saved_model.export(
            output_dir / name / "Format-TFMM",
            vocabulary,
            own.get("snapshot_dir"),
            declared.id_types(data_dir, feature_set),
            config.export,
            output_dir / name / "Format-Serving",
        )


@main.command(
    example="tfmm evaluate --models run/models --output run/evaluation\n"
    "tfmm evaluate --models run/models --output run/evaluation --snapshot run/snapshot --encoders run/encoders "
    "--data my_tables"
)
@click.option("--models", "models_dir", type=ExistingFolder, required=True, help="As `tfmm train` wrote them.")
@click.option("--in-service", "in_service_dir", type=ExistingFolder, help="SavedModel in service, to be compared.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, help="Probe its vectors, as `tfmm embed` wrote it.")
@click.option("--encoders", "encoders_dir", type=ExistingFolder, help="Probe them untrained too; needs --data.")
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables: what untrained encoders read.")
@click.option("--output", "output_dir", type=Folder, required=True, help="report.json, verdict.json.")
@_run_options
def evaluate(
    models_dir: pathlib.Path,
    in_service_dir: pathlib.Path | None,
    snapshot_dir: pathlib.Path | None,
    encoders_dir: pathlib.Path | None,
    data_dir: pathlib.Path | None,
    output_dir: pathlib.Path,
    run: str,
    assignments: tuple[str, ...],
) -> None:
    """Score held-out impressions with the exported models and judge them; exit 1 where the gate refuses."""
    from tfmm.evaluate import encoder_lines, encoders, gate, report

    if encoders_dir is not None and (snapshot_dir is None or data_dir is None):
        raise click.UsageError("--encoders needs --snapshot and --data: the probe compares what they hold.")

    models = {name: str(models_dir / name / "Format-Serving") for name in ("id", "multimodal")}
    if in_service_dir is not None:
        models["in_service"] = str(in_service_dir)
    config, examples_dir = _config(run, assignments), models_dir / "examples"
    train_pattern, eval_pattern = (str(examples_dir / f"{split}-*") for split in ("train", "eval"))
    probed = None
    if snapshot_dir is not None:
        folders = encoders.encoder_folders(encoders_dir) if encoders_dir else {}
        probed = encoders.probe_encoders(eval_pattern, config.feature_set, snapshot_dir, data_dir, folders)
    patterns = (train_pattern, eval_pattern)
    judged = report.evaluate(
        models, *patterns, output_dir, config.feature_set, encoders=probed, snapshot_dir=snapshot_dir
    )
    verdict = gate.decide(judged, config.gate)
    (output_dir / "verdict.json").write_text(json.dumps(dataclasses.asdict(verdict), indent=2) + "\n")
    for name in models:
        found = {key: judged["models"][name].get(key) for key in ("auc", "gauc", "logloss")}
        values = ", ".join(f"{key} {'too few rows' if v is None else format(v, '.4f')}" for key, v in found.items())
        click.echo(f"{name}: {values}")
    for modality, facts in judged["encoders"].items():
        for line in encoder_lines.describe(modality, facts):
            click.echo(line)
    click.echo(f"The gate {'passed' if verdict.passed else 'refused'}. {' '.join(verdict.reasons)}")
    raise SystemExit(0 if verdict.passed else 1)


@main.command(
    example="tfmm export --models run/models --snapshot run/snapshot --data my_tables --output run/serving/tfmm"
)
@click.option("--models", "models_dir", type=ExistingFolder, required=True, help="As `tfmm train` wrote them.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, required=True, help="The index to start from.")
@click.option("--data", "data_dir", type=ExistingFolder, required=True, help="Parquet tables: the types of ids.")
@click.option("--output", "output_dir", type=Folder, required=True, help="A new version is made in this folder.")
@_run_options
def export(
    models_dir: pathlib.Path,
    snapshot_dir: pathlib.Path,
    data_dir: pathlib.Path,
    output_dir: pathlib.Path,
    run: str,
    assignments: tuple[str, ...],
) -> None:
    """Write the multimodal model as a new version that TF Serving loads."""
    from tfmm.data import declared
    from tfmm.export import saved_model

    version, config = output_dir / str(int(time.time())), _config(run, assignments)
    saved_model.export(
        models_dir / "multimodal" / "Format-TFMM",
        models_dir / "transformed" / "vocabulary",
        snapshot_dir,
        declared.id_types(data_dir, config.feature_set),
        config.export,
        version,
    )
    click.echo(f"Wrote version {version}.")


@main.command(example="tfmm serve --model-base-path run/serving/tfmm --rest-api-port 8501")
@click.option("--model-base-path", type=Folder, required=True, help="Folder of numbered versions.")
@click.option("--model-name", default="tfmm", show_default=True)
@click.option("--port", type=int, default=8500, show_default=True, help="gRPC; 0 takes a free one.")
@click.option("--rest-api-port", type=int, default=8501, show_default=True, help="REST; 0 takes a free one.")
@click.option("--index", "index_path", type=File, help="Follow this item index: new items are served in seconds.")
def serve(
    model_base_path: pathlib.Path,
    model_name: str,
    port: int,
    rest_api_port: int,
    index_path: pathlib.Path | None,
) -> None:
    """Serve the newest version over TF Serving's gRPC and REST, on this machine."""
    from serving import replicator
    from serving.model_server import __main__ as model_server

    if index_path is not None and port == 0:
        raise click.BadParameter("must be a fixed port where an index is followed.", param_hint="--port")
    if index_path is not None and not index_path.is_file():
        raise FileNotFoundError(f"{index_path} does not exist. `tfmm embed` makes the item index.")
    flags = [f"--model_base_path={model_base_path}", f"--model_name={model_name}", f"--port={port}",
             f"--rest_api_port={rest_api_port}"]  # fmt: skip
    follower = replicator.Replicator(index_path, [f"127.0.0.1:{port}"], model_name) if index_path else None
    with follower or contextlib.nullcontext():
        try:
            raise SystemExit(model_server.main(flags))
        except RuntimeError as error:  # gRPC's word for a port that is taken
            raise OSError(f"The server could not start on ports {port} and {rest_api_port}: {error}") from error


@main.command(example="tfmm stream --events run/events.sqlite --index run/items.sqlite --encoders run/encoders")
@click.option("--events", "events_path", type=File, required=True, help="SQLite file of new item events.")
@click.option("--index", "index_path", type=File, required=True, help="SQLite file of the item index.")
@click.option(
    "--encoders", "encoders_dir", type=ExistingFolder, help="As `tfmm pretrain` wrote them; own vectors need none."
)
def stream(events_path: pathlib.Path, index_path: pathlib.Path, encoders_dir: pathlib.Path | None) -> None:
    """Embed new items as their events arrive, by a streaming Beam job."""
    from serving.streaming import __main__ as streaming

    encoders = [] if encoders_dir is None else ["--encoders", str(encoders_dir)]
    streaming.main(["--events", str(events_path), "--index", str(index_path), *encoders])


if __name__ == "__main__":
    main()
