"""Starts Beam's Python workers where Flink's task managers ask for them, one process each.

Beam's own pool listens on every address of the machine, starts whichever `python` comes first, and leaves the workers'
output in a pipe that nobody reads, so that one which prints much stands still.

    python workers.py pool PORT LOG_FOLDER
    python workers.py worker CONTROL_ENDPOINT ID
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import traceback

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker import sdk_worker, worker_pool_main
from apache_beam.utils import thread_pool_executor

HOST = "127.0.0.1"
CACHE_BYTES = 100 << 20  # of side inputs, in each worker; Beam's own containers have as much


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """What task managers call to start a worker.

    A worker ends at once when its task manager hangs up, whatever it is at. It is not stopped by its id: each task
    manager counts its own workers from 1, so that a call to stop one could hit that of another.
    """

    def __init__(self, log_dir: pathlib.Path):
        self._log_dir = log_dir
        self._processes: list[subprocess.Popen] = []

    def StartWorker(self, request, context):
        self._processes = [process for process in self._processes if process.poll() is None]
        endpoint = request.control_endpoint.url
        try:
            with (self._log_dir / f"worker-{endpoint.rpartition(':')[2]}.log").open("ab") as log:
                command = [sys.executable, __file__, "worker", endpoint, request.worker_id]
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        except Exception:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request, context):
        return beam_fn_api_pb2.StopWorkerResponse()

    def stop(self) -> None:
        for process in self._processes:
            worker_pool_main.kill_process_gracefully(process)


def serve(port: int, log_dir: pathlib.Path) -> None:
    """Answers task managers until it is told to end, and ends the workers then."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    pool = Pool(log_dir)
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    ended.wait()
    server.stop(0)
    pool.stop()


def main() -> None:
    kind, first, second = sys.argv[1:]
    if kind == "pool":
        serve(int(first), pathlib.Path(second))
    else:
        try:
            sdk_worker.SdkHarness(first, worker_id=second, state_cache_size=CACHE_BYTES).run()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # threads that still work, work for nobody


if __name__ == "__main__":
    main()
