"""The client for callers with asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import typing

import grpc.aio
import httpx
import numpy as np

from tfmm_client import errors, http
from tfmm_client.caller import Caller, Candidates, User, best, with_listed_ids
from tfmm_client.inputs import PRE_RANK
from tfmm_client.replicas import Replica
from tfmm_client.steps import Call, Flow, Send, Step, T, Work
from tfmm_client.versions import Version
from tfmm_client.ways import Arrays

_THREADS = 16  # of a client, for work that may block: where it hangs, the application's own threads are not taken


class AsyncRankingClient(Caller):
    """As `RankingClient`, its calls awaited.

    async with AsyncRankingClient(["ranker-0:8500", "ranker-1:8500"]) as client:
        scores = await client.rank(user, candidates)

    It belongs to the event loop of its first call. A call that is cancelled is cancelled at the server.
    """

    def _connect(self) -> None:
        self._channels: dict[Replica, grpc.aio.Channel] = {}
        self._http = httpx.AsyncClient(**http.settings(self._access, [one.url for one in self._turns.replicas]))
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "tfmm-client")  # started as they are needed

    async def rank(
        self, user: User, candidates: Candidates, *, version: Version = None, timeout_s: float | None = None
    ) -> np.ndarray:
        """As `RankingClient.rank`."""
        return (await self._run(self._rank(user, candidates, version, self._grpc, timeout_s)))["score"]

    async def rank_rest(
        self, user: User, candidates: Candidates, *, version: Version = None, timeout_s: float | None = None
    ) -> np.ndarray:
        """As `rank`, over REST."""
        scores = (await self._run(self._rank(user, candidates, version, self._rest, timeout_s)))["score"]
        return scores.astype(np.float32)

    async def pre_rank(
        self, user: User, candidates: Candidates, *, version: Version = None, timeout_s: float | None = None
    ) -> np.ndarray:
        """As `RankingClient.pre_rank`."""
        return (await self._run(self._rank(user, candidates, version, self._grpc, timeout_s, PRE_RANK)))["score"]

    async def top(
        self, count: int, user: User, candidates: Candidates, *, timeout_s: float | None = None
    ) -> list[tuple[int | str, float]]:
        """As `RankingClient.top`."""
        listed = with_listed_ids(candidates)
        return best(count, listed, await self.rank(user, listed, timeout_s=timeout_s))

    async def predict(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str = "serving_default",
        *,
        version: Version = None,
        outputs: typing.Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Arrays:
        """As `RankingClient.predict`."""
        return await self._run(self._predict(inputs, signature, version, outputs, self._grpc, timeout_s))

    async def predict_rest(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str = "serving_default",
        *,
        version: Version = None,
        timeout_s: float | None = None,
    ) -> Arrays:
        """As `RankingClient.predict_rest`."""
        return await self._run(self._predict(inputs, signature, version, (), self._rest, timeout_s))

    async def versions(self, *, timeout_s: float | None = None) -> list[int]:
        """As `RankingClient.versions`."""
        return await self._run(self._versions(timeout_s))

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        await self._http.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self):  # type: ignore[no-untyped-def]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, flow: Flow[T]) -> T:
        """Awaits a flow's steps, one after another."""
        try:
            step = next(flow)
            while True:
                try:
                    found = await self._take(step)
                except (errors.PredictError, ValueError) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(found)
        except StopIteration as done:
            return done.value
        finally:
            flow.close()  # where a step fails otherwise, or is interrupted: what the flow holds is given back

    async def _take(self, step: Step) -> typing.Any:
        if isinstance(step, Call):
            return await self._call(step)
        if isinstance(step, Work):
            return await self._work(step)
        return await (self._send(step) if isinstance(step, Send) else asyncio.sleep(step.seconds))

    async def _work(self, step: Work) -> typing.Any:
        found = asyncio.get_running_loop().run_in_executor(self._threads, step.function)
        try:
            return await asyncio.wait_for(found, step.timeout_s)
        except asyncio.TimeoutError:
            raise errors.of("DEADLINE_EXCEEDED", f"No look-up within {step.timeout_s:.3g} s.") from None

    async def _call(self, step: Call) -> typing.Any:
        if step.replica.target is None:
            raise ValueError("`target` must be given for calls over gRPC.")
        if step.replica not in self._channels:
            self._channels[step.replica] = self._open(step.replica.target, grpc.aio)
        call = self._channels[step.replica].unary_unary(
            step.method.path,
            request_serializer=step.method.request.SerializeToString,
            response_deserializer=step.method.response.FromString,
        )
        metadata = [*self._access.metadata(), *step.metadata]
        try:
            return await call(step.request, timeout=step.timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise errors.of(error.code().name, error.details() or "") from error

    async def _send(self, step: Send) -> typing.Any:
        if step.replica.url is None:
            raise ValueError("`rest_url` must be given for calls over REST.")
        return await http.send(self._http, step, self._connect_s)
