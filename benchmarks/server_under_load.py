"""What does a loaded server answer in time: good answers at 150 % and 400 % of its capacity, the tail at 70 %?

Server and load generator are processes of their own on one machine, so the generator's share of the cores is part of
every figure. Calls rank candidates for one user over gRPC with a deadline; those of the tail, which is measured at a
constant pace as load generators have it, have ten times as long. With Poisson arrivals two threads that each take a
constant time have a p99 of about 3 times the p50 at 70 %, whoever serves: that tail stands beside, without a bar.
"""

import argparse
import asyncio
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import recording

METHOD = "/tensorflow.serving.PredictionService/Predict"
DEADLINE_S = 0.25
CAPACITY = 50  # calls a second, about, whatever the machine: a call takes a sixth of its deadline on two threads


async def closed_loop(target: str, message: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Calls as fast as answers come; returns answers per second: the capacity."""
    import grpc

    async with grpc.aio.insecure_channel(target) as channel:
        call, answers, end = channel.unary_unary(METHOD), 0, time.perf_counter() + seconds

        async def client() -> None:
            nonlocal answers
            while time.perf_counter() < end:
                await call(message, timeout=60)
                answers += 1

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return {"rate": answers / (time.perf_counter() - started)}


async def open_loop(
    target: str, message: bytes, rate: float, seconds: float, deadline_s: float, poisson: bool
) -> dict[str, object]:
    """Calls at a rate, whatever comes back; returns how they ended, and the latencies of good answers in ms."""
    import grpc

    generator, ends, latencies_ms = np.random.default_rng(0), {}, []
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(METHOD)

        async def one() -> None:
            began = time.perf_counter()
            try:
                await call(message, timeout=deadline_s)
                latencies_ms.append(1e3 * (time.perf_counter() - began))
                end = "OK"
            except grpc.aio.AioRpcError as error:
                by_server = (error.details() or "").startswith("The deadline is")
                end = error.code().name + (" by the server" if by_server else "")
            ends[end] = ends.get(end, 0) + 1

        tasks, started, planned = [], time.perf_counter(), 0.0
        while planned < seconds:
            await asyncio.sleep(max(0.0, started + planned - time.perf_counter()))
            tasks.append(asyncio.ensure_future(one()))
            planned += generator.exponential(1 / rate) if poisson else 1 / rate
        elapsed = time.perf_counter() - started
        await asyncio.gather(*tasks)
    return {"ends": ends, "good_rate": len(latencies_ms) / elapsed, "offered_rate": len(tasks) / elapsed,
            "latencies_ms": latencies_ms}  # fmt: skip


def generate(settings: dict, message_file: pathlib.Path) -> None:
    """The load generator's process: runs one loop and prints what came."""
    loop = {"closed": closed_loop, "open": open_loop}[settings.pop("kind")]
    print(json.dumps(asyncio.run(loop(message=message_file.read_bytes(), **settings))))


def ask(message_file: pathlib.Path, **settings: object) -> dict:
    """Runs the load generator in a process of its own."""
    command = [sys.executable, __file__, "--generate", json.dumps(settings), "--message", str(message_file)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tail(latencies_ms: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "ratio": float(p99 / p50), "n": len(latencies_ms)}


def measure(target: str, message_file: pathlib.Path, seconds: float, tail_seconds: float) -> dict:
    """One round: the capacity, the three loads, the capacity again, since other work of the machine moves it."""

    def capacity() -> float:
        return ask(message_file, kind="closed", target=target, clients=4, seconds=seconds)["rate"]

    def load(share: float, length_s: float, deadline_s: float, poisson: bool) -> dict:
        return ask(message_file, kind="open", target=target, rate=share * before, seconds=length_s,
                   deadline_s=deadline_s, poisson=poisson)  # fmt: skip

    capacity()  # warms up
    before = capacity()
    result: dict = {"capacity": before}
    for name, poisson in (("paced", False), ("poisson", True)):
        found = load(0.7, tail_seconds, 10 * DEADLINE_S, poisson)
        result[f"tail_{name}"] = tail(found["latencies_ms"]) | {"ends": found["ends"]}
    for share in (1.5, 4.0):
        found = load(share, seconds, DEADLINE_S, True)
        after = capacity()
        result[f"load_{share:g}"] = {
            "good_rate": found["good_rate"], "offered_rate": found["offered_rate"], "ends": found["ends"],
            "capacity_after": after, "good_share": found["good_rate"] / math.sqrt(before * after),
        }  # fmt: skip
        before = after
    return result


def rank_request(num_candidates: int) -> bytes:
    """Returns a PredictRequest, serialized once for all calls."""
    import served_model
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = served_model.MODEL_NAME, "rank"
    for key, value in served_model.rank_inputs(num_candidates, np.random.default_rng(1)).items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request.SerializeToString()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, help="per call; else as many as make a call take about 40 ms")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tail-seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=pathlib.Path, help="a base path to serve; made where none is given")
    parser.add_argument("--generate", help=argparse.SUPPRESS)
    parser.add_argument("--message", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        generate(json.loads(options.generate), options.message)
        return

    import served_model

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        base_path = options.model or served_model.write(folder).parent
        with served_model.serving(base_path) as server:
            target, message_file = f"127.0.0.1:{server.grpc_port}", folder / "message"
            candidates = 125
            while True:
                message_file.write_bytes(rank_request(options.candidates or candidates))
                _, found = (ask(message_file, kind="closed", target=target, clients=4, seconds=3) for _ in range(2))
                rate = found["rate"]
                if options.candidates or rate < 1.5 * CAPACITY:
                    break
                candidates *= 2
            rounds = [
                measure(target, message_file, options.seconds, options.tail_seconds) for _ in range(options.rounds)
            ]

    def median(*path: str) -> float:
        values = rounds
        for key in path:
            values = [value[key] for value in values]
        return float(np.median(values))

    recording.write("server_under_load", __doc__.splitlines()[0],
        {"candidates": options.candidates or candidates, "rounds": rounds},
        bars={
            "good answers at 150 % load over capacity": recording.bar(median("load_1.5", "good_share"), at_least=0.9),
            "good answers at 400 % load over capacity": recording.bar(median("load_4", "good_share"), at_least=0.8),
            "p99 over p50 at 70 % load, constant pace": recording.bar(
                median("tail_paced", "ratio"), at_most=3.0, beside={"Poisson": median("tail_poisson", "ratio")}),
        })  # fmt: skip


if __name__ == "__main__":
    main()
