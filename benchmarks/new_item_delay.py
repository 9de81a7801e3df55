"""How long does a new item wait for its embedding in the index, and how many can the streaming job take?

From the event's append to the commit of its row, with the job as a process of its own; then a burst. Floor: the
same event embedded by a plain call and written to an index of this process, with the same durable commit.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import recording
import tensorflow as tf

from serving.streaming import embedding, event_log, events
from tfmm import artifacts
from tfmm.index import encode, item_index

DIM = 64


class _Encoder(tf.Module):
    """Stands in for a trained encoder: its own time is small, the rest is the road's."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="content")])
    def embed(self, content):
        values = [tf.strings.to_hash_bucket_strong(content, 1000, [7, n]) - 500 for n in range(DIM)]
        return {"vector": tf.math.l2_normalize(tf.cast(tf.stack(values, 1), tf.float32), axis=1)}


def write_encoder(folder):
    module = _Encoder()
    tf.saved_model.save(module, str(folder / "encoder"), signatures={"serving_default": module.embed})
    artifacts.write_manifest(folder, "encoder", modality="text", dim=DIM, encoder_version="benchmark")


def wait_until(condition):
    while not condition():
        time.sleep(0.0005)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--burst", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_encoder(folder / "encoders" / "text")
        log = event_log.SQLiteEventLog(folder / "events.sqlite")
        index = item_index.ItemIndex(folder / "items.sqlite")
        local = item_index.ItemIndex(folder / "local.sqlite")
        encoder = encode.load_encoder(folder / "encoders" / "text")
        embedding.warm_up([encoder])
        started = time.perf_counter()
        job = subprocess.Popen(
            [sys.executable, "-m", "serving.streaming", "--events", log.path, "--index", index.path,
             "--encoders", str(folder / "encoders"), "--ready-file", str(folder / "ready")],
            stderr=subprocess.DEVNULL, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})  # fmt: skip
        try:
            wait_until((folder / "ready").exists)
            start_s = time.perf_counter() - started
            numbers = iter(range(1, 10**9))

            def by_job():
                last = log.append([events.make_event(next(numbers), title="a shoe")])
                wait_until(lambda: index.position(log.name) == last)

            def by_call():
                event = event_log.Event(1, events.make_event(next(numbers), title="a shoe"))
                ((_, rows),) = embedding.embed_events([event], [encoder]).embedded
                local.write("text", encoder.version, rows.ids, rows.rows, rows.scales, rows.event_times_us)

            seconds = recording.interleave({"job": by_job, "floor": by_call}, options.items, warm_ups=5)
            started = time.perf_counter()
            last = log.append(events.make_event(next(numbers), title="a shoe") for _ in range(options.burst))
            wait_until(lambda: index.position(log.name) == last)
            burst_s = time.perf_counter() - started
        finally:
            job.send_signal(signal.SIGTERM)
            job.wait()
        for database in (log, index, local):
            database.close()
    sides = {side: recording.spread(values) for side, values in seconds.items()}
    recording.write("new_item_delay", __doc__.splitlines()[0], {
        "delay_s": sides["job"], "floor_s": sides["floor"],
        "ratio_to_floor": sides["job"]["median"] / sides["floor"]["median"],
        "worst_s": max(seconds["job"]), "start_s": start_s, "burst_events_per_s": options.burst / burst_s,
    })  # fmt: skip


if __name__ == "__main__":
    main()
