"""What is served beside what was judged."""

import json
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.page import drift, settings
from tfmm import presets
from tfmm.data import served
from tfmm.evaluate import tiers
from tfmm.features import STORED
from tfmm.fingerprints import fingerprint
from tfmm.index import store
from tfmm.stages import run_file

ITEMS = list(range(100, 110))
HISTORY = [101, 102, 103]


def record(number, scores, index=None, **changes):
    """A record of the log."""
    values = {
        "request_id": f"r{number}", "time": time.time() - 100 + number, "model": "tfmm", "version": 7,
        "encoders": {STORED: "x"} | (index or {}), "index": {},
        "features": {"user_id": 3, "behavior_item_ids": HISTORY}, "items": ITEMS, "scores": scores,
    }  # fmt: skip
    return served.Served(**(values | changes))


def write_log(folder, records):
    folder.mkdir(exist_ok=True)
    lines = [served.to_json(one) + b"\n" for one in records]
    (folder / f"{time.time_ns()}.jsonl").write_bytes(b"".join(lines))


@pytest.fixture
def evaluation(tmp_path):
    """An evaluation whose model scored 0.1 to 0.3, and clicks at 0.2."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    scores = np.tile(np.linspace(0.1, 0.3, 50), 4).astype(np.float32)
    labels = np.tile([1, 0, 0, 0, 0], 40)
    pq.write_table(pa.table({"score_multimodal": scores, "label": labels}), folder / "predictions.parquet")
    run_file.write(presets.small(), folder)
    return folder


def write_report(folder, counts):
    (folder / "report.json").write_text(json.dumps({"tiers": {"vector": {"counts": counts, "unknown": 5}}}))


def section(told):
    board, _ = settings.open_board(told)
    (watch,) = [one for one in board._watches if one.kind == "log"]
    watch.ask()
    (found,) = [one for one in board.assemble()["sections"] if one["name"] == "drift"]
    return found


@pytest.fixture
def served_tiers(index_path):
    """The tiers of one request's candidates."""
    with store.open_store(index_path) as index:
        entry = index.active_encoders()["vector"]
        known = index.snapshot({"vector": entry.encoder_version})["vector"].rows
        places = {int(item): place for place, item in enumerate(known.ids)}

        def look_up(ids):
            at = np.vectorize(places.get)(ids)
            return tiers.Vectors(known.rows[at], known.scales[at], np.ones(ids.shape, bool))

        own = tiers.tiers(fingerprint(ITEMS), np.tile(HISTORY, (len(ITEMS), 1)), look_up)
        return entry.encoder_version, own


def test_requests_like_those_of_the_evaluation_show_no_drift_and_others_do(
    tmp_path, evaluation, index_path, served_tiers
):
    encoder, own = served_tiers
    write_report(evaluation, own.counts.tolist())
    like, other = np.linspace(0.1, 0.3, 10).tolist(), [0.9] * 10
    write_log(tmp_path / "log", [record(n, like, {"vector": encoder}) for n in range(4)])
    told = settings.Settings({}, str(index_path), evaluation_dir=evaluation, served_dir=tmp_path / "log")
    scores, of_tiers = section(told)["tables"]
    judged, newest = scores["rows"]
    assert [judged[name]["text"] for name in ("rows", "score", "clicks", "calibration")] == [
        "200", "0.2000", "0.2000", "1.000"
    ]  # fmt: skip
    assert newest["rows"]["value"] == 40 and newest["score"]["value"] == pytest.approx(0.2)
    assert newest["drift"]["value"] < 0.05 and newest["drift"]["level"] == "ok"
    (vector,) = of_tiers["rows"]
    assert vector["drift"]["value"] == pytest.approx(0.0, abs=1e-12) and vector["pairs"]["value"] == 4 * 30
    assert vector["unknown"]["value"] == 0.0
    assert vector["trained_unknown"]["value"] == pytest.approx(5 / (5 + own.counts.sum()))

    write_report(evaluation, own.counts.tolist()[::-1])
    write_log(tmp_path / "log", [record(n, other, {"vector": encoder}, version=8) for n in range(10, 220)])
    scores, of_tiers = section(told)["tables"]
    _, changed = scores["rows"]  # the newest 200 requests are of version 8 alone
    assert changed["what"]["value"] == "tfmm 8" and changed["drift"]["level"] == "bad"
    assert of_tiers["rows"][0]["drift"]["value"] > 0


def test_clicks_of_what_was_shown_stand_beside_the_scores(tmp_path, evaluation):
    write_report(evaluation, [1] * tiers.NUM_TIERS)
    write_log(tmp_path / "log", [record(n, [0.25] * 10) for n in range(8)])
    shown = [{"request_id": f"r{n}", "item_id": item, "shown": True} for n in range(8) for item in ITEMS]
    clicked = [{"request_id": f"r{n}", "item_id": ITEMS[0], "label": True} for n in range(8)]
    (tmp_path / "clicks").mkdir()
    lines = [json.dumps({**one, "time": time.time() - 50}) + "\n" for one in shown + clicked]
    (tmp_path / "clicks" / "all.jsonl").write_text("".join(lines))
    told = settings.Settings(
        {}, evaluation_dir=evaluation, served_dir=tmp_path / "log", clicked_dir=tmp_path / "clicks", window_s=20.0
    )
    (scores,) = section(told)["tables"]
    *_, live = scores["rows"]
    assert live["rows"]["value"] == 80 and live["clicks"]["value"] == pytest.approx(0.1)
    assert live["calibration"]["value"] == pytest.approx(2.5)


def test_clicks_are_counted_of_files_of_the_last_day_and_an_evaluation_is_read_once(tmp_path, evaluation, monkeypatch):
    write_report(evaluation, [1] * tiers.NUM_TIERS)
    write_log(tmp_path / "log", [record(n, [0.25] * 10) for n in range(8)])
    old = tmp_path / "log" / "0.jsonl"
    old.write_bytes(served.to_json(record(0, [0.25] * 10, request_id="old", time=time.time() - 200_000)) + b"\n")
    os.utime(old, (time.time() - 200_000,) * 2)
    (tmp_path / "clicks").mkdir()
    clicked = [{"request_id": f"r{n}", "item_id": ITEMS[0], "label": True, "time": time.time() - 50} for n in range(8)]
    (tmp_path / "clicks" / "all.jsonl").write_text("".join(json.dumps(one) + "\n" for one in clicked))
    told = settings.Settings(
        {}, evaluation_dir=evaluation, served_dir=tmp_path / "log", clicked_dir=tmp_path / "clicks", window_s=20.0
    )
    read, kept, references = [], served.payloads, []
    monkeypatch.setattr(served, "payloads", lambda path: read.append(path) or kept(path))
    monkeypatch.setattr(drift, "newest_records", lambda folder, count: [])
    own_reference = drift.read_reference
    monkeypatch.setattr(drift, "read_reference", lambda folder: references.append(folder) or own_reference(folder))
    board, _ = settings.open_board(told)
    (watch,) = [one for one in board._watches if one.kind == "log"]
    watch.ask()
    watch.ask()
    assert not watch.notes and watch.value.live["tfmm", 7].requests == 8
    assert old not in read and len(references) == 1
    time.sleep(0.05)  # what is written within a tick of the system has one time
    write_report(evaluation, [2] * tiers.NUM_TIERS)
    watch.ask()
    assert watch.value.reference.tiers["vector"]["counts"][0] == 2


def test_what_is_not_there_is_said(tmp_path, evaluation):
    (tmp_path / "log").mkdir()
    found = section(settings.Settings({}, evaluation_dir=evaluation, served_dir=tmp_path / "log"))
    assert "report.json" in found["notes"][0]["text"]
    write_report(evaluation, [])
    found = section(settings.Settings({}, evaluation_dir=evaluation, served_dir=tmp_path / "log"))
    assert not found["notes"] and len(found["tables"][0]["rows"]) == 1  # nothing is logged yet


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"target": "a:1", "data_dir": "d"}, r"--index must be named with .* Received: --target, --data alone"),
        ({"clicked_dir": "d"}, "--clicked needs --served and --evaluation"),
    ],
)
def test_options_that_need_others_say_so(told, message):
    with pytest.raises(ValueError, match=message):
        settings.Settings({}, **told)
