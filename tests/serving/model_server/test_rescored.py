"""Logged requests scored again offline, while the items that they ranked went on changing."""

import itertools
import threading
import time

import numpy as np
import pytest

from serving import served_log
from serving.model_server.logged import Logs, Recording, changes_table
from serving.model_server.servable import Servable
from tfmm.data import served
from tfmm.evaluate import rescored
from tfmm.export import saved_model
from tfmm.features import STORED

REQUESTS = 100
DIM = 6


@pytest.fixture(scope="module")
def logged(tmp_path_factory, write_click_model):
    """A version, its records and its changes: two threads rank, a third writes vectors and item features."""
    folder = tmp_path_factory.mktemp("rescored")
    version = write_click_model(folder) / "1"
    facts = saved_model.read_manifest(version)
    requests = served_log.Log("served", str(folder / "log"))
    changes = served_log.Log("changes", str(folder / "changes"), table=changes_table)
    servable, logs, ends = Servable("tfmm", 1, str(version)), Logs((requests,), changes), threading.Event()
    written = []  # changes

    def write():
        draw = np.random.default_rng(0)
        for _ in itertools.takewhile(lambda _: not ends.is_set(), itertools.count()):
            for modality, table in (("vector", facts["index"]["vector"]), (STORED, facts["item_features"])):
                Recording(servable, logs, "change").run("upsert_items", {
                    "modality": np.array(modality.encode(), object), "item_ids": draw.integers(100, 145, 3),
                    "rows": draw.integers(-100, 100, [3, table["dim"]]).astype(np.int8),
                    "scales": draw.choice([0.0, 0.004], 3).astype(np.float32),
                    "sequences": np.arange(3) + time.time_ns() // 1000,
                    "encoder_version": np.array(table["encoder_version"].encode(), object),
                })  # fmt: skip
                written.append(modality)
            time.sleep(0.002)

    def rank(start):
        draw = np.random.default_rng(start)
        for number in range(start, start + REQUESTS // 2):
            inputs = {
                "user_id": draw.integers(0, 9, 1), "device": draw.integers(0, 9, 1),
                "clicks_item_id": draw.integers(100, 140, [1, 5]), "clicks_age": np.float32([[9, np.nan, 3, 2, 1]]),
                "item_id": draw.integers(98, 142, number % 7),
            }  # fmt: skip
            while len(written) < number - start and writer.is_alive():  # a state of its own for each, or nearly
                time.sleep(0.001)
            Recording(servable, logs, f"r{number}").run("rank_ids", inputs, ["score"])

    threads = [threading.Thread(target=rank, args=(start,)) for start in (0, REQUESTS // 2)]
    writer = threading.Thread(target=write)
    for thread in (writer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    ends.set()
    writer.join()
    logs.close()
    servable.close()
    records = [one for path in served.files(folder / "log") for one in map(served.parse, served.payloads(path))]
    return version, records, rescored.read_changes(folder / "changes")


def test_scores_are_those_that_were_logged(logged):
    version, records, changes = logged
    found = rescored.rescore(records, version, changes)
    assert len(found.differences) == len(records) == REQUESTS and not found.unknown
    assert found.differences.max() <= 1e-6
    assert len({tuple(sorted(one.index.items())) for one in records}) > 5  # states that were scored


def test_a_state_that_the_changes_do_not_lead_to_is_said(logged):
    version, records, _ = logged
    found = rescored.rescore(records, version, {})
    assert len(found.unknown) + len(found.differences) == REQUESTS and len(found.unknown) > REQUESTS / 2


def test_a_wrong_state_gives_other_scores(logged):
    """What was scored after a change is not what the version scores without it: the bar can be missed."""
    version, records, changes = logged
    shuffled = {
        key: one._replace(rows=np.roll(one.rows, 1, axis=0), scales=np.roll(one.scales, 1))
        for key, one in changes.items()
    }
    assert rescored.rescore(records, version, shuffled).differences.max() > 1e-4
