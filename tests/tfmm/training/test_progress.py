"""Progress lines that another process can follow."""

import numpy as np

from tfmm.training import progress


def test_lines_append_and_read_back(tmp_path):
    path = tmp_path / "deep" / "progress.jsonl"
    progress.jsonl(path)("a", 1, 2, loss=np.float32(0.5))
    progress.jsonl(path)("b", 2, 2)
    first, second = progress.read_jsonl(path)
    assert (first["stage"], first["done"], first["total"], first["loss"]) == ("a", 1, 2, 0.5)
    assert second["stage"] == "b" and second["time"] >= first["time"]


def test_unfinished_line_is_left_out(tmp_path):
    path = tmp_path / "progress.jsonl"
    progress.jsonl(path)("a", 1, 2)
    with path.open("a") as file:
        file.write('{"stage": "b", "do')
    assert [line["stage"] for line in progress.read_jsonl(path)] == ["a"]


def test_silent_accepts_everything():
    assert progress.silent("a", 1, 2, loss=1.0) is None


def test_a_note_is_written_whatever_the_interval(tmp_path):
    said = []
    report = progress.lines(said.append, interval_s=1000.0)
    report("a", 1, 4, loss=1.0)
    report("a", 2, 4, note="2 of 4 parts were trained before")
    report("a", 3, 4, loss=1.0)
    assert said[-1] == "a: 2 of 4 parts were trained before"
    progress.jsonl(tmp_path / "progress.jsonl")("a", 2, 4, note="trained before")
    assert progress.read_jsonl(tmp_path / "progress.jsonl")[0]["note"] == "trained before"
