"""Which engine a stream takes, by the variable and by the command line."""

import http.server
import json
import socket
import threading

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from serving.streaming import engine, flink_jobs, pipeline, reading
from tfmm import beam as beam_lib
from tfmm.index import encode, store


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


def test_several_readers_in_this_process_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"`readers` must be 1 in this process.*Received: 2\. Leave it out, or name"):
        pipeline.run(tmp_path / "log.sqlite", None, tmp_path / "items.sqlite", readers=2)
    with pytest.raises(ValueError, match=r"`readers` must be at least 1. Received: 0"):
        pipeline.run(tmp_path / "log.sqlite", None, tmp_path / "items.sqlite", readers=0)
    assert not [*tmp_path.iterdir()]


def test_relative_paths_are_absolute_on_an_engine_outside_alone(flink_words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outside = engine.Engine(f"{flink_words} --flink_master=127.0.0.1:1".split())
    assert outside.num_readers(None) == 3 and outside.num_readers(5) == 5
    here = engine.Engine([], {})
    for given, wanted in (
        ("log.sqlite", f"{tmp_path}/log.sqlite"),
        ("sqlite:///log.sqlite", f"sqlite:///{tmp_path}/log.sqlite"),
        ("folder://logs", f"folder://{tmp_path}/logs"),
        ("kafka://127.0.0.1:1/items", "kafka://127.0.0.1:1/items"),
    ):
        assert outside.place(given) == wanted == outside.place(wanted)
        assert here.place(given) == given


def test_what_a_job_on_flink_is_made_of_has_absolute_paths(flink_words, tmp_path, monkeypatch):
    """Steps and name of the job are those of the whole paths, whichever folder the workers are in."""
    monkeypatch.chdir(tmp_path)
    with store.open_store("items.sqlite") as index:
        index.register_encoder("image", f"{encode.GIVEN}1", 4)
    keys, steps = [], []

    def run(self, make, key, stop):
        made = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        make(made)
        keys.append(key)
        made.visit(Collect(steps))

    monkeypatch.setattr(engine.Engine, "run", run)
    words = f"{flink_words} --flink_master=127.0.0.1:1".split()
    pipeline.run("log.sqlite", None, "items.sqlite", "ready.json", pipeline_args=words)
    (read,) = [step for step in steps if isinstance(step, reading.ReadEvents)]
    (embed,) = [step for step in steps if isinstance(step, pipeline.EmbedEvents)]
    names = [f"{tmp_path}/{name}" for name in ("log.sqlite", "items.sqlite", "ready.json")]
    assert [read._events, read._url, read._ready_file] == names and embed._url == names[1]
    assert keys == [f"{names[1]} {names[0]}"]


class Collect(beam.pipeline.PipelineVisitor):
    def __init__(self, steps):
        self.steps = steps

    def visit_transform(self, node):
        self.steps.append(getattr(node.transform, "dofn", None))


class Rest(http.server.BaseHTTPRequestHandler):
    """Flink's REST interface as far as `FlinkJobs` asks, with a job that is listed from the third look on."""

    def do_GET(self):
        server = self.server
        server.looks += 1
        listed = server.looks >= server.listed_from
        jobs = [{"jid": "1", "name": "mine", "state": server.state}] if listed else []
        self.answer({"jobs": jobs})

    def do_PATCH(self):
        self.server.state = "CANCELED"
        self.answer({})

    def answer(self, values):
        body = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Result:
    """Of Beam's run: what the job server knows."""

    state = PipelineState.STARTING


@pytest.fixture
def rest():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rest) as server:
        server.looks, server.listed_from, server.state = 0, 3, "RUNNING"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_job_that_flink_does_not_list_yet_is_cancelled_once_it_does(rest, monkeypatch):
    monkeypatch.setattr(engine, "_LOOK_S", 0.01)
    jobs = flink_jobs.FlinkJobs(f"127.0.0.1:{rest.server_port}", "mine")
    engine.end(jobs, Result())
    assert rest.state == "CANCELED"


def test_what_is_over_is_not_waited_for(rest):
    rest.listed_from = 1 << 30
    result = Result()
    result.state = PipelineState.FAILED
    engine.end(flink_jobs.FlinkJobs(f"127.0.0.1:{rest.server_port}", "mine"), result)
    assert rest.looks == 2
