"""Options of Beam, by which a job's engine is named."""

import socket

import pytest

pytest.importorskip("apache_beam", reason="Beam is not installed")

from tfmm import beam


def test_what_can_be_used_passes():
    beam.verify(beam.LOCAL)
    beam.verify(["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"])
    image = "--sdk_container_image=registry.example/tfmm:1"
    place = ["--project=p", "--region=r", "--temp_location=gs://bucket/tmp"]
    beam.verify(["--runner=DataflowRunner", *place, image])


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
        beam.verify(options.split())
    assert f"Received: {options}" in str(caught.value)


@pytest.mark.parametrize("name", ["Direct", "direct", "directrunner", "Prism", "SwitchingDirectRunner", "my.Runner"])
def test_runner_that_is_not_known_here_is_refused_however_it_is_spelled(name):
    with pytest.raises(ValueError, match=r"not as DirectRunner|it must be one of FnApiRunner, .*DataflowRunner"):
        beam.verify([f"--runner={name}"])


@pytest.mark.parametrize("name, said", [
    ("flink", "--job_endpoint=HOST:PORT is not given"), ("FLINKRUNNER", "--job_endpoint=HOST:PORT is not given"),
    ("portable", "--job_endpoint=HOST:PORT is not given"), ("Dataflow", "--project is not given"),
    ("fnapirunner", "needs --direct_running_mode=multi_processing"),
])  # fmt: skip
def test_runner_is_asked_for_what_it_needs_however_it_is_spelled(name, said):
    with pytest.raises(ValueError, match=said):
        beam.verify([f"--runner={name}", "--direct_num_workers=2"])


def test_job_server_and_workers_that_do_not_answer_are_both_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ["--runner=PortableRunner", f"--job_endpoint={address}", "--environment_type=EXTERNAL"]
        said = f"(?s)--job_endpoint={address}: Beam's job server does not.*--environment_config={address}: the pool of"
        with pytest.raises(ValueError, match=said):
            beam.verify([*options, f"--environment_config={address}"])
