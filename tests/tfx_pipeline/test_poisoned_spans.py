"""A poisoned span stops the DAG at the right node, with column and rule; the model in service stays as it is."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import artifacts, config, fingerprints, presets
from tfmm.assignments import override
from tfmm.data import checks, shards
from tfmm.features import DEFAULT_FEATURES, Feature
from tfmm.marketplace import generator
from tfmm.stages import examples
from tfx_pipeline import infra_check

# A marketplace of seconds, whose models are worth nothing: the gate has no say here.
MARKETPLACE = config.MarketplaceConfig(
    num_items=120, new_items_per_day=5, num_users=100, num_days=3, num_searches=400, image_size=16
)
SETTINGS = [
    "data.max_behaviors=8", "image.epochs=1", "text.epochs=1", "make.epochs=1", "ctr.segments=2",
    "export.index_capacity=512", "export.jit_compile=false", "gate.min_auc=0.0", "gate.min_gauc=0.0",
    "gate.max_logloss=100.0", "gate.min_gain_over_id=-1.0", "gate.max_loss_to_service=1.0", "gate.max_hidden_bias=99.0",
    "gate.max_logloss_rise=99.0", "gate.max_calibration_rise=99.0",
]  # fmt: skip
FEATURES = (*DEFAULT_FEATURES, Feature("price", "item", "number"))
RUN = override(dataclasses.replace(presets.small(), features=FEATURES), SETTINGS)


def change(folder, table, column, make):
    """Puts other values in the place of a table's column; None: takes it away."""
    path = folder / f"{table}.parquet"
    rows = pq.read_table(path)
    place = rows.column_names.index(column)
    new = rows.remove_column(place) if make is None else rows.set_column(place, column, make(rows[column].to_pylist()))
    pq.write_table(new, path)


def label_gone(folder):
    change(folder, "impressions", "label", None)


def label_in_words(folder):
    change(folder, "impressions", "label", lambda values: pa.array(["yes" if value else "no" for value in values]))


def half_of_the_images_broken(folder):
    def broken(values):
        return pa.array([b"broken" if i % 2 else value for i, value in enumerate(values)], pa.binary())

    change(folder, "items", "image", broken)


def price_in_another_unit(folder):
    change(folder, "items", "price", lambda values: pa.array([1000.0 * value + 9000.0 for value in values]))


def whale(folder, num_behaviors=10**6):
    """Gives the first user so many more behaviors."""
    acts = pq.read_table(folder / "behaviors.parquet")
    many = acts.take(pa.array(np.random.default_rng(0).integers(0, len(acts), num_behaviors)))
    user = pq.read_table(folder / "impressions.parquet")["user_id"][0]
    place = many.column_names.index("user_id")
    many = many.set_column(place, "user_id", pa.array([user.as_py()] * len(many), acts["user_id"].type))
    pq.write_table(pa.concat_tables([acts, many]), folder / "behaviors.parquet")


POISONS = [
    (label_gone, "DataCheck", "impressions.label must be a column"),
    (label_in_words, "DataCheck", "impressions.label must be int64"),
    (half_of_the_images_broken, "DataCheck", "items.image must be a PNG or JPEG"),
    (price_in_another_unit, "AnomalyCheck", "price  | values as of the span before"),
]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tables"
    generator.generate(MARKETPLACE, folder)
    items = pq.read_table(folder / "items.parquet")
    price = np.random.default_rng(0).lognormal(3.0, 1.0, len(items))
    pq.write_table(items.append_column("price", pa.array(price)), folder / "items.parquet")
    return folder


def run(root, workdir, data_dir, path=""):
    """Runs the DAG over a folder; returns the process when it has ended."""
    settings = workdir / "settings.json"
    settings.write_text(json.dumps(config.to_dict(RUN)))
    variables = {"TFMM_RUN": str(settings), "TFMM_WORKDIR": str(workdir), "TFMM_DATA": str(data_dir)}
    environment = {**os.environ, **variables, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "tfx_pipeline.local_runner"]
    return subprocess.run(command, cwd=root, env=environment, text=True, capture_output=True, check=False)


def served(workdir):
    return {version.name: artifacts.digest(version) for version in (workdir / "serving" / "tfmm").iterdir()}


def poisoned(tables, folder, poison):
    shutil.copytree(tables, folder)
    poison(folder)
    return folder


@pytest.fixture(scope="module")
def good(root, tables, tmp_path_factory):
    """The workdir of a run over good tables."""
    workdir = tmp_path_factory.mktemp("run")
    done = run(root, workdir, tables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Anomaly" not in done.stdout and len(served(workdir)) == 1
    return workdir


@pytest.mark.parametrize("poison, rule", [(poison, rule) for poison, _, rule in POISONS[:3]])
def test_check_names_column_and_rule(tables, tmp_path, poison, rule):
    report = checks.check(poisoned(tables, tmp_path / "tables", poison), RUN.data, RUN.feature_set)
    stopping = [str(fault) for fault in report.stopping(RUN.data.max_bad_fraction)]
    assert len(stopping) == 1 and stopping[0].startswith(rule)


@pytest.mark.parametrize("poison, rule", [
    (label_gone, "Table 'impressions' must have a column 'label'"),
    (label_in_words, "Column 'label' of table 'impressions' must be int64"),
])  # fmt: skip
def test_examples_by_hand_stop_with_column_and_rule_and_leave_the_models_alone(tables, tmp_path, poison, rule):
    model = tmp_path / "models" / "id" / "manifest.json"
    model.parent.mkdir(parents=True)
    model.write_text("{}")
    folder = poisoned(tables, tmp_path / "tables", poison)
    with pytest.raises(ValueError, match=rule):
        examples.make_examples(RUN, folder, tmp_path / "models", print)
    assert model.read_text() == "{}"


def test_one_user_with_a_hundred_thousand_behaviors_leaves_the_others_as_they_are(tables, tmp_path):
    def rows_of_others(folder):
        examples.make_examples(RUN, folder, tmp_path / folder.name, lambda line: None)
        columns = pq.read_table(folder / "impressions.parquet")["user_id"]
        source = shards.Shards(sorted(map(str, (tmp_path / folder.name / "examples").glob("train-*"))))
        rows = source.gather(np.arange(source.num_rows), ["user_id", "item_id", "behavior_item_ids"])
        others = rows["user_id"] != fingerprints.fingerprint([columns[0].as_py()])[0]
        return {name: values[others] for name, values in rows.items()}

    before = rows_of_others(tables)
    after = rows_of_others(poisoned(tables, tmp_path / "whale", functools.partial(whale, num_behaviors=10**5)))
    assert len(before["user_id"]) > 100
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_check_of_a_table_in_which_every_row_is_wrong_takes_the_first_values_alone(tables, tmp_path, monkeypatch):
    def sevens(values):
        return pa.array([7] * len(values), pa.int64())

    folder = poisoned(tables, tmp_path / "tables", lambda folder: change(folder, "impressions", "label", sevens))
    taken, value = [], checks._value
    monkeypatch.setattr(checks, "_value", lambda column, row: taken.append(row) or value(column, row))
    (fault,) = [fault for fault in checks.check(folder, RUN.data, RUN.feature_set).faults if fault.column == "label"]
    assert fault.count == pq.read_metadata(folder / "impressions.parquet").num_rows
    assert fault.rows == tuple(range(checks.SHOWN)) and fault.values == ("7",) * checks.SHOWN
    assert len(taken) == checks.SHOWN


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("poison, node, rule", POISONS)
def test_poisoned_span_stops_at_its_node_and_the_model_in_service_stays(
    root, tables, good, tmp_path, poison, node, rule
):
    before, links = served(good), {name: os.readlink(good / name) for name in ("encoders", "evaluation", "statistics")}
    done = run(root, good, poisoned(tables, tmp_path / "tables", poison))
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr
    assert f"({node}) failed" in done.stderr and rule in done.stderr
    assert served(good) == before
    assert {name: os.readlink(good / name) for name in links} == links


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_user_with_a_million_behaviors_goes_through(root, tables, good, tmp_path):
    done = run(root, good, poisoned(tables, tmp_path / "tables", whale))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_model_that_no_server_loads_is_not_pushed_and_said_in_a_line(root, tables, good, tmp_path):
    server = tmp_path / "bin" / infra_check.SERVER
    server.parent.mkdir()
    server.write_text("#!/bin/sh\necho no such file: saved_model.pb\nexit 3\n")
    server.chmod(0o755)
    before = served(good)
    done = run(root, good, tables, str(server.parent))
    assert done.returncode == 1 and "Load it as a server does (InfraCheck) failed." in done.stderr
    assert "it cannot be loaded: the server ended with code 3" in done.stderr and "It is not pushed" in done.stderr
    assert "no such file: saved_model.pb" in done.stderr
    assert served(good) == before


def test_server_on_the_path_is_asked(root, tmp_path, monkeypatch):
    """Our server stands in for TF Serving's: it takes the same flags."""
    server = tmp_path / infra_check.SERVER
    server.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m serving.model_server "$@"\n')
    server.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert infra_check.server_path() == str(server)
    empty = tmp_path / "model"
    empty.mkdir()
    monkeypatch.setattr(infra_check, "READY_S", 20.0)
    said = infra_check.fault(empty, infra_check.server_path(), pathlib.Path(tmp_path / "log"))
    assert said is not None and said.startswith("it cannot be loaded: ")
