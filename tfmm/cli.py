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

from tfmm import __version__, cli_data
from tfmm.cli_options import ExistingFolder, File, Folder, Group, load_config, run_options


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
@run_options
def quickstart(
    workdir: pathlib.Path, data_dir: pathlib.Path | None, seed: int, run: str, assignments: tuple[str, ...]
) -> None:
    """Run the whole road: data, encoders, index, models, gate, server, a new item in the stream, a report."""
    from tfmm.quickstart import run as quickstart_run

    raise SystemExit(quickstart_run.main(workdir, data_dir, load_config(run, assignments, seed)))


@main.command(example="tfmm pretrain --data my_tables --output run/encoders --preset small")
@click.option("--data", "data_dir", type=ExistingFolder, required=True, help="Parquet tables.")
@click.option("--output", "output_dir", type=Folder, required=True, help="One encoder folder per modality.")
@run_options
def pretrain(data_dir: pathlib.Path, output_dir: pathlib.Path, run: str, assignments: tuple[str, ...]) -> None:
    """Pre-train item encoders on search query -> purchased item (SCL)."""
    from tfmm.data import declared, pairs, schema, unread
    from tfmm.evaluate import wording
    from tfmm.pretrain import train
    from tfmm.training import progress

    config = load_config(run, assignments)
    unread.say(data_dir, click.echo, declared.tables(config.feature_set, config.modality_set))
    pairs_dir = output_dir / "pairs"
    pairs.build_pairs(data_dir, config.pairs, pairs_dir, config.data, config.modality_set, config.feature_set)
    for modality, settings in config.encoders(schema.modalities(data_dir, config.modality_set)).items():
        result = train.train(
            settings,
            pairs_dir / modality,
            output_dir / modality,
            checkpoint_dir=output_dir / "checkpoints" / modality,
            progress=progress.lines(click.echo),
        )
        if settings.frozen:
            click.echo(f"{modality}: {settings.encoder} as it is, {result['dim']} values.")
        else:
            click.echo(f"{modality}: {wording.plan_text(result)}. {wording.accuracy_text(result)}.")


@main.command(
    example="tfmm embed --data my_tables --encoders run/encoders --index run/items.sqlite --snapshot run/snapshot"
)
@click.option("--data", "data_dir", type=ExistingFolder, required=True, help="Parquet tables.")
@click.option("--encoders", "encoders_dir", type=Folder, required=True, help="As `tfmm pretrain` wrote them.")
@click.option("--index", "index_path", type=File, required=True, help="SQLite file of the item index.")
@click.option("--snapshot", "snapshot_dir", type=Folder, required=True, help="A frozen copy for training.")
@run_options
def embed(
    data_dir: pathlib.Path,
    encoders_dir: pathlib.Path,
    index_path: pathlib.Path,
    snapshot_dir: pathlib.Path,
    run: str,
    assignments: tuple[str, ...],
) -> None:
    """Embed the catalog by Beam into the item index."""
    from tfmm.data import declared, schema, unread
    from tfmm.index import beam, item_index, snapshot

    config = load_config(run, assignments)
    unread.say(data_dir, click.echo, declared.tables(config.feature_set, config.modality_set))
    names = schema.modalities(data_dir, config.modality_set)
    folders = {name: str(encoders_dir / name) for name in config.encoders(names)}
    dead_letters = snapshot_dir / "dead_letter"
    beam.embed_catalog(data_dir, folders, index_path, dead_letters, modality_set=config.modality_set)
    with item_index.ItemIndex(index_path) as index:
        active = index.active_encoders()
        versions = {name: active[name].encoder_version for name in names}
        manifest = snapshot.write_snapshot(index, snapshot_dir, versions)
    for modality, facts in manifest["modalities"].items():
        click.echo(f"{modality}: {facts['size']:,} items of dim {facts['dim']}, encoder {facts['encoder_version']}")


@main.command(example="tfmm train --data my_tables --snapshot run/snapshot --output run/models --preset small")
@click.option("--data", "data_dir", type=ExistingFolder, required=True, help="Parquet tables.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, required=True, help="As `tfmm embed` wrote it.")
@click.option("--output", "output_dir", type=Folder, required=True, help="Examples, MAKE and both click models.")
@run_options
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

    config = load_config(run, assignments)
    feature_set = config.feature_set
    raw, transformed, progress = output_dir / "examples", output_dir / "transformed", progress_lib.lines(click.echo)
    unread.say(data_dir, click.echo, declared.tables(feature_set, config.modality_set))
    names = schema.modalities(data_dir, config.modality_set)
    if not names:
        methods = ", ".join(method.name for method in config.methods)
        raise ValueError(
            f"The methods {methods} need a modality: {data_dir} must have contents in items. Received: none. Fill one "
            "of their columns (`tfmm data schema`), or declare another."
        )
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
    for name, modalities in (("id", ()), ("multimodal", names)):
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


@main.command(example="tfmm evaluate --models run/models --output run/evaluation --snapshot run/snapshot")
@click.option("--models", "models_dir", type=ExistingFolder, required=True, help="As `tfmm train` wrote them.")
@click.option("--in-service", "in_service_dir", type=ExistingFolder, help="SavedModel in service, to be compared.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, help="Probe its vectors, as `tfmm embed` wrote it.")
@click.option("--encoders", "encoders_dir", type=ExistingFolder, help="Probe them untrained too; needs --data.")
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables: what untrained encoders read.")
@click.option("--output", "output_dir", type=Folder, required=True, help="report.json, verdict.json.")
@run_options
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
    from tfmm.evaluate import encoders, gate, report, wording

    models = {name: str(models_dir / name / "Format-Serving") for name in ("id", "multimodal")}
    if in_service_dir is not None:
        models["in_service"] = str(in_service_dir)
    config, examples_dir = load_config(run, assignments), models_dir / "examples"
    train_pattern, eval_pattern = (str(examples_dir / f"{split}-*") for split in ("train", "eval"))
    probed = encoders.probe_encoders(
        eval_pattern,
        config.feature_set,
        snapshot_dir,
        data_dir,
        encoders.encoder_folders(encoders_dir),
        config.modality_set,
    )
    judged = report.evaluate(
        models, train_pattern, eval_pattern, output_dir, config.feature_set, encoders=probed, snapshot_dir=snapshot_dir
    )
    verdict = gate.decide(judged, config.gate)
    (output_dir / "verdict.json").write_text(json.dumps(dataclasses.asdict(verdict), indent=2) + "\n")
    click.echo("\n".join(wording.report_lines(judged)))
    click.echo(f"The gate {'passed' if verdict.passed else 'refused'}. {' '.join(verdict.reasons)}")
    raise SystemExit(0 if verdict.passed else 1)


@main.command(
    example="tfmm export --models run/models --snapshot run/snapshot --data my_tables --output run/serving/tfmm"
)
@click.option("--models", "models_dir", type=ExistingFolder, required=True, help="As `tfmm train` wrote them.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, required=True, help="The index to start from.")
@click.option("--data", "data_dir", type=ExistingFolder, required=True, help="Parquet tables: the types of ids.")
@click.option("--output", "output_dir", type=Folder, required=True, help="A new version is made in this folder.")
@run_options
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

    version, config = output_dir / str(int(time.time())), load_config(run, assignments)
    saved_model.export(
        models_dir / "multimodal" / "Format-TFMM",
        models_dir / "transformed" / "vocabulary",
        snapshot_dir,
        declared.id_types(data_dir, config.feature_set),
        config.export,
        version,
    )
    click.echo(f"Wrote version {version}.")


@main.command(
    example="tfmm serve --model_base_path run/serving/tfmm --rest_api_port 8501\n"
    "tfmm serve --model_config_file models.config --model_config_file_poll_wait_seconds 10",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.option("--index", "index_path", type=File, help="Follow this item index: new items are served in seconds.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve(index_path: pathlib.Path | None, flags: tuple[str, ...]) -> None:
    """Serve SavedModels over TF Serving's gRPC and REST, with its flags."""
    from serving import replica_metrics, replicator
    from serving.model_server import __main__ as model_server

    command_line = model_server.parser("tfmm serve", model_name="tfmm", rest_api_port=8501)
    command_line.add_argument("--index", help="follow this item index: new items are served in seconds")
    given = command_line.parse_args(flags)
    if index_path is not None and given.port <= 0:
        raise click.BadParameter("must be a fixed port where an index is followed.", param_hint="--port")
    if index_path is not None and not index_path.is_file():
        raise FileNotFoundError(f"{index_path} does not exist. `tfmm embed` makes the item index.")
    follower = replicator.Replicator(index_path, [f"127.0.0.1:{given.port}"], given.model_name) if index_path else None
    with follower or contextlib.nullcontext():
        try:
            measured = [replica_metrics.LagMetrics(follower.lag)] if follower else []
            raise SystemExit(model_server.main(flags, command_line, measured))
        except RuntimeError as error:  # gRPC's word for a port that is taken
            ports = f"{given.port} and {given.rest_api_port}"
            raise OSError(f"The server could not start on ports {ports}: {error}") from error


@main.command(example="tfmm stream --events run/events.sqlite --index run/items.sqlite --encoders run/encoders")
@click.option("--events", "events_path", type=File, required=True, help="SQLite file of new item events.")
@click.option("--index", "index_path", type=File, required=True, help="SQLite file of the item index.")
@click.option(
    "--encoders", "encoders_dir", type=ExistingFolder, help="As `tfmm pretrain` wrote them; own vectors need none."
)
@click.option("--metrics-port", type=int, default=-1, help="Prometheus metrics on 127.0.0.1; 0 takes a free port.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def stream(
    events_path: pathlib.Path,
    index_path: pathlib.Path,
    encoders_dir: pathlib.Path | None,
    metrics_port: int,
    log_format: str,
) -> None:
    """Embed new items as their events arrive, by a streaming Beam job."""
    from serving.streaming import __main__ as streaming

    encoders = [] if encoders_dir is None else ["--encoders", str(encoders_dir)]
    flags = [f"--metrics-port={metrics_port}", f"--log-format={log_format}"]
    streaming.main(["--events", str(events_path), "--index", str(index_path), *encoders, *flags])


if __name__ == "__main__":
    main()
