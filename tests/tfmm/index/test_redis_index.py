"""What the store in Redis adds to the protocol: who may hold it, and what a lost server or writer leaves."""

import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tfmm.index import redis_index, store
from tfmm.index import rows as rows_lib

WRITER = """
import sys
import numpy as np
from tfmm.index import rows, store

with store.open_store(sys.argv[1]) as index:
    while True:
        n = index.position("log") + 1
        two = np.array([n, n + 10**6])
        own = rows.IndexRows(two, np.full([2, 4], n % 100, np.int8), np.ones(2, np.float32), two, np.full(2, n))
        letter = store.DeadLetter("log", n, "bad", b"?")
        tables = [store.TableRows(modality, "v1", own) for modality in ("image", "text")]
        index.apply(store.IndexBatch(tables, dead_letters=[letter], positions={"log": n}))
        print(n, flush=True)
"""


@pytest.fixture
def url(redis_server, tmp_path):
    return redis_server.url(prefix=str(tmp_path))


def write(index, item_id, value, event_time_us=1):
    return index.write("image", "v1", [item_id], np.full([1, 4], value, np.int8), [0.5], [event_time_us])


def verify_whole(index, taken):
    """Holds an index to what `WRITER` had taken, or one batch more that it did not hear of."""
    last = index.position("log")
    assert taken <= last <= taken + 1
    for modality in ("image", "text"):
        found = index.embeddings(modality, "v1")
        assert found.ids.tolist() == [*range(1, last + 1), *range(10**6 + 1, 10**6 + last + 1)]
        assert (found.rows == (found.ids % 10**6 % 100)[:, None]).all()
    assert [letter.position for letter in index.dead_letters()] == list(range(1, last + 1))
    return last


def test_a_server_that_was_killed_has_lost_nothing_and_calls_wait_for_it(make_redis, root):
    server, draw, taken = make_redis(), random.Random(0), 0
    command = [sys.executable, "-c", WRITER, server.url()]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as writer:
        for _ in range(20):
            for _ in range(draw.randrange(1, 12)):
                taken = int(writer.stdout.readline())
            server.kill()
            server.start()
        taken = int(writer.stdout.readline())
        writer.kill()
        taken = max([taken, *map(int, writer.stdout.read().split())])
    with store.open_store(server.url(), create=False) as index:
        verify_whole(index, taken)
    server.kill()


def test_a_writer_that_is_killed_leaves_whole_batches(url, root):
    draw, last = random.Random(0), 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, url], cwd=root, stdout=subprocess.PIPE, text=True
        ) as writer:
            heard = [writer.stdout.readline() for _ in range(draw.randrange(3, 40))]
            writer.kill()
            taken = max(map(int, [*heard, *writer.stdout.read().split()]))
        assert taken > last
        with store.open_store(url, create=False) as index:
            last = verify_whole(index, taken)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--appendonly", "no"], "Received: appendonly is no"),
        (["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], "Received: maxmemory-policy is allkeys-lru"),
    ],
)
def test_a_server_that_forgets_is_refused_unless_it_may(make_redis, options, fault):
    server = make_redis(*options)
    with pytest.raises(ValueError, match=fault):
        store.open_store(server.url())
    with store.open_store(server.url(options="&volatile=1")) as index:
        assert write(index, 1, 5) == 1
    server.kill()


def test_what_a_crash_may_lose_is_said_once(make_redis, caplog):
    url = make_redis("--appendfsync", "everysec").url()
    for _ in range(2):
        store.open_store(url).close()
    assert caplog.text.count("has appendfsync everysec: a crash of its machine may lose a second") == 1


def test_the_password_stands_in_the_url_or_the_environment_and_in_no_error(make_redis, monkeypatch):
    server = make_redis("--requirepass", "hidden")
    with store.open_store(server.url().replace("redis://", "redis://:hidden@")) as index:
        with pytest.raises(ValueError, match=r"redis://:\*\*\*@127") as refusal:
            index.activate("image", "v9")
        assert "hidden" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"user and password, of the URL or REDISCLI_AUTH\. Authentication required"):
        store.open_store(server.url())
    monkeypatch.setenv("REDISCLI_AUTH", "hidden")
    with store.open_store(server.url()) as index:
        assert index.encoders() == []
    server.kill()


def test_options_that_nobody_knows_are_refused(redis_server):
    with pytest.raises(ValueError, match=r"Options of redis://.* must be redis-py's or prefix, volatile: .*'nonsense'"):
        store.open_store(redis_server.url(options="&nonsense=1"))


def test_prefixes_keep_indices_of_one_database_apart(redis_server, tmp_path):
    urls = [redis_server.url(prefix=f"{tmp_path}{name}") for name in "ab"]
    with store.open_store(urls[0]) as first, store.open_store(urls[1]) as second:
        assert (write(first, 1, 5), write(second, 2, 6)) == (1, 1)
        assert first.embeddings("image", "v1").ids.tolist() == [1]
        assert second.embeddings("image", "v1").ids.tolist() == [2]


def test_numbers_beyond_what_scripts_hold_are_refused_before_anything_is_written(url):
    with store.open_store(url) as index:
        assert write(index, 1, 5, 2**53 - 1) == 1
        with pytest.raises(ValueError, match=r"within 2\^53 of 0\. Received: \d+"):
            index.apply(store.IndexBatch(withdrawn=[store.Withdrawal(1, 2**60)]))
        with pytest.raises(ValueError, match=r"position must lie in .* Received: 9223372036854775808"):
            index.apply(store.IndexBatch(positions={"log": 2**63}))
        with pytest.raises(ValueError, match=r"Received: -9223372036854775808"):
            write(index, 2, 5, -(2**63))
        assert index.embeddings("image", "v1").ids.tolist() == [1] and index.position("log") == 0


def test_a_newer_format_is_refused(url):
    with store.open_store(url) as index:
        index._redis.hset(index._key("meta"), "format", "7")
    with pytest.raises(ValueError, match=r"must have format 1 or 2\. Received: 7"):
        store.open_store(url)


def test_a_snapshot_of_many_pages_is_of_one_moment(url, monkeypatch):
    """Two tables change together, so at any moment they hold the same."""
    monkeypatch.setattr(redis_index, "PAGE", 16)
    stop = threading.Event()

    def apply(index, n, count):
        ids = (np.arange(count) + n) % 200 + 1
        own = rows_lib.IndexRows(ids, np.full([count, 4], n % 100, np.int8), np.ones(count, np.float32), ids,
                                 np.full(count, n))  # fmt: skip
        index.apply(store.IndexBatch([store.TableRows(modality, "v1", own) for modality in ("image", "text")]))

    def keep_writing():
        with store.open_store(url) as own:
            n = 1
            while not stop.is_set():
                apply(own, n, 3)
                n += 1
                time.sleep(0.001)

    with store.open_store(url) as index:
        apply(index, 0, 200)
        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            for _ in range(20):
                states = index.snapshot({"image": "v1", "text": "v1"})
                assert states["image"].rows.ids.tolist() == list(range(1, 201))
                assert (states["image"].rows.rows == states["text"].rows.rows).all()
        finally:
            stop.set()
            writer.join()


def test_an_item_that_is_withdrawn_while_a_snapshot_is_read_is_not_in_it(url, monkeypatch):
    monkeypatch.setattr(redis_index, "PAGE", 2)
    with store.open_store(url) as index, store.open_store(url) as other:
        for item_id in range(1, 6):
            write(index, item_id, item_id)
        run, calls = index._changes, []

        def withdrawn_after_the_first_page(**arguments):
            found = run(**arguments)
            if not calls:
                other.withdraw([1], [2])
            calls.append(arguments)
            return found

        monkeypatch.setattr(index, "_changes", withdrawn_after_the_first_page)
        assert index.embeddings("image", "v1").ids.tolist() == [2, 3, 4, 5]
        assert len(calls) > 2
