"""What every index store must do, against a dict; a new store joins by a line in STORES."""

import dataclasses
import itertools
import subprocess
import sys
import threading
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tfmm.index import beam, encode, item_index, snapshot, store
from tfmm.index import rows as rows_lib

WRITES = st.lists(
    st.tuples(
        st.sampled_from(["image", "text"]),
        st.sampled_from(["v1", "v2"]),
        st.lists(st.tuples(st.integers(1, 4), st.integers(-127, 127), st.integers(0, 3)), max_size=4),
    ),
    max_size=8,
)
EACH_EXAMPLE = hypothesis.settings(
    max_examples=20, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, *hypothesis.settings(
        hypothesis.settings.default).suppress_health_check])  # fmt: skip


def as_arrays(entries):
    ids, values, times = (list(column) for column in zip(*entries)) if entries else ([], [], [])
    rows = np.array([[value, 1] for value in values], np.int8).reshape(-1, 2)
    return ids, rows, encode.scales_of(rows), times


def as_table(modality, version, entries):
    ids, rows, scales, times = as_arrays(entries)
    ids, times, unknown = np.array(ids, np.int64), np.array(times, np.int64), np.zeros(len(ids), np.int64)
    return store.TableRows(modality, version, rows_lib.IndexRows(ids, rows, scales, unknown, times))


@EACH_EXAMPLE
@hypothesis.given(WRITES)
def test_a_store_is_a_dict_where_the_newest_event_wins(fresh, writes):
    model = {}
    with fresh() as index:
        for modality, version, entries in writes:
            expected = 0
            for item_id, value, event_time in entries:
                old = model.get((modality, version, item_id))
                if old is None or event_time >= old[1]:
                    expected += old is None or old[0] != value
                    model[modality, version, item_id] = (value, event_time)
            assert index.write(modality, version, *as_arrays(entries)) == expected
        seen = []
        for entry in index.encoders():
            key = entry.modality, entry.encoder_version
            wanted = {item_id: value for (*own, item_id), (value, _) in model.items() if tuple(own) == key}
            found = index.embeddings(*key)
            assert dict(zip(found.ids.tolist(), found.rows[:, 0].tolist())) == wanted
            assert found.ids.tolist() == sorted(wanted)
            changes = index.changes(*key, 0)
            assert dict(zip(changes.ids.tolist(), changes.rows[:, 0].tolist())) == wanted
            assert (np.diff(changes.sequences) > 0).all()
            assert index.last_sequence(*key) == (changes.sequences[-1] if wanted else 0)
            seen += changes.sequences.tolist()
        assert len(seen) == len(set(seen))


@EACH_EXAMPLE
@hypothesis.given(WRITES, st.integers(1, 3))
def test_a_reader_that_follows_the_changes_has_the_state(fresh, writes, limit):
    state, watermark = {}, 0
    with fresh() as index:
        for _, _, entries in writes:
            index.write("image", "v1", *as_arrays(entries))
            while len(rows := index.changes("image", "v1", watermark, limit)):
                state |= dict(zip(rows.ids.tolist(), rows.rows.tolist()))
                watermark = int(rows.sequences[-1])
            found = index.embeddings("image", "v1")
            assert state == dict(zip(found.ids.tolist(), found.rows.tolist()))
            assert index.lag("image", "v1", watermark) == 0


def test_a_batch_takes_effect_as_a_whole(index):
    batch = store.IndexBatch(
        rows=[as_table("image", "v1", [(1, 5, 1), (2, 6, 1)]), as_table("text", "v1", [(1, 7, 1)])],
        withdrawn=[store.Withdrawal(2, 1)],  # rows come first, so of the same time the withdrawal wins
        dead_letters=[store.DeadLetter("log", 3, "not JSON", b"?")],
        positions={"log": 4},
    )
    assert index.apply(batch) == store.Applied((2, 1), 2)  # item 2 leaves image, and is kept out of text
    assert index.embeddings("image", "v1").ids.tolist() == [1]
    assert (index.position("log"), index.dead_letters()) == (4, [("log", 3, "not JSON", b"?")])
    assert index.apply(batch) == store.Applied((0, 0), 0)  # again: harmless
    assert (index.position("log"), len(index.dead_letters())) == (4, 1)


def test_a_batch_that_fails_leaves_nothing(index):
    index.register_encoder("image", "v1", 3)
    bad = [as_table("text", "v1", [(1, 5, 1)]), as_table("image", "v1", [(1, 5, 1)])]  # images have 3 values
    letters = [store.DeadLetter("log", 1, "bad", None)]
    with pytest.raises(ValueError, match=r"`dim`.* must be 3"):
        index.apply(store.IndexBatch(bad, [store.Withdrawal(9, 9)], letters, {"log": 1}))
    assert index.position("log") == 0 and index.dead_letters() == []
    assert [entry.modality for entry in index.encoders()] == ["image"]
    assert index.write("text", "v1", *as_arrays([(9, 5, 1)])) == 1  # not withdrawn


def test_writing_twice_takes_no_sequence_number(index):
    assert index.write("image", "v1", *as_arrays([(1, 5, 0), (2, 6, 0)])) == 2
    before = index.last_sequence("image", "v1")
    assert index.write("image", "v1", *as_arrays([(1, 5, 0), (2, 6, 9)])) == 0  # confirmed later
    assert index.last_sequence("image", "v1") == before
    assert index.write("image", "v1", *as_arrays([(2, 7, 8)])) == 0  # older than the confirmation


def test_a_withdrawn_item_stays_withdrawn_until_a_newer_event(index):
    index.write("image", "v1", *as_arrays([(1, 5, 1), (2, 5, 1)]))
    index.write("text", "v1", *as_arrays([(1, 5, 1)]))
    before = index.last_sequence("image", "v1")
    assert index.withdraw([1], [3]) == 2
    assert index.embeddings("image", "v1").ids.tolist() == [2]
    assert index.changes("image", "v1", before).scales.tolist() == [0.0]
    assert index.write("image", "v1", *as_arrays([(1, 5, 2)])) == 0
    assert index.write("image", "v1", *as_arrays([(1, 5, 4)])) == 1
    assert index.embeddings("image", "v1").ids.tolist() == [1, 2]


def test_a_withdrawn_item_stays_withdrawn_with_a_later_encoder(index):
    index.write("image", "v1", *as_arrays([(1, 5, 1)]))
    index.withdraw([1, 2], [3, 3])  # 2 was never there
    index.withdraw([1], [2])  # an older event that comes late
    assert index.write("image", "v2", *as_arrays([(1, 6, 1), (1, 6, 3), (2, 6, 3), (3, 6, 0)])) == 1
    assert index.embeddings("image", "v2").ids.tolist() == [3]
    assert index.write("image", "v2", *as_arrays([(1, 6, 3), (2, 6, 4)])) == 1
    assert index.embeddings("image", "v2").ids.tolist() == [2, 3]
    assert index.withdraw([2], [4]) == 1  # in v2: it never came back in v1
    assert index.withdraw([2], [4]) == 0
    assert index.embeddings("image", "v2").ids.tolist() == [3]


def test_encoders_stand_side_by_side_until_forgotten(index):
    index.write("image", "v1", *as_arrays([(1, 5, 1)]))
    index.register_encoder("image", "v2", 3)
    assert index.active_encoders()["image"].encoder_version == "v1"
    index.activate("image", "v2")
    assert index.active_encoders()["image"] == store.EncoderEntry("image", "v2", 3, True)
    assert len(index.embeddings("image", "v1")) == 1
    assert index.forget("image", "v1") == 1
    assert [entry.encoder_version for entry in index.encoders()] == ["v2"]
    for call in (index.activate, index.forget, index.embeddings, lambda *key: index.changes(*key, 0)):
        with pytest.raises(ValueError, match=r"one of \[\('image', 'v2'\)\]"):
            call("image", "v1")


def test_values_that_are_not_given_stay_as_they_are(index):
    """So an event that brings a price leaves the brand; of a new or withdrawn item nothing stays."""
    layout = '{"features": [], "id_types": {}}'
    index.register_encoder("item_features", "f1", 2, layout)
    own = as_table("item_features", "f1", [(1, 5, 1), (2, 7, 3)])
    index.apply(store.IndexBatch([own]))
    first = np.array([[True, False]] * 3)
    rows = rows_lib.IndexRows(np.array([1, 2, 3]), np.full([3, 2], 9, np.int8), np.ones(3, np.float32),
                              np.zeros(3, np.int64), np.array([2, 2, 2]))  # fmt: skip
    assert index.apply(store.IndexBatch([store.TableRows("item_features", "f1", rows, first)])).rows == (2,)
    assert index.embeddings("item_features", "f1").rows.tolist() == [[9, 1], [7, 1], [9, 9]]  # 2: the event is older
    index.withdraw([1], [3])
    parts = (rows.ids, rows.rows, rows.scales, rows.sequences)
    later = rows_lib.IndexRows(*(part[:1] for part in parts), np.array([4]))
    index.apply(store.IndexBatch([store.TableRows("item_features", "f1", later, first[:1])]))
    assert index.embeddings("item_features", "f1").rows[0].tolist() == [9, 9]
    with pytest.raises(ValueError, match=r"`given` must be bool \(1, 2\)"):
        store.TableRows("item_features", "f1", later, first)


def test_a_layout_of_features_stands_among_the_encoders_but_is_none(index):
    index.write("image", "v1", *as_arrays([(1, 5, 1)]))
    assert index.active_features() is None
    for version in ("f1", "f2"):
        index.register_encoder("item_features", version, 2000, version)  # not held to what dots need
    index.activate("item_features", "f2")
    assert index.active_features() == store.EncoderEntry("item_features", "f2", 2000, True, "f2")
    assert list(index.active_encoders()) == ["image"] and len(index.encoders()) == 3


def test_a_snapshot_is_of_all_tables_at_one_moment(index):
    stop = threading.Event()

    def write():
        for n in itertools.count(1):
            tables = [as_table(modality, "v1", [(1, n % 100, n)]) for modality in ("image", "text")]
            index.apply(store.IndexBatch(rows=tables))
            if stop.is_set():
                return

    index.apply(store.IndexBatch(rows=[as_table(modality, "v1", [(1, 0, 0)]) for modality in ("image", "text")]))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            states = index.snapshot({"image": "v1", "text": "v1"})
            assert states["image"].rows.rows.tolist() == states["text"].rows.rows.tolist()
            assert states["image"].watermark == states["text"].watermark - 1
    finally:
        stop.set()
        writer.join()


def test_a_position_never_goes_back(index):
    for last, positions in ((5, (5, 3)), (10, (10, 9)), (2**63 - 1, (2**63 - 1, 2**63 - 2, 10))):
        for position in positions:
            index.apply(store.IndexBatch(positions={"log": position}))
        assert (index.position("log"), index.position("other")) == (last, 0)


def test_ids_keep_their_types(index):
    assert index.id_types() == {}
    index.keep_id_types({"item_id": "string", "category": "int64"})
    index.keep_id_types({"category": "int64"})
    with pytest.raises(ValueError, match=r"`category` of the catalog must be int64.*Received: string"):
        index.keep_id_types({"brand": "string", "category": "string"})
    assert index.id_types() == {"item_id": "string", "category": "int64"}


def test_what_is_older_than_the_store_knows_is_named(index):
    index.write("image", "v1", *as_arrays([(1, 5, 3), (2, 5, 3), (3, 5, 3)]))
    index.withdraw([3], [9])
    table = as_table("image", "v1", [(1, 6, 2), (2, 6, 3), (3, 6, 8), (4, 6, 1)])
    assert index.apply(store.IndexBatch([table])) == store.Applied((2,), 0, (1, 3))


def test_what_the_catalog_says_counts_from_when_it_says_something_else(index):
    """See `TableRows.catalog_times_us`: the first word of an item is no news, and a withdrawn one stays so."""

    def say(value, catalog_time, item_id=1, event_time=1):
        own = as_table("image", "v1", [(item_id, value, event_time)])
        told = dataclasses.replace(own, catalog_times_us=np.array([catalog_time]))
        return index.apply(store.IndexBatch([told])).rows

    assert say(5, 100) == (1,)
    assert index.write("image", "v1", *as_arrays([(1, 7, 50)])) == 1  # an event
    assert say(5, 200) == (0,)  # the same as before: the event stays
    assert say(6, 300) == (1,)  # corrected
    assert index.write("image", "v1", *as_arrays([(1, 7, 299)])) == 0
    index.withdraw([1], [400])
    assert say(8, 500) == (0,)
    assert index.embeddings("image", "v1").ids.tolist() == []


def test_dead_letters_always_fit(index):
    payload = bytes(store.MAX_LETTER_BYTES) + b"end"
    letters = [
        store.DeadLetter("log", 1, "half \ud800, NUL \0, " + "a" * 10**6, payload),
        store.DeadLetter("log", 2, "\ud800" * 10**6, b"\xff"),
        store.DeadLetter("other", 1, "no content", None),
    ]
    index.apply(store.IndexBatch(dead_letters=letters))
    (_, _, reason, kept), (_, _, surrogates, _) = index.dead_letters("log")
    assert reason.startswith(r"half \ud800, NUL \x00, aaa") and len(reason) == len(surrogates) == 1000
    assert kept == payload[: 1 << 24] and surrogates.startswith(r"\ud800\ud800")
    assert index.dead_letters()[2] == ("other", 1, "no content", None)


def test_threads_and_connections_share_one_sequence(index, url):
    def write(worker):
        own = index if worker % 2 else store.open_store(url)
        for n in range(10):
            own.write("image", "v1", *as_arrays([(worker * 100 + n + 1, n, 1)]))
        if own is not index:
            own.close()

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    seen, watermark = [], 0
    for thread in threads:
        thread.start()
    while len(seen) < 40:
        if index.has_encoder("image", "v1"):
            rows = index.changes("image", "v1", watermark, 7)
            seen += rows.ids.tolist()
            watermark = max([watermark, *rows.sequences.tolist()])
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(worker * 100 + n + 1 for worker in range(4) for n in range(10))
    assert np.ptp(index.changes("image", "v1", 0).sequences) == 39


def test_another_process_opens_it_by_its_url(index, root):
    index.write("image", "v1", *as_arrays([(1, 5, 1)]))
    program = (
        "import sys, numpy as np\nfrom tfmm.index import store\n"
        "with store.open_store(sys.argv[1], create=False) as index:\n"
        "    index.write('image', 'v1', [2], np.ones([1, 2], np.int8), [0.5], [1])\n"
    )
    subprocess.run([sys.executable, "-c", program, index.url], cwd=root, check=True)
    assert index.embeddings("image", "v1").ids.tolist() == [1, 2]


def test_newest_sequence_is_of_all_encoders_and_never_before_a_change(index):
    birth = index.newest_sequence()
    assert birth > 0
    for version in ("v1", "v2"):
        index.write("image", version, *as_arrays([(1, 5, 1), (2, 5, 1)]))
        assert index.newest_sequence() == index.last_sequence("image", version) > birth
    assert index.last_sequence("image", "v1") < index.newest_sequence()


def test_a_later_store_has_larger_sequence_numbers(fresh):
    last = 0
    for _ in range(2):
        with fresh() as index:
            index.write("image", "v1", *as_arrays([(1, 5, 1), (2, 5, 1)]))
            assert index.changes("image", "v1", 0).sequences[0] > last
            last = index.last_sequence("image", "v1")
        time.sleep(1.0)  # births are told apart by the second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], np.ones([1, 2], np.int8), [1], [1]), "must not hold 0"),
        (([1], np.ones([1, 2], np.float32), [1], [1]), "must be int8"),
        (([1, 2], np.ones([1, 2], np.int8), [1], [1]), "Received: int8"),
        (([1], np.ones([1, 3], np.int8), [1], [1]), "must be 2, as its rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(index, arguments, message):
    index.register_encoder("image", "v1", 2)
    with pytest.raises(ValueError, match=message) as refusal:
        index.write("image", "v1", *arguments)
    assert not index.is_failing(refusal.value)
    for dim in (0, 1041):
        with pytest.raises(ValueError, match=r"in 1\.\.1040"):
            index.register_encoder("image", "v2", dim)


def test_the_catalog_is_embedded_into_it(catalog, encoder_dirs, url, index):
    counts = beam.embed_catalog(catalog, encoder_dirs, url)
    assert counts["text"]["changed"] == 10
    assert len(snapshot.take_snapshot(index)["text"]) == 10


def test_no_store_is_made_where_none_is_wanted(url):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        store.open_store(url, create=False)


def test_an_unknown_scheme_is_refused_with_those_that_are_known(own_store):
    with pytest.raises(ValueError, match=r"one of \['pickled', 'redis', 'rediss', 'sqlite'\]\. Received: 'mongodb'"):
        store.open_store("mongodb://localhost")
    with pytest.raises(ValueError, match=r"in 'mongodb://me:\*\*\*@localhost'\."):
        store.open_store("mongodb://me:secret@localhost")


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}"])
@pytest.mark.parametrize("is_relative", [False, True])
def test_a_sqlite_file_is_named_by_path_or_url(form, is_relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = "run/items.sqlite" if is_relative else tmp_path / "run" / "items.sqlite"
    with store.open_store(form.format(place)) as index:
        assert isinstance(index, item_index.ItemIndex) and index.url == f"sqlite:///{place}"
    assert (tmp_path / "run" / "items.sqlite").is_file()
