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

from tfmm import __version__, cli_data, cli_dead_letters
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
main.add_command(cli_dead_letters.dead_letters)


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
    made = pairs.build_pairs(data_dir, config.pairs, pairs_dir, config.data, config.modality_set, config.feature_set)
    for facts in made.values():
        click.echo(wording.pairs_text(facts))
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
            if result["unusable_contents"]:
                click.echo(f"{modality}: left out: {result['unusable_contents']:,} contents that cannot be decoded")
            for warning in result["warnings"]:
                click.echo(f"Warning: {warning}")


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
    from tfmm import dead_letters
    from tfmm.data import declared, schema, unread
    from tfmm.index import beam, item_index, snapshot

    config = load_config(run, assignments)
    unread.say(data_dir, click.echo, declared.tables(config.feature_set, config.modality_set))
    names = schema.modalities(data_dir, config.modality_set)
    folders = {name: str(encoders_dir / name) for name in config.encoders(names)}
    rejected = snapshot_dir / "dead_letter"
    bound = config.data.max_bad_fraction
    counts = beam.embed_catalog(
        data_dir, folders, index_path, rejected, modality_set=config.modality_set, max_bad_fraction=bound
    )
    with item_index.ItemIndex(index_path) as index:
        active = index.active_encoders()
        versions = {name: active[name].encoder_version for name in names}
        manifest = snapshot.write_snapshot(index, snapshot_dir, versions)
    for modality, facts in manifest["modalities"].items():
        click.echo(f"{modality}: {facts['size']:,} items of dim {facts['dim']}, encoder {facts['encoder_version']}")
    for modality, found in counts.items():
        click.echo(f"{modality}: {found['missing']:,} items without content, {found['rejected']:,} left out")
    for line in dead_letters.lines(rejected):
        click.echo(line)


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
    from tfmm import dead_letters
    from tfmm.ctr import train as ctr_train
    from tfmm.data import beam, declared, examples, left_out, schema, unread
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
    counts = beam.write_examples(data_dir, config.data, feature_set, raw)
    click.echo(f"examples: {counts['train']:,} train, {counts['eval']:,} eval, {counts['dead_letter']:,} rows left out")
    for line in dead_letters.lines(raw):
        click.echo(line)
    tables = declared.tables(feature_set)
    totals = {name: sum(sum(part.row_groups) for part in schema.table_parts(data_dir, name, tables)) for name in tables}
    left_out.verify(dead_letters.counts(dead_letters.read(raw)), totals, config.data.max_bad_fraction)
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
@click.option("--index", "index_path", type=File, help="Item index: the model in service sees it as it stands.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, help="Probe its vectors, as `tfmm embed` wrote it.")
@click.option("--encoders", "encoders_dir", type=ExistingFolder, help="Probe them untrained too; needs --data.")
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables: what untrained encoders read.")
@click.option("--output", "output_dir", type=Folder, required=True, help="report.json, verdict.json.")
@run_options
def evaluate(
    models_dir: pathlib.Path,
    in_service_dir: pathlib.Path | None,
    index_path: pathlib.Path | None,
    snapshot_dir: pathlib.Path | None,
    encoders_dir: pathlib.Path | None,
    data_dir: pathlib.Path | None,
    output_dir: pathlib.Path,
    run: str,
    assignments: tuple[str, ...],
) -> None:
    """Score held-out impressions with the exported models and judge them; exit 1 where the gate refuses."""
    from tfmm.evaluate import encoders, gate, in_service, report, wording

    models = {name: str(models_dir / name / "Format-Serving") for name in ("id", "multimodal")}
    if in_service_dir is not None:
        models[in_service.NAME] = str(in_service_dir)
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
        models,
        train_pattern,
        eval_pattern,
        output_dir,
        config.feature_set,
        encoders=probed,
        snapshot_dir=snapshot_dir,
        index_path=index_path,
    )
    verdict = gate.decide(judged, config.gate)
    (output_dir / "verdict.json").write_text(json.dumps(dataclasses.asdict(verdict), indent=2) + "\n")
    click.echo("\n".join(wording.verdict_lines(dataclasses.asdict(verdict)) + wording.report_lines(judged)))
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
