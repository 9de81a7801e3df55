import json

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import tfmm
from tfmm import cli


def _commands(group=cli.main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"), list(_commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_help_shows_an_example_that_the_command_itself_parses(path, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, [*path, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    for line in command.example.splitlines():
        words = line.split()
        assert words[: 1 + len(path)] == ["tfmm", *path]
        for place, word in enumerate(words):
            if place > len(path) and not word.startswith("-") and "." not in word and word not in ("small",):
                (tmp_path / word).mkdir(parents=True, exist_ok=True)
        command.make_context(path[-1], words[1 + len(path) :])


def test_version_is_the_package_version():
    assert CliRunner().invoke(cli.main, ["--version"]).output == f"tfmm, version {tfmm.__version__}\n"


def test_check_lists_every_fault_and_exits_with_1(tmp_path):
    pq.write_table(pa.table({"item_id": [1, 1], "title": ["a", "b"]}), tmp_path / "items.parquet")
    times = pa.array([1, 2], pa.timestamp("us"))
    pq.write_table(
        pa.table({"user_id": [7, 7], "item_id": [1, 3], "timestamp": times, "label": [1, 2]}),
        tmp_path / "impressions.parquet",
    )
    result = CliRunner().invoke(cli.main, ["data", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert "items: 2 rows" in result.output
    assert result.output.count("impressions │") >= 2  # an unknown item, a label of 2


def write_tables(folder):
    """Writes tables without a fault, with a column and a table that the schema does not have."""
    times = pa.array(range(1_717_000_000_000_000, 1_717_000_000_000_040), pa.timestamp("us"))
    pq.write_table(pa.table({"item_id": [1, 2], "title": ["a", "b"], "brand": ["x", "y"]}), folder / "items.parquet")
    pq.write_table(
        pa.table({"user_id": [7] * 40, "item_id": [1, 2] * 20, "timestamp": times, "label": [0, 1] * 20}),
        folder / "impressions.parquet",
    )
    pq.write_table(pa.table({"user_id": [7]}), folder / "users.parquet")


UNREAD = ("not used: users.parquet (not a table of the schema)", "not used: items.brand (not a column of the schema)")


def test_check_says_what_is_not_read_and_exits_with_0(tmp_path):
    write_tables(tmp_path)
    result = CliRunner().invoke(cli.main, ["data", "check", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == ["items: 2 rows, impressions: 40 rows", *UNREAD, "No fault found."]


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--output", "out"],
        ["embed", "--encoders", "encoders", "--index", "index.sqlite", "--snapshot", "snapshot"],
        ["train", "--snapshot", "snapshot", "--output", "out", "--run", "small", "--set", "data.eval_fraction=1e-6"],
        ["quickstart", "--workdir", "run"],
        ["experiments", "table3", "--output", "out", "--seeds", "1", "--budget-minutes", "1"],
    ],
)
def test_each_stage_that_reads_tables_says_what_it_leaves_unread(tmp_path, monkeypatch, arguments):
    (tmp_path / "tables").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_tables(tmp_path / "tables")
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "quickstart":  # the pipeline itself is not this test's matter
        monkeypatch.setattr("tfx_pipeline.watched.run_dag", _stop)
    result = CliRunner().invoke(cli.main, [*arguments, "--data", "tables"])
    assert result.exit_code == 1  # too little to learn from
    assert result.output.splitlines()[:2] == list(UNREAD)


def _stop(*_):
    raise ChildProcessError("stopped")


@pytest.mark.parametrize("command", [["quickstart", "--workdir", "run"], ["pretrain", "--output", "out"]])
def test_a_table_that_is_there_twice_is_one_line(tmp_path, monkeypatch, command):
    write_tables(tmp_path)
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "part-0.parquet").write_bytes((tmp_path / "items.parquet").read_bytes())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, [*command, "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "must hold table 'items' once. Received: items.parquet and items/." in result.output
    assert "Traceback" not in result.output


def test_check_says_what_follows_from_coarse_times(tmp_path):
    times = pa.array([19_000, 19_001] * 5, pa.date32())
    shown = {"user_id": [7] * 10, "item_id": [1] * 10, "timestamp": times, "label": [0, 1, 1, 0, 0] * 2}
    pq.write_table(pa.table({"item_id": [1], "title": ["a"]}), tmp_path / "items.parquet")
    pq.write_table(pa.table(shown), tmp_path / "impressions.parquet")
    arguments = ["data", "check", str(tmp_path), "--set", "data.time_zone=Europe/Berlin"]
    result = CliRunner().invoke(cli.main, arguments, terminal_width=200)
    assert result.exit_code == 0 and "No fault found" in result.output
    said = " ".join(result.output.split())
    assert "Note: impressions.timestamp is known to the day: an impression sees what was known when its day" in said
    assert "its click counts from the next midnight. Days are those of Europe/Berlin" in said


def test_mendable_error_is_one_line_without_traceback(tmp_path):
    result = CliRunner().invoke(cli.main, ["pretrain", "--data", str(tmp_path), "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "items.parquet" in result.output
    assert "Traceback" not in result.output


def test_unknown_setting_is_refused_before_anything_runs(tmp_path):
    result = CliRunner().invoke(cli.main, ["data", "marketplace", str(tmp_path / "out"), "--set", "make.epoch=3"])
    assert result.exit_code == 1
    assert "`make` has the fields" in result.output
    assert not (tmp_path / "out").exists()


def test_marketplace_is_made_as_set(tmp_path):
    result = CliRunner().invoke(
        cli.main,
        [
            "data",
            "marketplace",
            str(tmp_path),
            "--preset",
            "small",
            "--set",
            "marketplace.num_users=40",
            "--set",
            "marketplace.num_items=50",
        ],
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "manifest.json").read_text())["config"]["num_users"] == 40


def test_methods_without_a_modality_are_refused_before_any_work(tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    pq.write_table(pa.table({"item_id": [1, 2], "category": [1, 1]}), tables / "items.parquet")
    arguments = ["train", "--data", str(tables), "--snapshot", str(tables), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.main, [*arguments, "--run", "small"])
    assert result.exit_code == 1 and "The methods simtier, make need a modality" in result.output
    assert not (tmp_path / "out").exists()


def test_a_run_that_names_what_is_not_there_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text('{"modalities": [{"name": "audio", "encoder": "no_such_team:Audio"}]}')
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, ["pretrain", "--data", ".", "--output", "out", "--run", "run.json"])
    assert result.exit_code == 1 and "encoder 'no_such_team:Audio' must name an importable class" in result.output
    assert not (tmp_path / "out").exists()


def test_settings_of_the_marketplace_are_refused_beside_data_of_ones_own(tmp_path):
    arguments = ["quickstart", "--data", str(tmp_path), "--workdir", str(tmp_path / "run")]
    result = CliRunner().invoke(cli.main, [*arguments, "--set", "marketplace.num_users=9"])
    assert result.exit_code == 1 and "must be left out where --data stands in its place" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--index", "items.sqlite"], "--index must stand beside --in-service, whose model sees it. Received: items."),
        (["--index", "none.sqlite", "--in-service", "."], "none.sqlite does not exist. `tfmm embed` makes"),
    ],
)
def test_index_that_no_model_would_see_is_refused_before_any_work(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, ["evaluate", "--models", ".", "--output", "out", *arguments])
    assert result.exit_code == 1 and result.output.startswith(f"Error: {said}"), result.output
    assert not list(tmp_path.iterdir())


def test_stream_takes_the_options_of_every_process(monkeypatch):
    given = []
    monkeypatch.setattr("serving.streaming.__main__.main", given.append)
    words = ["--metrics-port", "9101", "--metrics-host", "::1", "--log-format", "json", "--log-level", "warning"]
    result = CliRunner().invoke(cli.main, ["stream", "--events", "e.sqlite", "--index", "i.sqlite", *words])
    assert result.exit_code == 0, result.output
    told = {"--metrics_port=9101", "--metrics_host=::1", "--log_format=json", "--log_level=warning"}
    assert given[0][:4] == ["--events", "e.sqlite", "--index", "i.sqlite"] and set(given[0][4:]) == told
