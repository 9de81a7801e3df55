"""Does a server give back the memory of replaced versions, and fail no request while versions come and go?

Forty versions of a click model of the default run's size are pushed to a server under load, one after another. Memory
is read some seconds after each version before it went, so that what its load and its compiler took is given back.
"""

import argparse
import pathlib
import shutil
import statistics
import tempfile
import threading
import time

import numpy as np
import recording
import served_model

from serving import client as client_lib
from tfmm import config as config_lib

SETTLE_S = 2.0
LOAD_S = 300.0  # a version that is not in service by then will never be


def ask_until(stop: threading.Event, target: str, counts: dict[str, int], faults: list[str]) -> None:
    """Ranks for one user after another; counts answers, keeps what fails."""
    inputs = served_model.rank_inputs(64, np.random.default_rng(threading.get_ident() % 2**32))
    with client_lib.RankingClient(target, model_name=served_model.MODEL_NAME, timeout_s=120) as client:
        while not stop.is_set():
            try:
                client.predict(inputs, "rank")
                counts["answers"] += 1
            except client_lib.PredictError as error:
                faults.append(str(error))


def swap(server: served_model.Server, base_path: pathlib.Path, swaps: int) -> list[float]:
    """Pushes versions; returns the memory in MB after each, the first version's included."""
    first = base_path / "1"
    with client_lib.RankingClient(f"127.0.0.1:{server.grpc_port}", model_name=served_model.MODEL_NAME) as client:
        memory_mb = [server.memory_mb()]
        for version in range(2, swaps + 2):
            building = base_path.parent / f"building-{version}"
            shutil.copytree(first, building)
            building.replace(base_path / str(version))
            deadline = time.monotonic() + LOAD_S
            while (served := client.versions()) != [version]:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"Version {version} is not in service after {LOAD_S} s. In service: {served}.")
                time.sleep(0.1)
            time.sleep(SETTLE_S)
            memory_mb.append(server.memory_mb())
    return memory_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=40)
    parser.add_argument("--callers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        small = config_lib.ExportConfig(batch_buckets=(64,), candidate_buckets=(64,))  # what the callers send
        base_path = served_model.write(folder, small).parent
        stop, counts, faults = threading.Event(), {"answers": 0}, []
        with served_model.serving(base_path, "--file_system_poll_wait_seconds=0.2") as server:
            callers = [
                threading.Thread(target=ask_until, args=(stop, f"127.0.0.1:{server.grpc_port}", counts, faults))
                for _ in range(options.callers)
            ]
            for caller in callers:
                caller.start()
            try:
                memory_mb = swap(server, base_path, options.swaps)
            finally:
                stop.set()
                for caller in callers:
                    caller.join()
    after_first, last = memory_mb[1], statistics.median(memory_mb[-5:])
    results = {"memory_mb": memory_mb, "answers": counts["answers"], "failed": len(faults), "faults": faults[:5]}
    recording.write("version_swaps", __doc__.splitlines()[0], results, bars={
        "requests that failed": recording.bar(len(faults), at_most=0),
        "memory after the last swaps over that after the first": recording.bar(
            last / after_first, at_most=1.05, beside={"the largest": max(memory_mb) / after_first}),
    })  # fmt: skip


if __name__ == "__main__":
    main()
