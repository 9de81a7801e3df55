"""Tests of the streaming job: in this process, and as a process that is killed."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from serving.streaming import __main__ as streaming
from serving.streaming import event_log, events, metrics, pipeline
from tfmm import artifacts, fingerprints
from tfmm.index import encode, item_index


@pytest.fixture
def running(encoders_dir, tmp_path, running_job):
    """The job in a thread of this process, with its log and its index."""
    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        with item_index.ItemIndex(tmp_path / "items.sqlite") as index, running_job(log.path, encoders_dir, index.path):
            yield log, index


def test_events_become_embeddings_withdrawals_and_dead_letters(running, encoders_dir, wait_for):
    log, index = running
    first = log.append([
        events.make_event("a", title="title a", image=b"image a", category="shoes", event_time_us=10),
        b"no event",
        events.make_event("b", title="title b", image=b"bad image", event_time_us=11),
        events.make_event("c", title="poison", image=b"image c", event_time_us=12),
        events.make_event("d", title="title d", event_time_us=13),
    ])  # fmt: skip
    wait_for(lambda: index.position(log.name) == first)
    ids = fingerprints.fingerprint(["a", "b", "c", "d"])
    contents = {"image": (ids[[0, 2]], ["image a", "image c"]),
                "text": (ids[[0, 1, 3]], ["title a", "title b", "title d"])}  # fmt: skip
    for modality, (wanted_ids, texts) in contents.items():
        encoder = encode.load_encoder(encoders_dir / modality)
        wanted = dict(zip(wanted_ids.tolist(), encode.quantize(encoder(texts))[0].tolist()))
        found = index.embeddings(modality, encoder.version)
        assert dict(zip(found.ids.tolist(), found.rows.tolist())) == wanted
    reasons = {(offset, reason.split(":")[0]) for _, offset, reason, _ in index.dead_letters(log.name)}
    assert reasons == {(2, "not JSON"), (3, "image"), (4, "title")}
    assert any("a poison" in reason for _, _, reason, _ in index.dead_letters())
    told = metrics.REGISTRY.get_sample_value
    wait_for(lambda: told("tfmm_stream_watermark_seconds", {"source": log.name}) == 13e-6)  # the last, after the index
    assert told("tfmm_stream_events_total", {"source": log.name}) == 5
    for reason in ("not JSON", "image", "title"):
        assert told("tfmm_stream_dead_letters_total", {"source": log.name, "reason": reason}) == 1

    time.sleep(0.7)  # another bundle
    last = log.append([events.make_event("a", withdrawn=True, event_time_us=20),
                       events.make_event("d", title="older", event_time_us=1)])  # fmt: skip
    wait_for(lambda: index.position(log.name) == last)
    found = index.embeddings("text", "text-1")
    assert found.ids.tolist() == sorted(ids[[1, 3]].tolist())
    assert found.event_times_us[found.ids == ids[3]] == [13]


@pytest.fixture
def ending():
    """A job that is asked to stop at once."""
    pipeline.stop_requested.set()
    yield
    pipeline.stop_requested.clear()


@pytest.mark.parametrize("folder", [None, "", "run", "run/encoders/text"])
def test_nothing_to_embed_with_is_refused(folder, encoders_dir, tmp_path, ending):
    artifacts.write_manifest(tmp_path / "run" / "snapshot", "index_snapshot")
    (tmp_path / "run" / "encoders").symlink_to(encoders_dir)
    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        log.append([events.make_event("a", title="title a")])
        place = None if folder is None else tmp_path / folder
        with pytest.raises(ValueError, match="must hold an encoder") as refusal:
            pipeline.run(log.path, place, tmp_path / "items.sqlite")
        assert f"Received: {place}" in str(refusal.value)
        with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
            assert index.position(log.name) == 0


@pytest.mark.parametrize("folder", [None, "."])
def test_index_of_given_vectors_needs_no_encoders(folder, tmp_path, monkeypatch, ending):
    given = encode.GivenVectors(2)
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        index.register_encoder("vector", given.version, given.dim)
    monkeypatch.chdir(tmp_path)
    arguments = ["--events=events.sqlite", "--index=items.sqlite", "--ready-file=ready.json"]
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    streaming.main(arguments + ([f"--encoders={folder}"] if folder else []))
    assert (tmp_path / "ready.json").exists()


def start(encoders_dir, tmp_path, root, wait_for):
    ready = tmp_path / "ready.json"
    ready.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.streaming", "--events", str(tmp_path / "events.sqlite"),
         "--index", str(tmp_path / "items.sqlite"), "--encoders", str(encoders_dir), "--ready-file", str(ready)],
        cwd=root, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(ready.exists, process)
    assert json.loads(ready.read_text())["pid"] == process.pid
    return process


def test_a_batch_of_dead_letters_alone_has_no_age(running, wait_for, caplog):
    log, index = running
    with caplog.at_level(logging.INFO):
        last = log.append([b"no event"])
        wait_for(lambda: index.position(log.name) == last)
        wait_for(lambda: "0 older than what is known" in caplog.text)
    assert "1 dead letters, 0 older than what is known\n" in caplog.text


@pytest.mark.slow
def test_killed_job_goes_on_without_loss_or_duplicate(encoders_dir, tmp_path, root, wait_for):
    log = event_log.SQLiteEventLog(tmp_path / "events.sqlite")
    index = item_index.ItemIndex(tmp_path / "items.sqlite")
    count = 1000
    for attempt in range(3):
        process = start(encoders_dir, tmp_path, root, wait_for)
        try:
            before = index.position(log.name)
            last = log.append(
                events.make_event(f"{attempt}-{n}", title=f"title {attempt} {n}", event_time_us=n) for n in range(count)
            )
            if attempt < 2:
                wait_for(lambda before=before: index.position(log.name) > before + 100, process)
                process.kill()  # in the middle of the batch
                assert process.wait(120) == -signal.SIGKILL
                assert before < index.position(log.name) < last
            else:
                wait_for(lambda last=last: index.position(log.name) == last, process)
                process.send_signal(signal.SIGTERM)
                assert process.wait(120) == 0
        finally:
            process.kill()
            process.wait()
    found = index.embeddings("text", "text-1")
    wanted = fingerprints.fingerprint([f"{attempt}-{n}" for attempt in range(3) for n in range(count)])
    np.testing.assert_array_equal(found.ids, np.sort(wanted))
    assert np.ptp(found.sequences) == 3 * count - 1  # each item changed the index once
    assert not index.dead_letters()
    log.close()
    index.close()
