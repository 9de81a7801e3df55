"""Tests of the item index: against a dict, across threads and processes, and of its errors."""

import itertools
import sqlite3
import subprocess
import sys
import threading
from time import sleep

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tfmm.index import encode, item_index

WRITES = st.lists(
    st.tuples(
        st.sampled_from(["image", "text"]),
        st.sampled_from(["v1", "v2"]),
        st.lists(st.tuples(st.integers(1, 4), st.integers(-127, 127), st.integers(0, 3)), max_size=4),
    ),
    max_size=12,
)


def as_arrays(entries):
    ids, values, times = (list(column) for column in zip(*entries)) if entries else ([], [], [])
    rows = np.array([[value, 1] for value in values], np.int8).reshape(-1, 2)
    return ids, rows, encode.scales_of(rows), times


@hypothesis.given(WRITES)
def test_index_is_a_dict_where_the_newest_event_wins(writes):
    index, model, newest = item_index.ItemIndex(":memory:"), {}, 0
    for modality, version, entries in writes:
        expected = 0
        for item_id, value, time in entries:
            old = model.get((modality, version, item_id))
            if old is None or time >= old[1]:
                expected += old is None or old[0] != value
                model[modality, version, item_id] = (value, time)
        assert index.write(modality, version, *as_arrays(entries)) == expected
        assert index.write(modality, version, *as_arrays(entries)) in range(len(entries) + 1)
        for item_id, value, time in entries:  # the second write counts too: of equal times the last one wins
            if time >= model[modality, version, item_id][1]:
                model[modality, version, item_id] = (value, time)
    seen = []
    for modality, version in itertools.product(["image", "text"], ["v1", "v2"]):
        if not index.has_encoder(modality, version):
            continue
        wanted = {key[2]: value for key, (value, _) in model.items() if key[:2] == (modality, version)}
        found = index.embeddings(modality, version)
        assert dict(zip(found.ids.tolist(), found.rows[:, 0].tolist())) == wanted
        assert found.ids.tolist() == sorted(wanted)
        changes = index.changes(modality, version, 0)
        assert dict(zip(changes.ids.tolist(), changes.rows[:, 0].tolist())) == wanted
        assert (np.diff(changes.sequences) > 0).all()
        newest = index.last_sequence(modality, version)
        assert newest == (changes.sequences[-1] if wanted else 0)
        seen += changes.sequences.tolist()
    assert len(seen) == len(set(seen))
    index.close()


@hypothesis.given(WRITES, st.integers(1, 3))
def test_reader_that_follows_the_changes_has_the_state(writes, limit):
    index, state, watermark = item_index.ItemIndex(":memory:"), {}, 0
    for _, _, entries in writes:
        index.write("image", "v1", *as_arrays(entries))
        while len(rows := index.changes("image", "v1", watermark, limit)):
            state |= dict(zip(rows.ids.tolist(), rows.rows.tolist()))
            watermark = int(rows.sequences[-1])
        found = index.embeddings("image", "v1")
        assert state == dict(zip(found.ids.tolist(), found.rows.tolist()))
        assert index.lag("image", "v1", watermark) == 0
    index.close()


def test_writing_twice_takes_no_sequence_number():
    index = item_index.ItemIndex(":memory:")
    assert index.write("image", "v1", *as_arrays([(1, 5, 0), (2, 6, 0)])) == 2
    before = index.last_sequence("image", "v1")
    assert index.write("image", "v1", *as_arrays([(1, 5, 0), (2, 6, 9)])) == 0  # confirmed later
    assert index.last_sequence("image", "v1") == before
    assert index.write("image", "v1", *as_arrays([(2, 7, 8)])) == 0  # older than the confirmation
    index.close()


def test_withdrawn_item_stays_withdrawn_until_a_newer_event():
    index = item_index.ItemIndex(":memory:")
    index.write("image", "v1", *as_arrays([(1, 5, 1), (2, 5, 1)]))
    index.write("text", "v1", *as_arrays([(1, 5, 1)]))
    before = index.last_sequence("image", "v1")
    assert index.withdraw([1], [3]) == 2
    assert index.embeddings("image", "v1").ids.tolist() == [2]
    assert index.changes("image", "v1", before).scales.tolist() == [0.0]
    assert index.write("image", "v1", *as_arrays([(1, 5, 2)])) == 0
    assert index.write("image", "v1", *as_arrays([(1, 5, 4)])) == 1
    assert index.embeddings("image", "v1").ids.tolist() == [1, 2]
    index.close()


def test_withdrawn_item_stays_withdrawn_with_a_later_encoder():
    index = item_index.ItemIndex(":memory:")
    index.write_items([1], [7], [1])
    index.write("image", "v1", *as_arrays([(1, 5, 1)]))
    index.withdraw([1, 2], [3, 3])  # 2 was never there
    index.withdraw([1], [2])  # an older event that comes late
    assert index.write("image", "v2", *as_arrays([(1, 6, 1), (1, 6, 3), (2, 6, 3), (3, 6, 0)])) == 1
    assert index.embeddings("image", "v2").ids.tolist() == [3]
    index.write_items([1, 2], [7, 8], [1, 1])  # the catalog again
    assert index.categories([1, 2]).tolist() == [7, 8]
    assert index.write("image", "v2", *as_arrays([(1, 6, 3), (2, 6, 4)])) == 1
    assert index.embeddings("image", "v2").ids.tolist() == [2, 3]
    assert index.withdraw([2], [4]) == 1  # in v2: it never came back in v1
    assert index.withdraw([2], [4]) == 0
    assert index.embeddings("image", "v2").ids.tolist() == [3]
    index.close()


def test_encoders_stand_side_by_side_until_forgotten():
    index = item_index.ItemIndex(":memory:")
    index.write("image", "v1", *as_arrays([(1, 5, 1)]))
    index.register_encoder("image", "v2", 3)
    assert index.active_encoders()["image"].encoder_version == "v1"
    index.activate("image", "v2")
    assert index.active_encoders()["image"] == item_index.EncoderEntry("image", "v2", 3, True)
    assert len(index.embeddings("image", "v1")) == 1
    assert index.forget("image", "v1") == 1
    assert [entry.encoder_version for entry in index.encoders()] == ["v2"]
    index.close()


def test_failed_transaction_leaves_nothing():
    index = item_index.ItemIndex(":memory:")
    index.register_encoder("image", "v1", 2)
    with pytest.raises(RuntimeError, match="in the middle"), index.transaction():
        index.write("image", "v1", *as_arrays([(1, 5, 1)]))
        index.write_items([1], [7], [1])
        index.commit_position("log", 5)
        raise RuntimeError("in the middle")
    assert index.last_sequence("image", "v1") == index.position("log") == index.categories([1])[0] == 0
    assert index.write("image", "v1", *as_arrays([(1, 5, 1)])) == 1
    index.close()


def test_position_never_goes_back():
    index = item_index.ItemIndex(":memory:")
    index.commit_position("log", 5)
    index.commit_position("log", 3)
    assert (index.position("log"), index.position("other")) == (5, 0)
    index.close()


def test_later_index_has_larger_sequence_numbers(tmp_path):
    last = []
    for name in ("one", "two"):
        with item_index.ItemIndex(tmp_path / name) as index:
            index.write("image", "v1", *as_arrays([(1, 5, 1), (2, 5, 1)]))
            last.append((index.changes("image", "v1", 0).sequences[0], index.last_sequence("image", "v1")))
        sleep(1.0)  # births are told apart by the second
    assert last[0][1] < last[1][0]


def test_newest_category_wins():
    index = item_index.ItemIndex(":memory:")
    index.write_items([1, 2], [10, 20], [5, 5])
    index.write_items([1, 2], [11, 21], [4, 6])
    assert index.categories([2, 1, 3]).tolist() == [21, 10, 0]
    index.close()


def test_dead_letters_are_kept_once_with_reason():
    index = item_index.ItemIndex(":memory:")
    for _ in range(2):
        index.write_dead_letter("log", 2, "not JSON", b"?")
    index.write_dead_letter("other", 1, "no content", None)
    assert index.dead_letters("log") == [("log", 2, "not JSON", b"?")]
    assert len(index.dead_letters()) == 2
    index.close()


def test_dead_letters_always_fit():
    index = item_index.ItemIndex(":memory:")
    payload = bytes(item_index.MAX_LETTER_BYTES) + b"end"
    index.write_dead_letter("log", 1, "half \ud800, NUL \0, " + "a" * 10**6, payload)
    index.write_dead_letter("log", 2, "\ud800" * 10**6, b"\xff")
    (_, _, reason, kept), (_, _, surrogates, _) = index.dead_letters()
    assert reason.startswith(r"half \ud800, NUL \x00, aaa") and len(reason) == len(surrogates) == 1000
    assert kept == payload[: 1 << 24] and surrogates.startswith(r"\ud800\ud800")
    index.close()


def test_full_disk_is_named():
    index = item_index.ItemIndex(":memory:")
    index._database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError, match="disk is full"), index.transaction():
        index.write_dead_letter("log", 1, "not JSON", bytes(10**6))
    index._database.execute("PRAGMA max_page_count = 1000000")
    assert index.dead_letters() == []
    index.write_dead_letter("log", 1, "not JSON", b"")
    assert len(index.dead_letters()) == 1
    index.close()


def test_threads_and_connections_share_one_sequence(tmp_path):
    path = tmp_path / "items.sqlite"
    shared = item_index.ItemIndex(path)

    def write(worker):
        index = shared if worker % 2 else item_index.ItemIndex(path)
        for n in range(25):
            index.write("image", "v1", *as_arrays([(worker * 100 + n + 1, n, 1)]))
        if index is not shared:
            index.close()

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    seen, watermark = [], 0
    for thread in threads:
        thread.start()
    while len(seen) < 100:
        if shared.has_encoder("image", "v1"):
            rows = shared.changes("image", "v1", watermark, 7)
            seen += rows.ids.tolist()
            watermark = max([watermark, *rows.sequences.tolist()])
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(worker * 100 + n + 1 for worker in range(4) for n in range(25))
    assert np.ptp(shared.changes("image", "v1", 0).sequences) == 99
    shared.close()


def test_killed_writer_leaves_a_whole_index(tmp_path, root):
    """A process that is killed inside a transaction takes all of it along, and blocks nobody."""
    program = (
        "import os, numpy as np\n"
        "from tfmm.index import item_index\n"
        f"index = item_index.ItemIndex({str(tmp_path / 'items.sqlite')!r})\n"
        "index.write('image', 'v1', [1], np.ones([1, 2], np.int8), [0.5], [1])\n"
        "with index.transaction():\n"
        "    index.write('image', 'v1', [2], np.ones([1, 2], np.int8), [0.5], [1])\n"
        "    index.commit_position('log', 1)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == -9
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        assert index.embeddings("image", "v1").ids.tolist() == [1]
        assert index.position("log") == 0
        assert index.write("image", "v1", *as_arrays([(2, 5, 1)])) == 1
        assert np.diff(index.changes("image", "v1", 0).sequences).tolist() == [1]  # the lost one is taken again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], np.ones([1, 2], np.int8), [1], [1]), "must not hold 0"),
        (([1], np.ones([1, 2], np.float32), [1], [1]), "must be int8"),
        (([1, 2], np.ones([1, 2], np.int8), [1], [1]), "Received: int8"),
        (([1], np.ones([1, 3], np.int8), [1], [1]), "must be 2, as its rows"),
        (([1], np.ones([1, 1041], np.int8), [1], [1]), "in 1..1040"),
    ],
)
def test_rows_that_do_not_fit_are_refused(arguments, message):
    index = item_index.ItemIndex(":memory:")
    index.register_encoder("image", "v1", 2)
    with pytest.raises(ValueError, match=message):
        index.write("image", "v1", *arguments)
    index.close()


def test_unknown_encoder_is_named():
    index = item_index.ItemIndex(":memory:")
    index.register_encoder("image", "v1", 2)
    with pytest.raises(ValueError, match=r"one of \[\('image', 'v1'\)\]"):
        index.changes("image", "v9", 0)
    index.close()


def test_file_of_another_format_is_refused(tmp_path):
    item_index.ItemIndex(tmp_path / "items.sqlite").close()
    with sqlite3.connect(tmp_path / "items.sqlite") as connection:
        connection.execute("PRAGMA user_version=9")
    connection.close()
    with pytest.raises(ValueError, match=r"must have format 2\. Received: 9"):
        item_index.ItemIndex(tmp_path / "items.sqlite")
