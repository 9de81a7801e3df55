"""Which engine a stream takes, by the variable and by the command line."""

import socket

import pytest

from serving.streaming import engine
from tfmm import beam as beam_lib


@pytest.fixture
def flink_words():
    """Options of a Flink cluster whose job server answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"--runner=PortableRunner --job_endpoint=127.0.0.1:{server.getsockname()[1]} --parallelism=3"


def named(words):
    return {beam_lib.VARIABLE: words}


SEVERAL = "--runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=2"


@pytest.mark.parametrize("words", ["", SEVERAL])
def test_stream_is_one_process_here_unless_an_engine_outside_is_named(words):
    chosen = engine.Engine([], named(words))
    assert chosen.words == [*engine.IN_HERE] and not chosen.is_outside
    assert (chosen.parallelism, chosen.bundle_s) == (1, 60.0)


def test_variable_names_flink_and_the_command_line_counts_more(flink_words):
    flink = f"{flink_words} --flink_master=127.0.0.1:1"
    chosen = engine.Engine(["--checkpointing_interval=5"], named(flink))
    assert chosen.words == [*engine.ON_FLINK, *flink.split(), "--checkpointing_interval=5"]
    assert chosen.is_outside and chosen.parallelism == 3 and chosen.bundle_s < 1
    here = engine.Engine(["--runner=FnApiRunner"], named(flink))
    assert here.words == [*engine.IN_HERE, "--runner=FnApiRunner"] and not here.is_outside
    assert engine.Engine(flink.split(), named("")).words == [*engine.ON_FLINK, *flink.split()]


def test_what_cannot_work_is_said_before_a_job_starts(flink_words):
    with pytest.raises(ValueError, match=r"needs --flink_master=HOST:PORT.*server cannot do\. Received: --runner=P"):
        engine.Engine([], named(flink_words))
    with pytest.raises(ValueError, match=r"--job_endpoint=127.0.0.1:1: Beam's job server does not answer"):
        engine.Engine(["--runner=Flink", "--job_endpoint=127.0.0.1:1", "--flink_master=127.0.0.1:1"])
    with pytest.raises(ValueError, match="--runner must be named, and not as DirectRunner"):
        engine.Engine(["--runner=DirectRunner"], {})
