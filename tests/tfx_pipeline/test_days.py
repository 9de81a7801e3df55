"""The DAG over a folder that grows: the second run goes on from the last model that was blessed and pushed."""

import io
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from rich import console as rich_console

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import artifacts, presets
from tfmm.assignments import override
from tfmm.config import MarketplaceConfig
from tfmm.ctr import state as state_lib
from tfmm.data import footprint, spans
from tfmm.export import saved_model
from tfmm.marketplace import day_by_day, generator
from tfmm.stages import run_file
from tfx_pipeline import continued, engines, environments, metadata, pipeline, status

SETTINGS = ("data.max_behaviors=8", "text.epochs=1", "make.epochs=1", "ctr.segments=2",
            "ctr.block_rows=256", "ctr.batch_size=128", "export.index_capacity=2048", "export.jit_compile=false",
            "gate.min_auc=0.01", "gate.min_gauc=0.01", "gate.min_gain_over_id=-1", "gate.max_logloss_rise=1",
            "gate.max_loss_to_service=1", "gate.max_calibration_rise=9", "gate.max_hidden_bias=9",
            "days.continue_from=latest")  # fmt: skip


@pytest.fixture(scope="module")
def days(tmp_path_factory, root):
    """A workdir after two days, and what the runs said: day 0, the same again, day 1."""
    folder = tmp_path_factory.mktemp("days")
    config = MarketplaceConfig(
        num_items=150, new_items_per_day=30, num_users=200, num_days=3, num_searches=300, image_size=16
    )
    generator.generate(config, folder / "marketplace")
    for table, picture in (("items", "image"), ("searches", "query_image")):  # titles alone take half the time
        path = folder / "marketplace" / f"{table}.parquet"
        pq.write_table(pq.read_table(path).drop([picture]), path)
    run_file.write(override(presets.small(), SETTINGS), folder)
    said = []
    for day in (0, None, 1):
        command = ["tfx_pipeline.local_runner"]
        if day is None:  # as a run that was killed before it set its links, and by the command that users type
            (folder / "work/evaluation").unlink()
            command = ["tfx_pipeline.cli", "run", "create", "--pipeline", str(root / "tfx_pipeline")]
        else:
            day_by_day.append_day(folder / "marketplace", folder / "tables", day)
        own = {"TFMM_DATA": folder / "tables", "TFMM_WORKDIR": folder / "work", "TFMM_RUN": folder / run_file.FILE,
               "LOCAL_HOME": folder / "tfx_home"}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, text=True, capture_output=True,
            check=False, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3",
                              **{name: str(place) for name, place in own.items()}},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "Traceback" not in done.stdout + done.stderr
        assert (folder / "work/evaluation").exists()
        said.append(done.stdout)
    return folder / "work", said


def versions(workdir):
    return sorted(path for path in (workdir / "serving/tfmm").iterdir() if path.name.isdigit())


def state_of(workdir, version):
    """The folder of the state of a pushed version's training."""
    manifests = {path.parent: artifacts.digest(path.parent) for path in workdir.glob(
        "pipeline/MultimodalTrainer/model/*/Format-Serving/saved_model.pb")}  # fmt: skip
    (folder,) = (one for one, digest in manifests.items() if digest == artifacts.digest(version))
    return folder.parent / "Format-State"


@pytest.mark.timeout(3600)
def test_the_second_day_goes_on_from_the_model_that_was_pushed(days):
    workdir, _ = days
    first, second = versions(workdir)
    old, new = (state_lib.read_manifest(state_of(workdir, version)) for version in (first, second))
    assert old["training"]["parent"] is None and new["training"]["parent"] == old["id"]
    assert new["training"]["span"]["first"] > old["training"]["trained_through"]["timestamp"]
    assert new["training"]["encoder_versions"] == old["training"]["encoder_versions"]
    assert new["training"]["make"] == old["training"]["make"] is not None
    report = json.loads((workdir / "evaluation/report.json").read_text())
    assert report["training"]["multimodal"] == new["training"]
    assert report["training"]["in_service"] == old["training"]
    assert report["rows"]["eval"] == new["training"]["lag"]["rows"]
    assert "in_service" in report["differences"]["multimodal"]  # judged beside the model that it goes on from


def test_an_item_is_new_that_no_span_of_the_models_life_has_shown(days):
    workdir, _ = days
    first, second = (state_lib.shown_before(state_of(workdir, version)) for version in versions(workdir))
    judged = pq.read_table(workdir / "evaluation/predictions.parquet", columns=["item_id", "is_new_item"]).to_pydict()
    new = {item for item, is_new in zip(judged["item_id"], judged["is_new_item"]) if is_new}
    assert new == set(judged["item_id"]) - set(second) and new
    assert all(second[item] >= count for item, count in first.items()) and len(second) > len(first)


@pytest.mark.parametrize(
    "settings, encoders, models",
    [
        (["days.make_every=2"], True, False),
        (["days.make_every=3", "days.encoders_every=3"], True, True),
        (["days.encoders_every=2"], False, False),
        (['days.continue_from=""'], False, False),
    ],
)
def test_encoders_and_make_come_again_by_their_own_schedule(days, tmp_path, settings, encoders, models):
    workdir, _ = days
    made = run_file.read(workdir)
    day_by_day.append_day(workdir.parent / "marketplace", tmp_path / "tables", 0)
    for day in (1, 2):
        day_by_day.append_day(workdir.parent / "marketplace", tmp_path / "tables", day)
    found = continued.road(environments.Environment(workdir, tmp_path / "tables", override(made, settings)))
    assert ((found.encoders is not None), bool(found.models)) == (encoders, models)
    assert found.before.goes_on == models == bool(found.vocabulary)


@pytest.mark.parametrize("settings", [["days.make_every=2"], ["days.encoders_every=2"], ['days.continue_from=""']])
def test_a_full_training_is_judged_on_rows_that_the_model_in_service_was_not_trained_on(days, tmp_path, settings):
    workdir, _ = days
    run = override(run_file.read(workdir), [*settings, "days.heldout_rows=1600"])
    for day in (0, 1, 2):
        day_by_day.append_day(workdir.parent / "marketplace", tmp_path / "tables", day)
    through = saved_model.training_of(versions(workdir)[-1])["trained_through"]["timestamp"]
    at = pq.read_table(tmp_path / "tables/impressions")["timestamp"].cast("int64").to_numpy()
    assert (at > through).sum() < 1600  # by itself, it would hold out some of them
    found = continued.road(environments.Environment(workdir, tmp_path / "tables", run))
    assert found.before == spans.Before(heldout_rows=1600, served_through=through)


def test_only_the_span_must_fit_the_memory(days, tmp_path, monkeypatch):
    workdir, _ = days
    for day in (0, 1, 2):
        day_by_day.append_day(workdir.parent / "marketplace", tmp_path / "tables", day)
    run = run_file.read(workdir)
    too_few = footprint.bytes_of(footprint.num_rows(tmp_path / "tables", run.feature_set), run.feature_set)[0] - 1
    monkeypatch.setattr(engines, "machine_memory", lambda: (too_few, too_few))
    pipeline.create_pipeline(environments.Environment(workdir, tmp_path / "tables", run), say=pytest.fail)


def test_without_new_rows_no_training_in_full_has_its_turn(days):
    workdir, _ = days
    run = override(run_file.read(workdir), ["days.make_every=1"])
    with pytest.raises(spans.EmptySpan, match="No new version is made"):
        continued.road(environments.Environment(workdir, workdir.parent / "tables", run))


def test_a_declaration_that_is_not_the_parents_stops_the_run_before_its_first_node(days):
    workdir, _ = days
    run = override(run_file.read(workdir), ["ctr.units=[8]"])
    with pytest.raises(ValueError, match=r"the model was declared otherwise.*ctr\.units"):
        continued.road(environments.Environment(workdir, workdir.parent / "tables", run))


def test_without_new_rows_there_is_no_new_version(days):
    workdir, said = days
    assert "No new version is made." in said[1]
    assert said[1].splitlines()[-1] == f"In service: {versions(workdir)[0]}"
    runs = {execution.run for execution in metadata.executions(workdir / "metadata.sqlite")}
    assert len(runs) == 2


def test_encoders_and_make_do_not_run_again_and_the_lineage_shows_the_parents(days):
    workdir, _ = days
    first, second = status.read(workdir).runs
    assert {"SCLTrainer", "MAKETrainer", "PairBuilder"} <= {node.name for node in first.nodes}
    by_name = {node.name: node for node in second.nodes}
    assert not {"SCLTrainer", "MAKETrainer", "PairBuilder"} & set(by_name)
    parents = {one.name: (one.node, one.run) for one in by_name["MultimodalTrainer"].inputs}
    assert parents["parent"] == ("MultimodalTrainer", first.id)
    assert {one.name: one.node for one in by_name["IDTrainer"].inputs}["parent"] == "IDTrainer"
    assert {one.name: one.node for one in by_name["CatalogEmbedder"].inputs}["encoders"] == "SCLTrainer"
    trained = by_name["MultimodalTrainer"].training
    assert trained["span"]["number"] == 2 and trained["parent"] and not by_name["ModelGate"].training
    console = rich_console.Console(width=500, record=True, file=io.StringIO())
    for table in status.tables(status.read(workdir), is_lineage=True):
        console.print(table)
    text = console.export_text()
    assert f"span 2: {trained['span']['rows']:,} rows, through 2024-03-0" in text
    assert f"text encoder {trained['encoder_versions']['text']}" in text
