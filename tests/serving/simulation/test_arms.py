"""An arm tells what it showed in time however slow its server is, and a lost impression ends the simulation at once."""

import contextlib
import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from serving import metrics
from serving.demo import figures
from serving.deploy import started
from serving.nearline import joining
from serving.nearline.metrics import Metrics
from serving.simulation import arms
from serving.simulation.world import World
from serving.streaming import event_log
from tfmm import artifacts, presets
from tfmm.config import MarketplaceConfig
from tfmm.export.saved_model import EXTRA
from tfmm.marketplace import generator
from tfmm.stages.folders import SERVING

TINY = MarketplaceConfig(
    num_items=60, new_items_per_day=30, num_users=25, num_days=2, impressions_per_user_day=4, num_searches=40,
    image_size=16,
)  # fmt: skip
RUN = dataclasses.replace(presets.small(), marketplace=TINY)
NOW_S = 1_709_596_800.0


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A process that answers is waited for; one that does not refuses."""
    monkeypatch.setattr(figures, "_TIMEOUT_S", 60.0)


class Idle(arms.Processes):
    """Starts nothing."""

    def start(self, name, *arguments):
        pass


class SlowServer:
    """Takes its time to answer."""

    def rank(self, user, columns, request_id):
        self.asked_at = time.time()
        time.sleep(0.05)
        return np.linspace(0.5, 0.4, len(columns["item_id"]), dtype=np.float32)


def test_what_was_shown_counts_from_before_the_request_so_that_a_slow_answer_costs_no_label(tmp_path):
    generator.generate(TINY, tmp_path / "tables")
    world = World(RUN, tmp_path / "tables", 0, 32)
    world.arrive(0)
    artifacts.write_manifest(tmp_path / "model" / SERVING / EXTRA, "saved_model", index={})
    (tmp_path / "id").mkdir()
    with contextlib.ExitStack() as stack:
        running = Idle(stack, [], tmp_path, threading.Event())
        rules = arms.Rules(8, 512, 256)
        arm = arms.Arm("id", tmp_path / "model", "", RUN, world, rules, running, started.free_ports(3))
        arm._client = server = SlowServer()
        arm.serve(world.visit(0, 1))
        told = [json.loads(event.payload) for event in arm._labels.read(0, 100)]
    assert len(told) == len(arm.shown) == 8 and {one["item_id"] for one in told} == {one.item_id for one in arm.shown}
    assert all(one["time"] <= server.asked_at for one in told)


def request(at_s):
    return {"request_id": "a", "time": at_s, "model": "id", "version": 1, "encoders": {}, "index": {},
            "features": {"user_id": 7}, "items": [1, 2], "scores": [0.2, 0.1]}  # fmt: skip


def joined(*found, advance_s):
    """Returns the trainer's join of an arm after records, and the clock that far on before each of them."""
    join = joining.Join(joining.Rules("label", int(arms.WINDOW_S * 1e6), int(arms.LATENESS_S * 1e6)))
    for number, (one, now_s) in enumerate(zip(found, advance_s), 1):
        join.advance(int((now_s - arms.LATENESS_S) * 1e6))
        join.add("log", event_log.Event(number, json.dumps(one).encode()))
    return join


@pytest.mark.parametrize(("late_s", "lost"), [(12.0, ""), (14.0, "1 late_labels")])
def test_an_impression_that_comes_too_late_for_the_trainer_ends_the_simulation_with_the_way_out(late_s, lost, tmp_path):
    now, shown = NOW_S, {"request_id": "a", "item_id": 1, "time": NOW_S - 0.5, "shown": True}
    join, told = joined(request(now), shown, advance_s=(now, now + late_s)), Metrics()
    told.show(join, {})
    with metrics.served(told.registry, 0, started.HOST) as port:
        if not lost:
            arms.require_none_lost("id", port, tmp_path)
            return
        said = rf"The trainer of id must take every impression within 13 s. Received: {lost}. Run it again with less"
        with pytest.raises(RuntimeError, match=said):
            arms.require_none_lost("id", port, tmp_path)


def test_records_that_the_trainer_refuses_end_it_too_and_one_that_does_not_answer_now_does_not(tmp_path):
    join, told = joined({"request_id": 3}, advance_s=(NOW_S,)), Metrics()
    told.show(join, {})
    with metrics.served(told.registry, 0, started.HOST) as port:
        with pytest.raises(RuntimeError, match=r"1 dead_letters\..* stand in \S*dead_letters"):
            arms.require_none_lost("id", port, tmp_path)
    assert figures.page(port) == ""
    arms.require_none_lost("id", port, tmp_path)
