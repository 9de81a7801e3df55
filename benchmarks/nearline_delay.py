"""How long does a new item wait for a near-line training batch, and an impression for a served model that knows it?

Stream, server with its replicator, and near-line trainer at work on this machine over one marketplace, requests and
labels appended as they happen. A new item: from its event to a block of training that shows it with its vector. An
impression: to the moment when the server has a version in service that was trained over it, as the trainer says.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import recording

from serving.nearline import trainer as nearline
from serving.streaming import event_log, events
from tfmm.config import MarketplaceConfig
from tfmm.data import schema
from tfmm.marketplace import generator
from tfmm.stages import run_file

LAX = ("gate.min_auc=0.0", "gate.min_gauc=0.0", "gate.max_loss_to_service=1.0", "gate.max_logloss_rise=9.0",
       "gate.max_calibration_rise=9.0", "gate.max_hidden_bias=9.0")  # clicks here follow no taste
SMALL = MarketplaceConfig(num_items=1000, new_items_per_day=20, num_users=1000, num_searches=500, image_size=16)
BAR_S = 5.0


def prepare(folder, seed):
    """Makes a marketplace with encoders, an index, models and a first version in service."""
    generator.generate(SMALL, folder / "tables")
    short = ("text.epochs=1", "image.epochs=1", "make.epochs=1")
    options = " ".join(f"--set {assignment}" for assignment in (*LAX, *short))
    for command in (
        f"pretrain --data tables --output encoders --run small {options}",
        "embed --data tables --encoders encoders --index items.sqlite --snapshot snapshot",
        "train --data tables --snapshot snapshot --output models",
        "export --models models --unjudged --output versions",
    ):
        subprocess.run([sys.executable, "-m", "tfmm.cli", *command.split()], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip


class Traffic:
    """Requests and labels as an application and its servers log them."""

    def __init__(self, folder, log, seed):
        items = schema.read_table(folder / "tables", "items")
        self._ids, self._categories = (items[name].to_pylist() for name in ("item_id", "category"))
        self._users = schema.read_table(folder / "tables", "impressions")["user_id"].unique().to_pylist()
        self._log, self._generator, self._number = log, np.random.default_rng(seed), 0

    def serve(self, shown=5, item=None):
        """Logs a request whose items are shown, and clicks on a fifth of them; `item` is shown too where given."""
        places = self._generator.integers(0, len(self._ids), shown)
        history = self._generator.integers(0, len(self._ids), 8)
        ids, categories = [self._ids[p] for p in places], [self._categories[p] for p in places]
        if item is not None:
            ids[0], categories[0] = item, None
        self._number += 1
        name, now = f"{os.getpid()}-{self._number}", time.time()
        user = self._users[int(self._generator.integers(len(self._users)))]
        records = [{
            "request_id": name, "time": now, "model": "tfmm", "version": 1, "encoders": {}, "index": {},
            "features": {"user_id": user, "behavior_item_ids": [self._ids[p] for p in history],
                         "behavior_categories": [self._categories[p] for p in history]},
            "items": ids, "item_features": {"category": categories}, "scores": [0.5] * shown,
        }]  # fmt: skip
        for one in dict.fromkeys(ids):
            event = {"request_id": name, "item_id": one, "time": now}
            records.append({**event, "shown": True})
            if self._generator.random() < 0.2:
                records.append({**event, "label": True})
        self._log.append([json.dumps(record).encode() for record in records])


@contextlib.contextmanager
def process(*command, log):
    """Runs a command while the block lasts."""
    with log.open("ab") as file:
        running = subprocess.Popen([sys.executable, "-m", *map(str, command)], stdout=file, stderr=file,
                                   env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})  # fmt: skip
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait()


def wait_until(condition, timeout_s=600.0):
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shop", type=pathlib.Path, help="folder that an earlier run prepared (default: a new one)")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--slice_rows", type=int, default=5_000)
    parser.add_argument("--judged_rows", type=int, default=0)
    parser.add_argument("--requests_per_s", type=float, default=40.0)
    parser.add_argument("--window_s", type=float, default=2.0)
    parser.add_argument("--pushes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.shop or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "versions").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            prepare(folder, options.seed)
        work = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context(event_log.SQLiteEventLog(work / "served.sqlite"))
        new_items = stack.enter_context(event_log.SQLiteEventLog(work / "events.sqlite"))
        stack.enter_context(process("serving.streaming", "--events", new_items.path, "--index",
                                    folder / "items.sqlite", "--encoders", folder / "encoders", "--ready-file",
                                    work / "ready", log=work / "stream.log"))  # fmt: skip
        stack.enter_context(process("tfmm.cli", "serve", "--model_base_path", folder / "versions", "--port", 18500,
                                    "--rest_api_port", 0, "--index", folder / "items.sqlite",
                                    "--file_system_poll_wait_seconds", 1, log=work / "server.log"))  # fmt: skip
        wait_until((work / "ready").exists)
        results = measure(options, folder, work, log, new_items)
    bars = {f"a new item is in a training batch with its vector, s, p50 of {options.items}":
            recording.bar(results["item_to_batch_s"]["median"], at_most=BAR_S),
            "and the slowest": recording.bar(results["item_to_batch_worst_s"], at_most=BAR_S)}  # fmt: skip
    recording.write("nearline_delay", __doc__.splitlines()[0], results, options.seed, bars)


def measure(options, folder, work, log, new_items):
    settings = nearline.Settings(
        logs=(str(log.path),), models_dir=folder / "models", index_url=str(folder / "items.sqlite"),
        work_dir=work / "nearline", serving_dir=folder / "versions", letters_url=str(work / "letters.sqlite"),
        window_s=options.window_s, lateness_s=0.2, slice_rows=options.slice_rows, judged_rows=options.judged_rows,
        slice_minutes=1e6, block_s=0.5, server="127.0.0.1:18500",
    )  # fmt: skip
    running, stop, started, trained = {}, threading.Event(), threading.Event(), {}

    @contextlib.contextmanager
    def on_start(trainer):
        learn = trainer.learner.train

        def train(block):
            line = learn(block)
            slots = trainer.learner.state.tables["text"].slots(block["item_id"])
            for item in block["item_id"][slots > 0].tolist():
                trained.setdefault(item, time.time())
            return line

        trainer.learner.train = train
        running["trainer"] = trainer
        started.set()
        yield

    pushes, said = [], nearline.push_line

    def heard(number, result, delays):
        pushes.append({"impressions": len(delays), "to": "served" if result["served_at"] else "pushed",
                       **{f"p{q}": float(np.percentile(delays, q)) for q in (50, 90, 99)}})  # fmt: skip
        return said(number, result, delays)

    nearline.push_line = heard
    run = run_file.read(folder / "models")
    thread = threading.Thread(target=nearline.run, args=(run, settings, stop, run.training, on_start))
    thread.start()
    started.wait()
    traffic, halted = Traffic(folder, log, options.seed), threading.Event()
    lock = threading.Lock()

    def flow():
        while not halted.wait(1.0 / options.requests_per_s):
            with lock:
                traffic.serve()

    flowing = threading.Thread(target=flow)
    flowing.start()
    try:
        wait_until(lambda: trained)  # the step is compiled
        delays = []
        for number in range(options.items):
            item, begun = 10**9 + number, time.time()
            new_items.append([events.make_event(item, title=f"a red shoe {number}")])
            time.sleep(0.5)  # until somebody sees it
            with lock:
                traffic.serve(item=item)
            wait_until(lambda item=item: item in trained)
            delays.append(trained[item] - begun)
        begun, rows = time.time(), running["trainer"].learner.rows
        wait_until(lambda: len(pushes) >= options.pushes, 3600.0)
        rate = (running["trainer"].learner.rows - rows) / (time.time() - begun)
    finally:
        halted.set()
        flowing.join()
        stop.set()
        thread.join()
    return {
        "item_to_batch_s": recording.spread(delays), "item_to_batch_worst_s": max(delays),
        "window_s": options.window_s, "rows_per_s": rate, "slice_rows": options.slice_rows,
        "judged_rows": options.judged_rows or options.slice_rows, "pushes": pushes,
        "impression_to_served_s": recording.spread([push["p50"] for push in pushes]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
