"""How long does an event wait for its vector in the index, through Kafka and Redis, on each engine of the stream?

The same job in one process on Beam's FnApiRunner and on a Flink cluster of two task managers with three slots, over a
topic of several partitions: events at a steady rate, each from before its append to the row that a reader of the index
sees; then a burst, whose rate is what the job can take for long. Broker, Redis (append-only file, synced always) and
cluster are processes of this machine, each side by itself, and up before the clock starts.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import new_item_delay
import recording

from serving.deploy import started
from serving.deploy.flink import cluster as flink
from serving.deploy.kafka import broker as kafka
from serving.streaming import event_log, events
from tfmm import beam as beam_lib
from tfmm.index import encode, store

SIDES = ("FnApiRunner", "Flink")
SLOTS = (1, 2)
BARS_S = {"p50": 0.150, "p99": 1.0}  # of the whole road to a changed score, on FnApiRunner


class Watched(threading.Thread):
    """Notes when a reader of the index first sees each item."""

    def __init__(self, url, version):
        super().__init__(daemon=True)
        self.seen, self._version, self._url = {}, version, url
        self._ended = threading.Event()

    def run(self):
        after = 0
        with store.open_store(self._url) as index:
            while not self._ended.is_set():
                rows = index.changes("text", self._version, after)
                now = time.perf_counter()
                self.seen.update((item, now) for item in rows.ids.tolist() if item not in self.seen)
                after = int(rows.sequences[-1]) if len(rows.ids) else after
                time.sleep(0.002)

    def end(self):
        self._ended.set()
        self.join()


@contextlib.contextmanager
def redis(folder):
    (port,) = started.free_ports(1)
    words = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    words += ["--appendonly", "yes", "--appendfsync", "always"]
    with subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL) as process:
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def await_all(seen, items, timeout_s=600.0):
    end = time.monotonic() + timeout_s
    while not seen.keys() >= items:
        if time.monotonic() > end:
            raise TimeoutError(f"{len(items - seen.keys())} events did not come into the index")
        time.sleep(0.01)


def measure(options, folder, side, stack):
    """Returns the delays of events at a steady rate, in seconds, and the events per second of a burst."""
    beam_words = ""
    if side == "Flink":
        cluster = flink.Cluster(folder / "flink")
        cluster.up(SLOTS, jars=flink.FOLDER / "lib")
        stack.callback(cluster.down)
        beam_words = " ".join(cluster.beam_options)
    broker = kafka.Broker(folder / "kafka")
    broker.up(jars=kafka.FOLDER / "lib")
    stack.callback(broker.down)
    kafka.make_topic(broker.address, "items", options.partitions)
    events_url, index_url = f"kafka://{broker.address}/items", stack.enter_context(redis(folder))
    version = encode.load_encoder(folder.parent / "encoders" / "text").version
    job = subprocess.Popen(
        [sys.executable, "-m", "serving.streaming", "--events", events_url, "--index", index_url,
         "--encoders", str(folder.parent / "encoders"), "--ready-file", str(folder / "ready")],
        stderr=(folder / "log").open("ab"), env={**os.environ, beam_lib.VARIABLE: beam_words},
    )  # fmt: skip
    stack.callback(job.wait)
    stack.callback(job.send_signal, signal.SIGTERM)
    end = time.monotonic() + 300
    while not (folder / "ready").exists():
        if job.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the job did not begin: {(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.1)
    watched = Watched(index_url, version)
    with store.open_store(index_url) as index:
        index.register_encoder("text", version, new_item_delay.DIM)
    watched.start()
    sent = {}
    with event_log.open_source(events_url) as log:
        for number in range(1, options.warm_ups + 1):
            log.append([events.make_event(10**6 + number, title="a shoe")])
        await_all(watched.seen, {10**6 + number for number in range(1, options.warm_ups + 1)})
        begun = time.perf_counter()
        for number in range(1, int(options.rate * options.seconds) + 1):
            time.sleep(max(0.0, begun + number / options.rate - time.perf_counter()))
            sent[number] = time.perf_counter()
            log.append([events.make_event(number, title=f"shoe {number}")])
        await_all(watched.seen, sent.keys())
        burst = range(2 * 10**6, 2 * 10**6 + options.burst)
        begun = time.perf_counter()
        log.append([events.make_event(number, title=f"shoe {number}") for number in burst])
        await_all(watched.seen, set(burst))
        burst_s = time.perf_counter() - begun
    watched.end()
    return sorted(watched.seen[number] - at for number, at in sent.items()), options.burst / burst_s


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=20.0, help="events per second")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--burst", type=int, default=10_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--warm_ups", type=int, default=50)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    options = parser.parse_args()
    results, bars = {}, {}
    with tempfile.TemporaryDirectory() as name:
        new_item_delay.write_encoder(pathlib.Path(name) / "encoders" / "text")
        for side in options.sides:
            folder = pathlib.Path(name) / side
            folder.mkdir()
            with contextlib.ExitStack() as stack:
                delays, rate = measure(options, folder, side, stack)
            quantiles = {
                "p50": delays[len(delays) // 2],
                "p90": delays[int(len(delays) * 0.9)],
                "p99": delays[int(len(delays) * 0.99)],
                "max": delays[-1],
            }
            results[side] = {"delay_s": quantiles, "events": len(delays), "burst_events_per_s": rate}
            print(side, results[side], flush=True)
    if "FnApiRunner" in results:
        delay_s = results["FnApiRunner"]["delay_s"]
        bars = {f"{name} on FnApiRunner": recording.bar(delay_s[name], at_most=most) for name, most in BARS_S.items()}
    facts = {"rate": options.rate, "seconds": options.seconds, "partitions": options.partitions, "engines": results}
    recording.write("stream_engines", __doc__.splitlines()[0], facts, seed=0, bars=bars)


if __name__ == "__main__":
    main()
