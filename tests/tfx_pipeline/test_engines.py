import socket

import psutil
import pytest

pytest.importorskip("apache_beam", reason="Beam is not installed")

from tfmm import config as config_lib
from tfmm.data import footprint
from tfmm.features import FeatureSet
from tfx_pipeline import engines, environments

FEATURES = FeatureSet().resolved(max_behaviors=50, min_count=1)


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
