"""How long does an event wait for a changed score, through Kafka, Redis, Beam, replicator and gRPC, and at what rate?

All as `tfmm demo` starts it, but for the near-line trainer: a broker, a Redis that syncs every write, the streaming job
on FnApiRunner, a server that follows the index. New items' events come at a steady rate, each with a title and a
picture, and the server is asked for every item's score until it differs from that of an unknown twin. Then the rate is
doubled until the backlog grows; what limits it is said by the CPU seconds of each process.
"""

import argparse
import contextlib
import pathlib
import tempfile
import time

import nearline_delay
import numpy as np
import psutil
import recording

from serving import client as client_lib
from serving.demo import delays, figures, machinery
from serving.demo.trained import Trained
from serving.streaming import events
from serving.streaming.kafka_events import KafkaTopic
from tfmm.index import store
from tfmm.marketplace import generator
from tfmm.quickstart import requests
from tfmm.stages import run_file
from tfmm.stages.folders import ID, MULTIMODAL

BAR_P50_S, BAR_P99_S = 0.150, 1.0
DRAWN = 300  # contents, which come again under other ids
WATCHED_PER_S = 20.0  # of a faster stream a part is asked for
APPENDS_PER_S = 50.0  # of a faster stream some events go together
BEHIND_S = 1.0  # of events that may be on their way while a rate counts as sustained
FIRST_ID = 10**9


class Stream:
    """Events at a rate, and what becomes of them.

    Args:
        up: the processes.
        topic: that takes events.
        watch: is told of items.
        run: of the model.
    """

    def __init__(self, up, topic, watch, run):
        self.up, self._topic, self._watch, self._features = up, topic, watch, run.feature_set
        self._index, (self._part,) = store.open_store(up.index), topic.parts()
        self._drawn = [generator.draw_new_item(run.marketplace, number, 1) for number in range(DRAWN)]
        self._contents = [{m.name: item.get(m.content) for m in run.modality_set.known} for item in self._drawn]
        self.sent = self._part.end()

    @property
    def taken(self):
        """How many events the index has."""
        return self._index.position(self._part.name)

    def run(self, per_s, seconds):
        """Sends for some seconds; returns delays, what is behind at the end, and CPU seconds by process."""
        watched_before, cpu = time.monotonic(), self._cpu_s()
        to_index = self._to_index()
        begun, number, together = time.monotonic(), 0, max(1, round(per_s / APPENDS_PER_S))
        while time.monotonic() - begun < seconds:
            time.sleep(max(0.0, begun + number / per_s - time.monotonic()))
            payloads = []
            for _ in range(together):
                payloads.append(self._event(number, is_watched=number % max(1, round(per_s / WATCHED_PER_S)) == 0))
                number += 1
            self._topic.append(payloads)
            self.sent += len(payloads)
        elapsed, behind = time.monotonic() - begun, self.sent - self.taken
        lag = max(figures.samples(self.up.ports.server_metrics)["tfmm_replica_lag_rows"])
        cpu = {name: round(after - cpu[name], 2) for name, after in self._cpu_s().items()}
        self.wait_taken()
        found = self._watch.since(watched_before)
        count, total = self._to_index() - to_index
        return {
            "asked_per_s": per_s, "sent_per_s": number / elapsed, "seconds": elapsed, "behind_at_end": behind,
            "replica_lag_rows": lag, "to_index_mean_s": total / count, "cpu_s": cpu, "watched": len(found),
            "lost": self._watch.lost,
            **{f"p{q}_s": float(np.percentile(found, q)) for q in (50, 90, 99)}, "worst_s": float(found.max()),
        }  # fmt: skip

    def wait_taken(self, timeout_s=120.0):
        """Waits until all events have changed scores."""
        end = time.monotonic() + timeout_s
        while self.taken < self.sent or self._watch.waiting:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.sent - self.taken} events and {self._watch.waiting} scores did not come")
            time.sleep(0.02)

    def _event(self, number, is_watched):
        item_id, place = FIRST_ID + self.sent + number, number % DRAWN
        item = {**self._drawn[place], "item_id": item_id}
        candidate = {name: values[0] for name, values in requests.candidates_of(self._features, [item]).items()}
        given = {feature.column: candidate[feature.name] for feature in self._features.stored}
        if is_watched:
            self._watch.add(candidate, time.monotonic())
        return events.make_event(item_id, contents=self._contents[place], features=given)

    def _to_index(self):
        """Returns how many events the stream took, and the seconds that these waited, all together."""
        found = figures.samples(self.up.ports.stream_metrics)
        return np.array([sum(found.get(f"tfmm_stream_delay_seconds_{name}", [])) for name in ("count", "sum")])

    def _cpu_s(self):
        processes = {child.name: child.process.pid for child in self.up.children} | {"this benchmark": None}
        return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in processes.items()}

    def close(self):
        self._part.close()
        self._index.close()


def is_sustained(found):
    """Whether what was asked for was sent, and no more of it is on its way than arrives in a second."""
    behind = found["behind_at_end"] + found["replica_lag_rows"]
    return found["sent_per_s"] > 0.9 * found["asked_per_s"] and behind <= BEHIND_S * found["sent_per_s"]


def limit_of(found):
    """Returns who used most of the CPU, and the share of a core."""
    name = max(found["cpu_s"], key=found["cpu_s"].get)
    return {"process": name, "cores": found["cpu_s"][name] / found["seconds"],
            "all_cores": sum(found["cpu_s"].values()) / found["seconds"]}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shop", type=pathlib.Path, help="folder that an earlier run prepared (default: a new one)")
    parser.add_argument("--events_per_s", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--ramp_s", type=float, default=15.0, help="of each rate of the ramp")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        shop = options.shop or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (shop / "versions").is_dir():
            shop.mkdir(parents=True, exist_ok=True)
            nearline_delay.prepare(shop, 0)
        work = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = run_file.read(shop / "models")
        (version,) = (shop / "versions").glob("[0-9]*")
        trained = Trained(work, run, shop / "tables", shop / "items.sqlite", shop / "encoders",
                          shop / "models" / MULTIMODAL, shop / "models" / ID, version)  # fmt: skip
        up = stack.enter_context(machinery.running(trained, None, print))
        client = stack.enter_context(client_lib.RankingClient(up.server, model_name=machinery.MODEL_NAME))
        user = requests.busiest_user(trained.tables, run.feature_set, run.data.time_zone)
        watch = delays.ScoreWatch(client, run.feature_set, user)
        watch.start()
        stack.callback(watch.stop)
        stream = stack.enter_context(
            contextlib.closing(Stream(up, stack.enter_context(KafkaTopic(up.topic(machinery.ITEMS))), watch, run))
        )
        stream.run(options.events_per_s, 5.0)  # warm-up
        steady = stream.run(options.events_per_s, options.seconds)
        sustained, per_s, beyond = [steady], 2 * options.events_per_s, None
        while beyond is None:
            found = stream.run(per_s, options.ramp_s)
            if is_sustained(found):
                sustained.append(found)
                per_s *= 2
            else:
                beyond = found
    at = f"at {options.events_per_s:g} events/s for {options.seconds:g} s"
    recording.write("online_delay", __doc__.splitlines()[0], {
        "steady": steady, "ramp": [*sustained[1:], beyond], "sustained_events_per_s": sustained[-1]["sent_per_s"],
        "limited_by": limit_of(beyond),
    }, bars={
        f"event -> changed score, s, p50 {at}": recording.bar(steady["p50_s"], at_most=BAR_P50_S),
        f"event -> changed score, s, p99 {at}": recording.bar(steady["p99_s"], at_most=BAR_P99_S),
        "items whose score never changed": recording.bar(steady["lost"], at_most=0),
    })  # fmt: skip


if __name__ == "__main__":
    main()
