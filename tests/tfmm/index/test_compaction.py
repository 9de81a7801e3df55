"""What compaction frees, and that no reader at any position, nor any rule of withdrawals, sees a difference."""

import threading

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tfmm.index import encode, item_index, store
from tfmm.index import rows as rows_lib

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(["v1", "v2"]), st.integers(1, 5), st.integers(1, 99),
                  st.integers(0, 9)),
        st.tuples(st.just("withdraw"), st.integers(1, 5), st.integers(0, 9)),
        st.tuples(st.just("compact")),
        st.tuples(st.just("look"), st.sampled_from(["v1", "v2"])),
    ),
    max_size=25,
)  # fmt: skip
FEW_EXAMPLES = hypothesis.settings(
    max_examples=20, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, *hypothesis.settings(
        hypothesis.settings.default).suppress_health_check])  # fmt: skip

COMPACTING = pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)  # others may leave it


def write(index, version, item_id, value, time_us, catalog_time_us=None):
    row = np.array([[value, 1]], np.int8)
    own = rows_lib.IndexRows(
        np.array([item_id]), row, encode.scales_of(row), np.zeros(1, np.int64), np.array([time_us])
    )
    catalog = None if catalog_time_us is None else np.array([catalog_time_us])
    return index.apply(store.IndexBatch([store.TableRows("image", version, own, None, catalog)])).rows[0]


def follow(index, version, position, held, limit=2):
    """Brings a reader's dict up to date by changes; returns its position."""
    lag, num_rows = index.lag("image", version, position), 0
    while len(rows := index.changes("image", version, position, limit)):
        for item_id, row, scale, sequence in zip(rows.ids.tolist(), rows.rows, rows.scales, rows.sequences.tolist()):
            assert sequence > position
            position, num_rows = sequence, num_rows + 1
            held.pop(item_id, None)
            if scale:
                held[item_id] = row.tolist()
    assert num_rows == lag and index.lag("image", version, position) == 0
    assert position >= index.last_sequence("image", version)
    return position


def state(index, version):
    found = index.embeddings("image", version)
    return dict(zip(found.ids.tolist(), found.rows.tolist()))


@FEW_EXAMPLES
@hypothesis.given(STEPS)
def test_readers_at_any_position_and_later_writes_see_no_compaction(fresh, steps):
    with fresh() as index, fresh() as plain:
        for one in (index, plain):
            one.register_encoder("image", "v1", 2)
        readers = []  # (version, position, what it holds)
        for kind, *values in steps:
            if kind == "write":
                assert write(index, *values) == write(plain, *values)
            elif kind == "withdraw":
                for one in (index, plain):
                    one.withdraw(*([value] for value in values))
            elif kind == "compact":
                index.compact()
            elif index.has_encoder("image", values[0]):
                held = {}
                readers.append((values[0], follow(index, values[0], 0, held), held))
        for version in [entry.encoder_version for entry in index.encoders()]:
            assert state(index, version) == state(plain, version)
            assert index.live_ids("image", version).tolist() == list(state(plain, version))
            assert index.last_sequence("image", version) == index.snapshot({"image": version})["image"].watermark
            readers.append((version, 0, {}))
        for version, position, held in readers:
            follow(index, version, position, held)
            assert held == state(plain, version)


@COMPACTING
def test_rows_of_withdrawn_items_give_their_space_back(url, index):
    items = range(1, 3001)
    for version in ("v1", "v2"):
        rows = np.random.default_rng(0).integers(-127, 128, (len(items), 128)).astype(np.int8)
        index.write("image", version, items, rows, encode.scales_of(rows), [1] * len(items))
    index.withdraw(items, [2] * len(items))
    before, position = index.size(), index.last_sequence("image", "v1")
    done = index.compact()
    assert done == (6000, 0) and index.compact() == (0, 0)
    assert index.size().total_bytes < 0.3 * before.total_bytes and index.size().free_bytes == 0
    with store.open_store(url) as other:
        assert other.lag("image", "v1", 0) == 3000  # a reader of before hears of each
        assert not other.changes("image", "v1", 0, 5000).scales.any()
    index.register_encoder("image", "v3", 2)
    assert index.lag("image", "v3", 0) == 0  # whose servers never had these items
    assert index.last_sequence("image", "v1") >= position


@COMPACTING
def test_what_is_forgotten_gives_its_space_back(index):
    rows = np.random.default_rng(0).integers(-127, 128, (3000, 128)).astype(np.int8)
    for version in ("v1", "v2"):
        index.write("image", version, range(1, 3001), rows, encode.scales_of(rows), [1] * 3000)
    before = index.size()
    index.forget("image", "v1")
    index.compact()
    assert index.size().total_bytes < 0.7 * before.total_bytes
    assert len(index.embeddings("image", "v2")) == 3000


def test_withdrawn_items_stay_so_whatever_the_catalog_says_of_them_later(index):
    write(index, "v1", 7, 1, 1, catalog_time_us=100)
    index.withdraw([7], [50])
    index.compact()
    for value in (2, 3, 3):
        assert write(index, "v1", 7, value, 1, catalog_time_us=200 + value) == 0
    index.register_encoder("image", "v2", 2)  # that has never had the item
    for value in (2, 3, 3):
        assert write(index, "v2", 7, value, 1, catalog_time_us=200 + value) == 0
    assert not state(index, "v1") and not state(index, "v2")
    assert write(index, "v1", 7, 5, 51) == 1  # an event that is newer


@COMPACTING
def test_the_newest_dead_letters_of_each_source_stay(index):
    letters = [store.DeadLetter(source, n, "bad", b"?") for source in ("a", "b") for n in range(1, 11)]
    index.apply(store.IndexBatch(dead_letters=[*letters, store.DeadLetter("c", 1, "bad", None)]))
    index.apply(store.IndexBatch(positions={"a": 10, "b": 12}))
    assert index.letter_counts() == {"a": 10, "b": 10, "c": 1}
    index.compact()
    assert len(index.dead_letters()) == 21
    assert index.positions() == {"a": 10, "b": 12}
    assert index.compact(keep_letters=3) == (0, 14)
    assert [letter[:2] for letter in index.dead_letters()] == [
        *(("a", n) for n in (8, 9, 10)), *(("b", n) for n in (8, 9, 10)), ("c", 1)]  # fmt: skip
    assert index.compact(keep_letters=0) == (0, 7) and index.letter_counts() == {}


def test_readers_and_writers_go_on_while_it_compacts(index, url):
    index.register_encoder("image", "v1", 2)
    faults, held, done = [], {}, threading.Event()

    def guarded(work):
        try:
            work()
        except Exception as error:
            faults.append(error)

    def writes(worker):
        draw = np.random.default_rng(worker)
        with store.open_store(url) as own:
            for n in range(1, 121):
                item = int(draw.integers(1, 40))
                if draw.random() < 0.4:
                    own.withdraw([item], [n])
                else:
                    write(own, "v1", item, worker * 20 + n % 20 + 1, n)

    def reads():
        position = 0
        with store.open_store(url) as own:
            is_last = False
            while not is_last:
                is_last = done.is_set()
                while len(rows := own.changes("image", "v1", position, 7)):
                    position = int(rows.sequences[-1])
                    for item_id, row, scale in zip(rows.ids.tolist(), rows.rows, rows.scales):
                        held.pop(item_id, None)
                        if scale:
                            held[item_id] = row.tolist()

    def compacts():
        with store.open_store(url) as own:
            while not done.is_set():
                own.compact(0)

    writers = [threading.Thread(target=guarded, args=(lambda worker=worker: writes(worker),)) for worker in range(3)]
    others = [threading.Thread(target=guarded, args=(work,)) for work in (reads, compacts)]
    for thread in [*writers, *others]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    assert not faults
    assert held == state(index, "v1")


def test_file_of_an_earlier_tfmm_keeps_its_space_for_later_rows(tmp_path):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        index._database.execute("PRAGMA auto_vacuum=NONE")
        index._database.execute("VACUUM")
        rows = np.ones((2000, 128), np.int8)
        index.write("image", "v1", range(1, 2001), rows, encode.scales_of(rows), [1] * 2000)
        index.withdraw(range(1, 2001), [2] * 2000)
        assert index.compact() == (2000, 0)
        assert index.size().free_bytes > 0.5 * index.size().total_bytes
