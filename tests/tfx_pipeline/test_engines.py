import dataclasses
import os
import socket

import psutil
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import config as config_lib
from tfmm import presets
from tfmm.data import footprint
from tfmm.features import FeatureSet
from tfmm.marketplace import generator
from tfx_pipeline import engines, environments, infra_check, pipeline

FEATURES = FeatureSet().resolved(max_behaviors=50, min_count=1)
TABLES = config_lib.MarketplaceConfig(num_items=50, num_users=20, num_days=2, num_searches=20, image_size=16)


def test_options_are_those_of_the_variable_and_else_of_one_process(tmp_path):
    words = "--runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=2"
    environment = environments.Environment.from_variables({"TFMM_WORKDIR": str(tmp_path), "TFMM_BEAM": words})
    assert environment.beam == tuple(words.split())
    again = environments.Environment(tmp_path, None, config_lib.RunConfig(), environment.beam)
    assert environments.Environment.from_variables(again.to_variables()) == again
    for variables in ({}, {"TFMM_BEAM": ""}):
        assert engines.named(variables) == engines.LOCAL


def test_what_can_be_used_passes():
    engines.verify(engines.LOCAL)
    engines.verify(["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"])
    image = "--sdk_container_image=registry.example/tfmm:1"
    place = ["--project=p", "--region=r", "--temp_location=gs://bucket/tmp"]
    engines.verify(["--runner=DataflowRunner", *place, image])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("flink", "each word must begin with --.*these do not: flink"),
        ("--direct_num_workers=2", "--runner must be named"),
        ("--runner=DirectRunner", "not as DirectRunner"),
        ("--runner=NoSuchRunner", "--runner=NoSuchRunner cannot be used"),
        ("--runner=FnApiRunner --direct_num_workers=2", "--direct_num_workers=2 needs --direct_running_mode=multi_pro"),
        ("--runner=FnApiRunner --direct_running_mode=fast", "direct_running_mode: invalid choice: 'fast'"),
        ("--runner=PortableRunner", "--job_endpoint=HOST:PORT is not given.*make flink-up"),
        ("--runner=DataflowRunner", "(?s)--project is not.*--region is not.*--temp_location is not.*sdk_container_im"),
    ],
)
def test_what_is_wrong_is_said_at_once_with_what_was_received(options, said):
    with pytest.raises(ValueError, match=said) as caught:
        engines.verify(options.split())
    assert f"Received: {options}" in str(caught.value)


@pytest.mark.parametrize("name", ["Direct", "direct", "directrunner", "Prism", "SwitchingDirectRunner", "my.Runner"])
def test_runner_that_is_not_known_here_is_refused_however_it_is_spelled(name):
    with pytest.raises(ValueError, match=r"not as DirectRunner|it must be one of FnApiRunner, .*DataflowRunner"):
        engines.verify([f"--runner={name}"])


@pytest.mark.parametrize("name, said", [
    ("flink", "--job_endpoint=HOST:PORT is not given"), ("FLINKRUNNER", "--job_endpoint=HOST:PORT is not given"),
    ("portable", "--job_endpoint=HOST:PORT is not given"), ("Dataflow", "--project is not given"),
    ("fnapirunner", "needs --direct_running_mode=multi_processing"),
])  # fmt: skip
def test_runner_is_asked_for_what_it_needs_however_it_is_spelled(name, said):
    with pytest.raises(ValueError, match=said):
        engines.verify([f"--runner={name}", "--direct_num_workers=2"])


DATAFLOW = ["--runner=dataflow", "--project=p", "--region=r", "--temp_location=gs://b/tmp", "--sdk_container_image=i"]


def test_dataflow_needs_folders_that_its_workers_see(tmp_path):
    run, mount = presets.small(), tmp_path / "mount"
    inside = environments.Environment(mount / "work", None, run, tuple(DATAFLOW), str(mount))
    assert environments.Environment.from_variables(inside.to_variables()).mount == str(mount)
    pipeline.create_pipeline(inside)
    for outside in (dataclasses.replace(inside, workdir=tmp_path / "work"), dataclasses.replace(inside, mount="")):
        said = rf"Workers of Dataflow.*\(TFMM_MOUNT={outside.mount}\): {outside.workdir}.*Put them on a volume"
        with pytest.raises(ValueError, match=said):
            pipeline.create_pipeline(outside)
    places = [mount / "work", "gs://b/tables", tmp_path / "tables"]
    with pytest.raises(ValueError, match=rf"\(TFMM_MOUNT={mount}\): {tmp_path}/tables\. "):
        engines.verify_places(DATAFLOW, places, str(mount))
    engines.verify_places(engines.LOCAL, places, "")


def test_dag_that_runs_elsewhere_holds_nothing_of_this_machine(tmp_path, monkeypatch):
    generator.generate(TABLES, tmp_path / "tables")
    address = "--job_endpoint=job-server.example:8099"
    away = ("--runner=PortableRunner", address, "--environment_type=EXTERNAL", "--environment_config=pool.example:1")
    server = tmp_path / infra_check.SERVER
    server.write_text("")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(engines, "_answers", lambda where: pytest.fail(f"{where} was asked"))
    monkeypatch.setattr(engines, "machine_memory", lambda: (1, 1))
    for options in (away, engines.LOCAL):
        environment = environments.Environment(tmp_path / "work", tmp_path / "tables", presets.small(), options)
        made = pipeline.create_pipeline(environment, is_here=False)
        for node in made.components:
            assert str(server) not in str(node.exec_properties)
    with pytest.raises(ValueError, match=r"and this machine has 0\.0 GB"):
        pipeline.create_pipeline(environment)


def test_job_server_and_workers_that_do_not_answer_are_both_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ["--runner=PortableRunner", f"--job_endpoint={address}", "--environment_type=EXTERNAL"]
        said = f"(?s)--job_endpoint={address}: Beam's job server does not.*--environment_config={address}: the pool of"
        with pytest.raises(ValueError, match=said):
            engines.verify([*options, f"--environment_config={address}"])


def test_memory_of_a_join_is_said_before_work_and_refused_only_beyond_the_machine(monkeypatch):
    monkeypatch.setattr(footprint, "num_rows", lambda data_dir, feature_set: 1_000_000)
    least, most = footprint.bytes_of(1_000_000, FEATURES)
    assert 3.7e9 < least < 3.9e9 and 6.3e9 < most < 6.5e9  # 3.8 to 6.4 kB a row were measured
    said = []

    def require(total, available, options=engines.LOCAL):
        said.clear()
        monkeypatch.setattr(engines, "machine_memory", lambda: (total, available))
        engines.require_memory(options, "tables", FEATURES, said.append)
        return said

    assert require(most, most) == []
    (line,) = require(least, least)
    assert "1,000,000 impressions of tables take about 3.8 to 6.4 GB" in line and "may be killed" in line
    with pytest.raises(ValueError, match=r"3.8 to 6.4 GB, and this machine has 2.0 GB. Take Flink or Dataflow"):
        require(2 * 10**9, 10**9)
    assert require(10**9, 10**9, ["--runner=PortableRunner"]) == []


def test_memory_of_a_join_is_that_of_the_rows_which_are_joined(monkeypatch):
    monkeypatch.setattr(engines, "machine_memory", lambda: (10**9, 10**9))
    engines.require_memory(engines.LOCAL, "tables", FEATURES, pytest.fail, 100_000)
    with pytest.raises(ValueError, match="1,000,000 impressions"):
        engines.require_memory(engines.LOCAL, "tables", FEATURES, pytest.fail, 1_000_000)


def test_memory_of_the_machine_is_at_most_that_of_the_container(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(engines, "_CGROUP", limit)
    total = psutil.virtual_memory().total
    for text, wanted in (("max\n", total), (f"{2**30}\n", 2**30), (f"{2**60}\n", total)):
        limit.write_text(text)
        assert engines.machine_memory()[0] == wanted
