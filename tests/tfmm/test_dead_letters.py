"""Dead letters of batch and stream: one form, one command, counts by reason."""

import contextlib
import json
import sqlite3

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tfmm import cli, dead_letters
from tfmm.index import item_index, store

BAD_LABEL = "`label` must be 0 or 1"


def parquet(folder, rows):
    folder.mkdir(parents=True)
    kinds = {"table": pa.string(), "row": pa.int64(), "reason": pa.string(), "content": pa.string()}
    table = pa.table({name: [row[name] for row in rows] for name in kinds}, pa.schema(kinds.items()))
    pq.write_table(table, folder / "dead_letter-00000-of-00001.parquet")


@pytest.fixture
def workdir(tmp_path):
    """What a run leaves, with two runs of one node."""
    row = {"table": "impressions", "reason": BAD_LABEL, "content": '{"label": 7}'}
    nodes = tmp_path / "pipeline"
    parquet(nodes / "ExampleGenerator" / "examples" / "4", [{**row, "row": 1}])
    parquet(nodes / "ExampleGenerator" / "examples" / "12", [{**row, "row": 3}, {**row, "row": 9}])
    folder = nodes / "CatalogEmbedder" / "snapshot" / "9" / "dead_letter"
    folder.mkdir(parents=True)
    reason = "title: must be at most 9 bytes of UTF-8, not 12; shorten it"
    rejected = {"item_id": 5, "modality": "text", "reason": reason, "content": "caf\u00e9 chairs"}
    (folder / "embedding-00000-of-00001.jsonl").write_text(json.dumps(rejected) + "\n", "utf-8")
    with item_index.ItemIndex(tmp_path / "index" / "items.sqlite") as index:
        payload = json.dumps({"event_time_us": 1_700_000_000_000_000, "item_id": ""}).encode()
        letters = [
            store.DeadLetter("sqlite:log", 7, "not JSON: Expecting value: line 1 column 1 (char 0)", b"\xff?"),
            store.DeadLetter("sqlite:log", 8, "not JSON: Extra data: line 1 column 5 (char 4)", b"{} []"),
            store.DeadLetter("sqlite:log", 9, "item_id: must be neither missing, 0 nor empty, not ''", payload),
        ]
        index.apply(store.IndexBatch(dead_letters=letters))
    (tmp_path / "metadata.sqlite").write_bytes(b"")  # other files of a workdir
    (tmp_path / "notes.jsonl").write_text("{}\n")
    return tmp_path


def test_all_stages_are_read_in_one_form_and_of_a_node_the_newest_run(workdir):
    found = list(dead_letters.read(workdir))
    assert {(one.stage, one.source, one.key, one.code) for one in found} == {
        ("examples", "impressions", "3", "label_must_be_0_or_1"),
        ("examples", "impressions", "9", "label_must_be_0_or_1"),
        ("embedding", "items.text", "5", "title_must_be_at_most_9_bytes_of_utf_8"),
        ("stream", "sqlite:log", "7", "not_json"),
        ("stream", "sqlite:log", "8", "not_json"),
        ("stream", "sqlite:log", "9", "item_id_must_be_neither_missing_0_nor_empty"),
    }
    by_key = {one.key: one for one in found if one.code != "label_must_be_0_or_1" or one.key == "3"}
    assert by_key["3"].content == '{"label": 7}' and by_key["5"].content == "café chairs"
    assert by_key["7"].content == "base64:/z8=" and by_key["8"].content == "{} []"
    assert by_key["9"].time == "2023-11-14T22:13:20+00:00" and by_key["7"].time is None
    assert by_key["3"].time.startswith("20") and by_key["3"].time.endswith("+00:00")


def test_reading_changes_no_file(workdir):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    list(dead_letters.read(workdir))
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path in before}
    assert after == before


def test_counts_put_reasons_with_other_values_together(workdir):
    assert [(one.code, one.count) for one in dead_letters.counts(dead_letters.read(workdir))[:2]] == [
        ("not_json", 2), ("label_must_be_0_or_1", 2),
    ]  # fmt: skip


def run(*words, columns=200):
    result = CliRunner().invoke(cli.main, ["dead-letters", *map(str, words)], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_shows_counts_and_letters(workdir):
    said = run(workdir)
    assert "not_json" in said and f"impressions 9: {BAD_LABEL}" in said and "café chairs" in said
    assert "2 of 6 shown" in run(workdir, "--limit", 2)


def test_no_code_is_cut_where_the_terminal_is_narrow(workdir):
    """--reason takes it whole."""
    cells = [line.split("│")[4].strip() for line in run(workdir, "--limit", 1, columns=80).splitlines() if "│" in line]
    assert "item_id_must_be_neither_missing_0_nor_empty" in "".join(cells)


def test_counts_and_letters_are_of_one_reading(workdir, monkeypatch):
    """A stream that writes meanwhile would make the sum another one than that of what is shown."""
    reads, read = [], dead_letters.read
    monkeypatch.setattr(dead_letters, "read", lambda *places: reads.append(places) or read(*places))
    assert "2 of 6 shown" in run(workdir, "--limit", 2) and len(reads) == 1
    assert run(workdir, "--limit", 9).count(BAD_LABEL) == 3


def test_letters_are_chosen_by_code_or_by_words(workdir):
    index = workdir / "index" / "items.sqlite"
    for reason in ("not_json", "not JSON"):
        letters = [json.loads(line) for line in run(index, "--reason", reason, "--json", "--limit", 0).splitlines()]
        assert [letter["key"] for letter in letters] == ["7", "8"]
    assert set(letters[0]) == {"time", "stage", "source", "key", "code", "reason", "content"}
    assert run(index, "--reason", "no such").strip() == "No dead letter found."


def test_an_index_may_be_named_by_its_url(workdir):
    index = workdir / "index" / "items.sqlite"
    assert list(dead_letters.read(f"sqlite:///{index}")) == list(dead_letters.read(index))
    assert run(f"sqlite:///{index}", "--json") == run(index, "--json")
    with pytest.raises(ValueError, match="The scheme of an index store's URL must be one of"):
        list(dead_letters.read("nowhere://items"))


def test_what_holds_no_letters_is_said(workdir):
    with pytest.raises(FileNotFoundError, match=r"does not exist\. Name a workdir"):
        list(dead_letters.read(workdir / "nowhere"))
    with pytest.raises(ValueError, match="must be an item index, or dead letters as a stage wrote them"):
        list(dead_letters.read(workdir / "metadata.sqlite"))


def test_an_index_that_cannot_be_read_is_not_one_without_letters(workdir, monkeypatch):
    index = workdir / "index" / "items.sqlite"
    with contextlib.closing(sqlite3.connect(index, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode=DELETE")
        monkeypatch.setattr(dead_letters, "WAIT_S", 0.01)
        writer.execute("BEGIN EXCLUSIVE")
        for place in (index, workdir):
            with pytest.raises(OSError, match=r"items\.sqlite cannot be read: database is locked\. Read it as"):
                list(dead_letters.read(place))
            result = CliRunner().invoke(cli.main, ["dead-letters", str(place)])
            assert result.exit_code == 1 and result.output.startswith(f"Error: {index} cannot be read: ")


def test_a_damaged_index_is_said_and_a_file_of_another_kind_is_passed_over(workdir):
    (workdir / "other.sqlite").write_bytes(b"no database at all, though its name says so" * 100)
    assert len(list(dead_letters.read(workdir))) == 6
    index = workdir / "index" / "items.sqlite"
    with contextlib.closing(sqlite3.connect(index)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index.write_bytes(index.read_bytes()[:100] + b"?" * 8000)
    with pytest.raises(OSError, match=r"items\.sqlite cannot be read: .*malformed"):
        list(dead_letters.read(workdir))


def test_lines_say_where_to_look(workdir):
    assert dead_letters.lines(workdir / "index") == [
        "left out: 2 of sqlite:log: not JSON: Expecting value: line 1 column 1 (char 0) (not_json)",
        "left out: 1 of sqlite:log: item_id: must be neither missing, 0 nor empty, not '' "
        "(item_id_must_be_neither_missing_0_nor_empty)",
        f"`tfmm dead-letters {workdir / 'index'}` shows them.",
    ]
    assert dead_letters.lines(workdir / "serving") == []


@pytest.mark.parametrize(("reason", "code"), [
    ("unknown fields: color, size; an event has version", "unknown_fields"),
    ("image: the encoder fails: out of memory", "image_the_encoder_fails"),
    ("payload: must be at most 16777216 bytes, which are kept here, not 9; send a smaller image",
     "payload_must_be_at_most_16777216_bytes_which_are_kept_here"),
    ("the event fails: ValueError: 3", "the_event_fails"),
    ("", ""),
])  # fmt: skip
def test_codes_leave_out_what_was_received(reason, code):
    assert dead_letters.reason_code(reason) == code
