"""A source of one's own: its file, and one line of its package's entry points."""

import pathlib
import signal
import subprocess
import sys

import pytest

from serving.streaming import event_log, events
from tfmm import fingerprints
from tfmm.index import item_index

SOURCES = pathlib.Path(__file__).parent / "sources"


@pytest.fixture
def own_source(install_entry_point):
    """Installs the package of `lines.LineSource`."""
    install_entry_point(SOURCES, "tfmm.event_sources", "lines = lines:LineSource")


def test_streaming_job_reads_it_by_url_and_goes_on_behind_what_it_took(own_source, encoders_dir, tmp_path, wait_for):
    lines, url = tmp_path / "events.txt", f"lines://{tmp_path / 'events.txt'}"
    command = [sys.executable, "-m", "tfmm.cli", "stream", "--events", url, "--index", str(tmp_path / "items.sqlite"),
               "--encoders", str(encoders_dir)]  # fmt: skip
    payloads = [events.make_event("a", title="one"), b"no event", events.make_event("b", title="two")]
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        for count in (2, 3):
            lines.write_bytes(b"\n".join(payloads[:count]) + b"\n")
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
                try:
                    wait_for(lambda taken=count: index.position(url) == taken, job)
                finally:
                    job.send_signal(signal.SIGTERM)
                    said, _ = job.communicate(timeout=120)
            assert job.returncode == 0, said
            assert f"offset {count}: 1 items" in said and said.count("offset ") == 1
        found = index.embeddings("text", "text-1").ids.tolist()
        assert found == sorted(fingerprints.fingerprint(["a", "b"]).tolist())
        assert [(source, offset) for source, offset, *_ in index.dead_letters()] == [(url, 2)]


def test_a_path_and_its_url_are_one_log(tmp_path):
    path = tmp_path / "events.sqlite"
    with event_log.SQLiteEventLog(path) as log, event_log.open_source(f"sqlite:///{path}") as by_url:
        log.append([b"a"])
        assert by_url.name == log.name and by_url.read(0, 2) == [event_log.Event(1, b"a")]
        with event_log.open_source(path) as by_path:
            assert by_path.name == log.name


def test_unknown_scheme_is_refused_with_the_way_out(own_source):
    with pytest.raises(ValueError, match=r"one of \[.*'lines', .*'sqlite'\]\. Received: 'queue'.*tfmm\.event_sources"):
        event_log.open_source("queue://shop")
