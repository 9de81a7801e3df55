"""The road from raw logs to a served score, run small, as a user runs it."""

import glob
import json
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import time

import pandas as pd
import pyarrow.parquet as pq
import pytest
import sybil
import sybil.parsers.markdown
import tensorflow as tf

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import artifacts
from tfmm.ctr import state
from tfmm.export import parity, saved_model
from tfmm.quickstart import processes
from tfmm.stages import folders
from tfx_pipeline import environments

pytestmark = pytest.mark.timeout(1800)  # the first of them takes the whole road, beside whatever else there is

KEYS = {
    "data",
    "acc_at_1",
    "acc_at_5",
    "id",
    "multimodal",
    "grpc_predict_ms",
    "rest_predict_ms",
    "new_item_delay_s",
    "stages",
    "peak_memory_gb",
}


def run_tfmm(*arguments, cwd, check=True):
    environment = {
        **os.environ,
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    result = subprocess.run(
        [sys.executable, "-m", "tfmm.cli", *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert not check or result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """The workdir of one small quickstart, and its summary."""
    workdir = tmp_path_factory.mktemp("road")
    run_tfmm("quickstart", "--preset", "small", "--workdir", str(workdir), cwd=workdir)
    return workdir, json.loads((workdir / "summary.json").read_text())


def processes_of(workdir):
    """Returns the processes that name a workdir, but for a demo's own."""
    import psutil

    found = [p for p in psutil.process_iter(["cmdline"]) if str(workdir) in " ".join(p.info["cmdline"] or [])]
    return [p for p in found if "demo" not in p.info["cmdline"]]


def heed_interrupts():
    """As at a terminal: a shell's background job, such as a test run may be, is told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Demo:
    """A `tfmm demo` that runs beside a test."""

    def __init__(self, workdir, out, options):
        self._out = out
        environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "tfmm.cli", "demo", str(workdir), *options]
        with out.open("ab") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, preexec_fn=heed_interrupts
            )

    @property
    def said(self):
        return self._out.read_text()

    def wait_for(self, words, within_s=900):
        deadline = time.monotonic() + within_s
        while words not in self.said:
            assert time.monotonic() < deadline and self.process.poll() is None, self.said[-3000:]
            time.sleep(0.1)


@pytest.fixture
def start_demo(road, tmp_path):
    """Returns a function that starts a demo in the road's workdir; one that still runs at the end is ended."""
    started = []

    def start(*options):
        started.append(Demo(road[0], tmp_path / f"{len(started)}.log", options))
        return started[-1]

    yield start
    for demo in started:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.process.wait()


@pytest.fixture(scope="module")
def outputs(road):
    return environments.latest_outputs(road[0] / "metadata.sqlite")


def test_summary_has_every_figure(road):
    _, summary = road
    assert set(summary) >= KEYS
    assert set(summary["data"]) == {"items", "searches", "behaviors", "impressions"}
    for model in ("id", "multimodal"):
        assert 0.5 < summary[model]["auc"] < 1.0
        assert set(summary[model]) == {"auc", "calibration", "gauc", "gauc_new_items", "logloss"}
    assert summary["acc_at_1"] > 10 / summary["data"]["items"]  # chance is 1 / held-out items
    assert summary["gate"]["passed"] is True
    for facts in summary["encoders"].values():
        assert facts["acc_at_1"] > facts["acc_at_1_chance"]
        assert facts["probe"]["users"] > 0 and facts["probe"]["gauc_gain_interval"]["high"] > 0


def test_targets_without_vectors_are_scored_as_often_as_they_are_clicked(road):
    hidden = road[1]["hidden"]
    assert set(hidden) == {"nothing", "all", "image", "text"}
    for name, found in hidden.items():  # without training on it: 1.2 for all
        assert abs(found["bias"]) - found["bias_margin"] < 0.1, name
    checks = [check for check in road[1]["gate"]["checks"] if "target's vectors hidden" in check]
    assert len(checks) == 3


def test_new_item_is_scored_with_its_embedding_within_seconds(road):
    assert 0.0 < road[1]["new_item_delay_s"] < 20.0  # tenths, where nothing else is to be done


def test_report_is_one_file_with_pictures(road):
    text = (road[0] / "report.html").read_text()
    assert text.count("data:image/png;base64,") > 20
    assert "<svg" in text


def test_pushed_model_scores_like_the_keras_model_through_the_loader_of_tf_serving(road, outputs):
    files = sorted(glob.glob(outputs["ExampleGenerator.examples"] + "/Split-eval/*"))
    examples = list(tf.data.TFRecordDataset(files, "GZIP").take(500).as_numpy_iterator())
    found = parity.check(
        environments.newest_version(road[0] / "serving" / "tfmm"),
        pathlib.Path(outputs["MultimodalTrainer.model"]) / folders.TRAINED,
        pathlib.Path(outputs["Transform.transform_graph"]) / "transform_fn" / "assets",
        outputs["CatalogEmbedder.snapshot"],
        examples,
    )
    assert found.num_rows == 500
    assert found.max_score_difference <= 1e-5


def test_the_pictures_of_the_gallery_are_made(road, root, tmp_path):
    gains = ["Gain over ids alone", "method", "GAUC", {"GAUC gain": [["make", 0.1]]}, "bars"]
    (tmp_path / "result.json").write_text(json.dumps({"figures": [gains]}))
    runpy.run_path(str(root / "docs" / "site" / "gallery.py"))["main"](road[0], tmp_path, tmp_path / "made")
    made = {path.name: path.stat().st_size for path in (tmp_path / "made").iterdir()}
    assert set(made) == {path.name for path in (root / "docs" / "gallery").iterdir()}
    assert sum(made.values()) < 1_000_000


def test_outputs_lie_where_the_guides_say(road, outputs):
    workdir, _ = road
    (version,) = (workdir / "serving" / "tfmm").iterdir()
    wanted = {m: facts["encoder_version"] for m, facts in saved_model.read_manifest(version)["index"].items()}
    found = {path.name: path / "manifest.json" for path in (workdir / "encoders").iterdir() if path.is_dir()}
    assert {name: json.loads(path.read_text())["encoder_version"] for name, path in found.items()} == wanted
    run = json.loads((workdir / "run.json").read_text())
    for name in ("encoders", "snapshot", "models/make", "models/id", "models/multimodal", "evaluation"):
        place = workdir / name
        assert place.is_symlink() and not os.path.isabs(os.readlink(place))
        assert json.loads((place / "run.json").read_text()) == run, name
    verdict = json.loads((workdir / "evaluation" / folders.VERDICT).read_text())
    assert verdict["judged"] == artifacts.digest(version)  # what was pushed


def test_demo_is_up_by_one_command_and_shows_a_line_a_second(road):
    result = run_tfmm("demo", str(road[0]), "--seconds", "10", cwd=road[0])
    *_, down = lines = result.stdout.splitlines()
    shown = [line for line in lines if "events/s" in line]
    assert len(shown) == 10 and down.endswith("all is down")
    for said in ("(p99", "requests/s", "impressions in its window", "in service, none judged yet"):
        assert said in shown[-1]
    assert not any(" failed" in line for line in shown)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_demo_ends_in_order_however_it_ends_and_goes_on_where_it_was(road, start_demo):
    """By Ctrl-C, by SIGTERM, and when a process of it has died, which is named with the end of its log."""
    for number in (signal.SIGINT, signal.SIGTERM):
        demo = start_demo()
        demo.wait_for("in service")
        demo.process.send_signal(number)
        assert demo.process.wait(300) == 0 and demo.said.endswith("all is down\n")
        assert processes_of(road[0]) == []
    trainer_log = (road[0] / "demo" / "logs" / "near-line_trainer.log").read_text()
    assert re.findall(r"going on from .* (\d+) positions", trainer_log)[-1] == "2"  # of both topics
    for name, number, how in (
        ("serving.streaming", signal.SIGKILL, "The stream was ended by SIGKILL"),
        ("nearline", signal.SIGTERM, "The near-line trainer ended with code 0"),
        ("kafka.Kafka", signal.SIGKILL, "The Kafka broker was ended by SIGKILL"),
    ):
        demo = start_demo()
        demo.wait_for("in service")
        (victim,) = [p for p in processes_of(road[0]) if name in p.cmdline()]
        victim.send_signal(number)
        assert demo.process.wait(300) == 1
        assert f"{how}. The end of {road[0] / 'demo' / 'logs'}" in demo.said
        assert processes_of(road[0]) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_trainer_of_the_demo_has_its_candidate_judged(road, start_demo):
    demo = start_demo("--slice-rows", "500")
    demo.wait_for(", candidate ", 1800)
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(300) == 0
    assert re.search(r"candidate \d+ (pushed|refused: \S+)", demo.said)


@pytest.mark.slow  # two periods of servers, trainers and verdicts take minutes
@pytest.mark.timeout(3600)
def test_a_simulated_day_runs_through_both_models_in_service_and_leaves_no_process(road, tmp_path):
    workdir, found = road[0], tmp_path / "simulated.json"
    options = "--days", "1", "--visits-per-day", "64", "--json", str(found)
    said = run_tfmm("simulate", str(workdir), *options, cwd=tmp_path).stdout
    assert processes_of(workdir) == []
    result = json.loads(found.read_text())
    assert result["simulation"] and result["label"] in said and result["in_words"] in said
    assert result == json.loads((workdir / "simulation" / "simulation.json").read_text())
    impressions = {
        name: pq.read_table(workdir / "simulation" / f"{name}.parquet").to_pandas() for name in ("id", "multimodal")
    }
    for name, rows in impressions.items():
        assert len(rows) == 8 * result["visits"] == 8 * 128  # two blocks of 256 rows in each of two periods
        assert (rows.groupby("visit").slot.apply(list).map(lambda slots: slots == [*range(1, 9)])).all()
        assert 0 < rows.is_new.sum() < len(rows) and ((rows.price >= 0.05) & (rows.price <= rows.bid)).all()
        assert rows.clicked.mean() == pytest.approx(result["results"]["all"]["ctr"][name]["value"])
        # The trainer went over every impression: the newest checkpoint says so.
        before = state.read_manifest(workdir / "models" / name / folders.STATE)["training"]["rows"]
        (facts,) = (workdir / "simulation" / name / "nearline").glob("*/checkpoints/*/facts.json")
        assert json.loads(facts.read_text())["training"]["rows"] == before + len(rows)
        candidates = result["candidates"][name]
        assert len(candidates) == result["periods"] == 2
        assert all(one["passed"] == (not one["reasons"]) for one in candidates)
        assert not any("the process that judges" in reason for one in candidates for reason in one["reasons"])
    both = pd.merge(*impressions.values(), on=["visit", "item_id"], suffixes=("", "_of_other"))
    assert len(both) and (both.clicked == both.clicked_of_other).all() and (both.bid == both.bid_of_other).all()
    assert (both.score != both.score_of_other).any()  # of two models


@pytest.mark.slow  # it starts all of a simulation's processes
@pytest.mark.timeout(3600)
def test_a_simulation_that_is_ended_leaves_no_process(road, tmp_path):
    log = tmp_path / "log"
    with log.open("ab") as file:
        command = [sys.executable, "-m", "tfmm.cli", "simulate", str(road[0])]
        environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    deadline = time.monotonic() + 600
    while "up: the stream" not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130 and processes_of(road[0]) == []


def test_no_process_is_left(road):
    assert processes_of(road[0]) == []


def test_literal_tfx_command_runs_the_dag(road):
    wrapper = pathlib.Path(sys.executable).with_name("tfx")
    if not wrapper.exists() or "tfx_pipeline" not in wrapper.read_text():
        pytest.skip("`make setup` did not put the wrapper at .venv/bin/tfx")
    root = pathlib.Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}",
        "TFMM_WORKDIR": str(road[0]),
        "TFMM_RUN": str(road[0] / "run.json"),
        "LOCAL_HOME": str(road[0] / "tfx_home"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    result = subprocess.run(
        ["tfx", "run", "create", "--pipeline", "tfx_pipeline/"],
        cwd=root,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    version = environments.newest_version(road[0] / "serving" / "tfmm")
    said = result.stdout.splitlines()
    assert said[-1] == f"In service: {version}" and "The gate passed the multimodal model." in said
    assert len(said) < 60 and not result.stderr, "TFX's log belongs into its file"
    assert [path.name for path in version.parent.iterdir()] == [version.name]  # nothing has changed, so nothing new


def test_gate_that_refuses_leaves_nothing_to_serve_and_says_why(road, outputs):
    workdir, _ = road
    result = run_tfmm(
        "quickstart",
        "--preset",
        "small",
        "--workdir",
        str(workdir),
        "--set",
        "gate.min_auc=0.999",
        cwd=workdir,
        check=False,
    )
    # The model of the first run is in service, so the run ends well, but nothing new is pushed.
    assert result.returncode == 0, result.stdout + result.stderr
    assert "refused" in (workdir / "report.html").read_text()
    assert len(list((workdir / "serving" / "tfmm").iterdir())) == 1
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["gate"]["passed"] is False
    for key in ("data", "acc_at_1", "acc_at_5", "id", "multimodal"):  # taken up, not made again
        assert summary[key] == road[1][key]
    after = environments.latest_outputs(workdir / "metadata.sqlite")
    for key in ("Marketplace.dataset", "ExampleGenerator.examples", "MultimodalTrainer.model"):
        assert after[key] == outputs[key]


@pytest.fixture(scope="module")
def ports(road, tmp_path_factory):
    """Those of a server of the pushed model, which the guides label `stable`."""
    folder, models = tmp_path_factory.mktemp("server"), road[0] / "serving" / "tfmm"
    label = f"version_labels {{ key: 'stable' value: {environments.newest_version(models).name} }}"
    (folder / "models.config").write_text(
        f"model_config_list {{ config {{ name: 'tfmm' base_path: '{models}' model_platform: 'tensorflow' {label} }} }}"
    )
    ready = folder / "server.json"
    command = ["serving.model_server", f"--model_config_file={folder / 'models.config'}"]
    command += ["--port=0", "--rest_api_port=0", f"--ready_file={ready}"]
    with processes.Child("The model server", command, folder / "server.log", ready_file=ready) as server:
        yield server.wait_ready()


@pytest.mark.parametrize("guide", ["first_score.md", "serving.md", "operation.md"])
def test_code_of_the_guide_runs_against_the_pushed_model(guide, road, ports, tmp_path, monkeypatch):
    """The guide's ports and its index stand for whatever ports the server got and for the road's own index."""
    monkeypatch.chdir(tmp_path)
    text = (pathlib.Path(__file__).parents[1] / "docs" / guide).read_text("utf-8")
    text = text.replace("redis://127.0.0.1:6379/0?prefix=items", str(road[0] / "index" / "items.sqlite"))
    text = text.replace("patience_s, began = before, 120.0,", "patience_s, began = before, 0.1,")  # there is no stream
    written = tmp_path / guide
    written.write_text(text.replace("8501", str(ports["rest_port"])).replace("8500", str(ports["grpc_port"])))
    document = sybil.Sybil(parsers=[sybil.parsers.markdown.PythonCodeBlockParser()]).parse(written)
    for example in document.examples():
        example.evaluate()
