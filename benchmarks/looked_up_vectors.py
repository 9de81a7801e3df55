"""What does a ranking request cost whose vectors the client looks up in Redis, beside the index in the graph?

One model of the default run's size in two servers of their own: with its rows inside, asked by `RankingClient`, and
without (`export.with_items=false`), asked by `StoredRankingClient`, which looks vectors and features of candidates and
behaviors up in Redis and calls `score_vectors`. Both are given ids alone. For each number of candidates the calls of
both sides, and the look-up by itself, take turns, each for other ids. Client, Redis and servers share one machine, so
no network is in the figures.

    python benchmarks/looked_up_vectors.py
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import tempfile

import numpy as np
import recording
import served_model
import stream_engines

from serving.client import RankingClient
from serving.stored_client import StoredRankingClient
from tfmm import config as config_lib
from tfmm.export import saved_model
from tfmm.features import STORED
from tfmm.index import copying, item_features, snapshot, store
from tfmm.index.rows import IndexRows

ITEMS = np.arange(1, served_model.NUM_ITEMS + 1)
TYPES = dict.fromkeys(("user_id", "item_id", "category"), "int64")
INSIDE, LOOKED_UP, LOOK_UP = "in-graph index", "looked up in Redis", "the look-up by itself"


def write(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the model with its items inside and without, and the index; returns the base paths of both."""
    run = config_lib.RunConfig()
    export = dataclasses.replace(run.export, batch_buckets=(8,), candidate_buckets=(16, 128, 512))
    outside = served_model.write(folder, dataclasses.replace(export, with_items=False))
    layout = item_features.Layout.of(run.feature_set, TYPES)
    values = {"category": np.random.default_rng(0).integers(1, served_model.NUM_CATEGORIES, len(ITEMS))}
    with store.open_store(folder / "items.sqlite") as index:
        index.register_encoder(STORED, layout.version, layout.dim, layout.text)
        own = IndexRows(ITEMS, layout.pack(values), np.ones(len(ITEMS), np.float32), ITEMS, ITEMS)
        index.apply(store.IndexBatch([store.TableRows(STORED, layout.version, own)]))
        snapshot.write_snapshot(index, folder / "whole")
    parts = folder / "model", folder / "vocabulary", folder / "whole", TYPES
    inside = folder / "inside" / served_model.MODEL_NAME
    saved_model.export(*parts, export, inside / "1")
    return inside, outside.parent


def measure(inside, outside, index, candidates: int, repeats: int) -> dict:
    """Times both sides in turn; returns milliseconds by side, and the ratio within each round."""
    draw, length = np.random.default_rng(candidates), config_lib.RunConfig().data.max_behaviors
    encoders = {name: entry.encoder_version for name, entry in index.active_encoders().items()}
    encoders |= {STORED: index.active_features().encoder_version}

    def request() -> tuple[dict, dict]:
        user_id, behaviors = int(draw.integers(1, served_model.NUM_USERS)), draw.choice(ITEMS, length)
        items = draw.choice(ITEMS, candidates, replace=False)
        return {"user_id": user_id, "behavior_item_ids": behaviors}, {"item_id": items}

    some = request()
    np.testing.assert_allclose(inside.rank(*some), outside.rank(*some), atol=1e-5)

    def look_up() -> None:
        user, items = request()
        index.look_up(encoders, np.unique([*user["behavior_item_ids"], *items["item_id"]]))

    sides = {INSIDE: lambda: inside.rank(*request()), LOOKED_UP: lambda: outside.rank(*request()), LOOK_UP: look_up}
    seconds = recording.interleave(sides, repeats, warm_ups=10)
    ratios = [b / a for a, b in zip(seconds[INSIDE], seconds[LOOKED_UP])]
    tails = {side: np.percentile(values, [50, 99]) * 1e3 for side, values in seconds.items()}
    ms = {side: {"p50": float(p50), "p99": float(p99), "n": repeats} for side, (p50, p99) in tails.items()}
    return {"ms": ms, "ratio": recording.spread(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--without-record", action="store_true", help="print the figures alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        bases = write(folder)
        (folder / "redis").mkdir()
        index = stack.enter_context(store.open_store(stack.enter_context(stream_engines.redis(folder / "redis"))))
        with store.open_store(folder / "items.sqlite") as own:
            copying.copy(own, index)
        targets = [f"127.0.0.1:{stack.enter_context(served_model.serving(base)).grpc_port}" for base in bases]
        inside = stack.enter_context(RankingClient(targets[0], timeout_s=60))
        outside = stack.enter_context(StoredRankingClient(targets[1], index=index, timeout_s=60))
        results = {
            f"{count} candidates": measure(inside, outside, index, count, options.repeats)
            for count in options.candidates
        }
    if options.without_record:
        print(json.dumps(results, indent=2))
    else:
        recording.write("looked_up_vectors", __doc__.splitlines()[0], results, seed=0)


if __name__ == "__main__":
    main()
