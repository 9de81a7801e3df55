import dataclasses
import os

import psutil
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import beam, presets
from tfmm import config as config_lib
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
        assert beam.named(variables) == beam.LOCAL


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
    engines.verify_places(beam.LOCAL, places, "")


def test_dag_that_runs_elsewhere_holds_nothing_of_this_machine(tmp_path, monkeypatch):
    generator.generate(TABLES, tmp_path / "tables")
    address = "--job_endpoint=job-server.example:8099"
    away = ("--runner=PortableRunner", address, "--environment_type=EXTERNAL", "--environment_config=pool.example:1")
    server = tmp_path / infra_check.SERVER
    server.write_text("")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(beam, "_answers", lambda where: pytest.fail(f"{where} was asked"))
    monkeypatch.setattr(engines, "machine_memory", lambda: (1, 1))
    for options in (away, beam.LOCAL):
        environment = environments.Environment(tmp_path / "work", tmp_path / "tables", presets.small(), options)
        made = pipeline.create_pipeline(environment, is_here=False)
        for node in made.components:
            assert str(server) not in str(node.exec_properties)
    with pytest.raises(ValueError, match=r"and this machine has 0\.0 GB"):
        pipeline.create_pipeline(environment)


def test_memory_of_a_join_is_said_before_work_and_refused_only_beyond_the_machine(monkeypatch):
    monkeypatch.setattr(footprint, "num_rows", lambda data_dir, feature_set: 1_000_000)
    least, most = footprint.bytes_of(1_000_000, FEATURES)
    assert 3.7e9 < least < 3.9e9 and 6.3e9 < most < 6.5e9  # 3.8 to 6.4 kB a row were measured
    said = []

    def require(total, available, options=beam.LOCAL):
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
    engines.require_memory(beam.LOCAL, "tables", FEATURES, pytest.fail, 100_000)
    with pytest.raises(ValueError, match="1,000,000 impressions"):
        engines.require_memory(beam.LOCAL, "tables", FEATURES, pytest.fail, 1_000_000)


def test_memory_of_the_machine_is_at_most_that_of_the_container(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(engines, "_CGROUP", limit)
    total = psutil.virtual_memory().total
    for text, wanted in (("max\n", total), (f"{2**30}\n", 2**30), (f"{2**60}\n", total)):
        limit.write_text(text)
        assert engines.machine_memory()[0] == wanted
