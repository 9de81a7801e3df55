"""Servers in processes of their own that are stopped, ended or killed while clients ask: no call fails for it."""

import asyncio
import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfmm_client import AsyncRankingClient, DeadlineExceeded, RankingClient, replicas

USER, ITEMS = {"user_id": 1}, {"item_id": [3, 4]}
KINDS = ("rank", "rank_rest", "asyncio")  # of callers


@pytest.fixture(scope="module")
def survivor(serving_at, write_ranker, tmp_path_factory):
    """Addresses of a server that stays, whose scores tell that it is 0."""
    folder = tmp_path_factory.mktemp("survivor")
    write_ranker(folder / "1")
    with serving_at(folder, "tfmm") as addresses:
        yield addresses["grpc"], addresses["rest"]


@pytest.fixture(scope="module")
def victim(root, write_ranker, tmp_path_factory):
    """A process that serves, whose scores tell that it is 1, and its addresses."""
    folder = tmp_path_factory.mktemp("victim")
    write_ranker(folder / "tfmm" / "1", offset=100.0)
    flags = ["--model_name=tfmm", f"--model_base_path={folder / 'tfmm'}", "--port=0", "--rest_api_port=0"]
    ready = folder / "ready.json"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.model_server", *flags, f"--ready_file={ready}"],
            cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 500
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        ports = json.loads(ready.read_text())
        yield process, f"127.0.0.1:{ports['grpc_port']}", f"http://127.0.0.1:{ports['rest_port']}"
    finally:
        process.kill()
        process.wait()


class Load:
    """Callers of every kind, who ask until they are told to stop."""

    def __init__(self, targets, urls):
        self._targets, self._urls = targets, urls
        self.failures, self.seen, self._done = [], {}, threading.Event()
        self._rounds = collections.Counter()  # by kind: of a call, or of several at once
        kinds = [lambda: self._ask("rank"), lambda: self._ask("rank_rest"), lambda: asyncio.run(self._await())]
        self._threads = [threading.Thread(target=kind) for kind in kinds]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, wanted):
        """Waits until each caller got an answer of each of the wanted servers, and no other, to calls made from now."""
        before = self._rounds.copy()
        self._until(lambda: all(self._rounds[kind] > before[kind] for kind in KINDS))  # what was under way is over
        self.seen.clear()
        wanted_by_all = dict.fromkeys(KINDS, wanted)
        self._until(lambda: {kind: set(seen) for kind, seen in list(self.seen.items())} == wanted_by_all)

    def _until(self, condition):
        while not condition():
            assert not self.failures, self.failures[:3]
            self._done.wait(0.02)

    def _note(self, kind, scores):
        self.seen.setdefault(kind, set()).add(int(scores[0]) // 100)

    def _ask(self, way):
        with RankingClient(self._targets, self._urls, timeout_s=60) as client:
            while not self._done.is_set():
                try:
                    self._note(way, getattr(client, way)(USER, ITEMS))
                except Exception as error:
                    self.failures.append((way, error))
                self._rounds[way] += 1

    async def _await(self):
        async with AsyncRankingClient(self._targets, self._urls, timeout_s=60) as client:
            while not self._done.is_set():
                calls = [client.rank(USER, ITEMS) for _ in range(4)]
                for found in await asyncio.gather(*calls, return_exceptions=True):
                    if isinstance(found, Exception):
                        self.failures.append(("asyncio", found))
                    else:
                        self._note("asyncio", found)
                self._rounds["asyncio"] += 1


@pytest.mark.parametrize("way", ["rank", "rank_rest"])
def test_replica_that_hangs_costs_at_most_its_deadline(survivor, victim, way, monkeypatch):
    """Its turn comes once; then it rests, and the others answer."""
    monkeypatch.setattr(replicas, "RESTS_S", 600.0)  # however long the calls of this test take
    process, *hung = victim
    with RankingClient(*map(list, zip(survivor, hung)), timeout_s=60) as client:
        rank = getattr(client, way)
        assert {int(rank(USER, ITEMS)[0]) // 100 for _ in range(2)} == {0, 1}
        process.send_signal(signal.SIGSTOP)
        try:
            late, seen = 0, []
            for _ in range(6):
                try:
                    seen.append(rank(USER, ITEMS, timeout_s=10.0).tolist())
                except DeadlineExceeded:
                    late += 1
        finally:
            process.send_signal(signal.SIGCONT)
    assert late == 1 and seen == [[3, 4]] * 5


def test_replica_that_is_ended_or_killed_under_load_costs_no_call(
    survivor, victim, serving_at, write_ranker, tmp_path
):
    process, *killed = victim
    write_ranker(tmp_path / "1", offset=200.0)
    with contextlib.ExitStack() as ended:
        addresses = ended.enter_context(serving_at(tmp_path, "tfmm"))
        targets, urls = zip(survivor, killed, (addresses["grpc"], addresses["rest"]))
        with Load(targets, urls) as load:
            load.wait_for({0, 1, 2})
            ended.close()
            load.wait_for({0, 1})
            process.kill()
            process.wait()
            load.wait_for({0})
            time.sleep(0.5)
    assert not load.failures, load.failures[:3]
