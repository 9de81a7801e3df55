"""`tfmm index status|compact|activate|retire`: what they say, what they change, and what they refuse."""

import json
import time

import click.testing
import numpy as np
import pytest

from tfmm import cli
from tfmm.index import coverage, encode, status, store


def run(*words, code=0):
    result = click.testing.CliRunner().invoke(cli.main, ["index", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def write(index, version, ids, time_us=1, modality="image"):
    rows, scales = encode.quantize(np.random.default_rng(7).normal(size=[len(ids), 4]))
    index.write(modality, version, ids, rows, scales, [time_us] * len(ids))


@pytest.fixture
def filled(index):
    """40 items of v1, the first active; 30 of v2, 10 of these of v2 alone; a position and letters."""
    write(index, "v1", range(1, 41))
    write(index, "v2", range(21, 51), time.time_ns() // 1000 - 5_000_000)
    index.withdraw([40], [2])  # before v2's row of it
    letters = [store.DeadLetter("log", n, "bad", b"?") for n in (3, 5)]
    index.apply(store.IndexBatch(dead_letters=letters, positions={"log": 9}))
    return index


def test_status_tells_rows_coverage_and_age_by_encoder(filled):
    old, new = status.read(filled).tables
    assert (old.rows, old.items, old.active, new.rows, new.items, new.active) == (39, 50, True, 30, 50, False)
    assert old.coverage.share == 0.78 and new.coverage == coverage.Coverage(30, 50)
    assert 5 <= new.newest_age_s < 600 and new.newest_sequence == filled.last_sequence("image", "v2")
    assert coverage.of_active(filled, "image", "v2") == (20 - 1, 39)
    assert coverage.is_coming(filled, "image", "v2") and not coverage.is_coming(filled, "image", "v1")
    assert not coverage.is_coming(filled, "image", "v3")


def test_status_of_an_empty_index_has_no_rows(index):
    assert status.read(index).tables == ()
    index.register_encoder("image", "v1", 4)
    (table,) = status.read(index).tables
    assert (table.rows, table.coverage.share, table.newest_age_s) == (0, 1.0, None)


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_commands_show_switch_retire_and_compact(filled, url):
    told = json.loads(run("status", url, "--json"))
    assert [table["coverage"] for table in told["tables"]] == [0.78, 0.6]
    assert (told["positions"], told["dead_letters"]) == ({"log": 9}, {"log": 2}) and told["size"]["total_bytes"] > 0
    shown = run("status", url)
    assert "78.00%" in shown and "log: read to 9, 2 dead letters" in shown
    refused = run("activate", url, "image", "v2", code=1)
    assert "must have 99.00% of the image items of the active one. Received: 48.72%, 19 of 39 items." in refused
    assert "must not be the active one of image" in run("retire", url, "image", "v1", code=1)
    assert "19 of 39 items of the one before" in run("activate", url, "image", "v2", "--min-coverage", "0.4")
    assert filled.active_encoders()["image"].encoder_version == "v2"
    assert "40 rows of v1 are gone" in run("retire", url, "image", "v1")
    told = run("compact", url, "--keep-letters", "1")
    assert "1 dead letters are gone" in told and "bytes before" in told
    assert [letter.position for letter in filled.dead_letters()] == [5]
    assert [entry.encoder_version for entry in filled.encoders()] == ["v2"]


def test_names_that_other_commands_take_stand_whole_in_a_narrow_terminal(index, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    version = "0123456789abcdef0123456789"
    write(index, version, range(1, 1001), modality="item_features")
    rows = [[cell.strip() for cell in line.split("\u2502")] for line in run("status", index.url).splitlines()]
    found = ["".join(cells) for cells in zip(*(row for row in rows if len(row) == 10))]
    assert found[1:3] == ["item_features", version] and not [cell for cell in found if "\u2026" in cell]


def test_no_index_is_made_by_looking_for_one(tmp_path):
    for words in (["status"], ["compact"], ["activate", "image", "v1"], ["retire", "image", "v1"]):
        assert "`tfmm embed` makes the item index" in run(words[0], tmp_path / "items.sqlite", *words[1:], code=1)
    assert not list(tmp_path.iterdir())


def test_an_unknown_encoder_is_refused_with_those_that_are_known(filled):
    assert "must be one of [('image', 'v1'), ('image', 'v2')]" in run("activate", filled.url, "image", "v3", code=1)
