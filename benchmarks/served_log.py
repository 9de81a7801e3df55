"""What does logging every ranking cost a server, and does the log hold what it takes to score a request again?

Two servers of one version answer in turn, in blocks of calls, one of them with a log of every request. Then requests go
to a server whose items change meanwhile; each is scored again offline, by the version and at the sequence of the item
index that its record names. The index's own store keeps the newest row of an item alone, so the states come from the
log of the changes that the server took.
"""

import argparse
import contextlib
import pathlib
import tempfile
import threading
import time

import numpy as np
import recording
import served_model
import server_under_load

from serving import client as client_lib
from serving import replicator
from tfmm.data import served
from tfmm.evaluate import rescored
from tfmm.index import encode, store

BLOCK_S = 0.5


def cost(base_path: pathlib.Path, folder: pathlib.Path, num_candidates: int, rounds: int) -> dict:
    """Returns the seconds of a call of each side by round, and their ratio."""
    import grpc

    message = server_under_load.rank_request(num_candidates)
    with contextlib.ExitStack() as stack:
        sides = {"without": (), "with": (f"--served_log={folder / 'cost'}",)}
        calls = {}
        for name, flags in sides.items():
            server = stack.enter_context(served_model.serving(base_path, *flags))
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
            method = channel.unary_unary(server_under_load.METHOD)
            calls[name] = lambda method=method: method(message, timeout=60)
        latencies: dict[str, list[float]] = {name: [] for name in calls}
        medians: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(rounds + 1):
            for name in [*calls][:: 1 if number % 2 else -1]:
                block, ends = [], time.perf_counter() + BLOCK_S
                while time.perf_counter() < ends:
                    began = time.perf_counter()
                    calls[name]()
                    block.append(time.perf_counter() - began)
                if number:  # the first round warms up
                    latencies[name] += block
                    medians[name].append(float(np.median(block)))
    ratios = [one / other for one, other in zip(medians["with"], medians["without"])]
    return {
        "candidates": num_candidates,
        "p50_ms": {name: 1e3 * float(np.median(found)) for name, found in latencies.items()},
        "p99_ms": {name: 1e3 * float(np.percentile(found, 99)) for name, found in latencies.items()},
        "calls": {name: len(found) for name, found in latencies.items()},
        "ratio_of_medians": recording.spread(ratios),
    }


def again(
    base_path: pathlib.Path, folder: pathlib.Path, num_requests: int, num_candidates: int, changes_per_s: float
) -> dict:
    """Logs requests while items change, and scores them again."""
    log, changes, ends = folder / "log", folder / "changes", threading.Event()
    draw = np.random.default_rng(2)
    flags = (f"--served_log={log}", f"--changes_log={changes}")
    with served_model.serving(base_path, *flags) as server:
        target = f"127.0.0.1:{server.grpc_port}"

        def change() -> None:
            drawn = np.random.default_rng(3)
            with store.open_store(folder / "items.sqlite") as index:
                while not ends.is_set():
                    for modality, dim in served_model.DIMS.items():
                        rows, scales = encode.quantize(drawn.normal(size=[1, dim]))
                        item = drawn.integers(1, served_model.NUM_ITEMS, 1)
                        index.write(modality, "drawn", item, rows, scales, [time.time_ns() // 1000])
                    ends.wait(1 / changes_per_s)

        def ask(count: int, seed: int) -> None:
            own = np.random.default_rng(seed)
            with client_lib.RankingClient(target, model_name=served_model.MODEL_NAME, timeout_s=300.0) as client:
                for _ in range(count):
                    client.predict(served_model.rank_inputs(num_candidates, own), "rank", outputs=("score",))

        with replicator.Replicator(folder / "items.sqlite", [target], served_model.MODEL_NAME):
            seeds = draw.integers(1e9, size=2)
            threads = [threading.Thread(target=ask, args=(num_requests // 2, seed)) for seed in seeds]
            changer = threading.Thread(target=change)
            for thread in (changer, *threads):
                thread.start()
            for thread in threads:
                thread.join()
            ends.set()
            changer.join()
    records = [one for path in served.files(log) for one in map(served.parse, served.payloads(path))]
    gaps = np.diff(np.sort([one.time for one in records]))
    known = rescored.read_changes(changes)
    found = rescored.rescore(records, base_path / "1", known)
    frozen = rescored.rescore(records, base_path / "1", {})  # as if the index had stood still
    return {
        "requests": len(records), "scored_again": len(found.differences), "unknown": len(found.unknown),
        "states": len({tuple(sorted(one.index.items())) for one in records}),
        "changes": {modality: len(one.ids) for (modality, _), one in known.items()},
        "largest_difference": float(found.differences.max(initial=0.0)), "sessions": found.sessions,
        "unknown_without_changes": len(frozen.unknown), "longest_wait_s": float(gaps.max(initial=0.0)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=200, help="of a request whose cost is measured")
    parser.add_argument("--few", type=int, default=20, help="candidates of a request that is scored again")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--changes-per-s", type=float, default=20.0, help="per modality")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        base_path = served_model.write(folder).parent
        scored = again(base_path, folder, options.requests, options.few, options.changes_per_s)
        paid = cost(base_path, folder, options.candidates, options.rounds)
    recording.write("served_log", __doc__.splitlines()[0], {"cost": paid, "again": scored}, bars={
        "logged requests scored again": recording.bar(scored["scored_again"], at_least=options.requests),
        "largest difference of a score": recording.bar(scored["largest_difference"], at_most=1e-5),
        "p50 with the log over without": recording.bar(paid["ratio_of_medians"]["median"], at_most=1.1),
    })  # fmt: skip


if __name__ == "__main__":
    main()
