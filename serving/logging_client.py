"""A client that logs what it ranks, for servers that keep no log of it, such as TensorFlow Serving.

    log = served_log.Log("served", "folder:///logs/served")
    with LoggingClient("127.0.0.1:8500", log=log) as client:
        scores = client.rank(user, candidates, request_id="r1")
    log.close()

`AsyncLoggingClient` is the same for callers with asyncio.
"""

from __future__ import annotations

import functools
import time
import typing
import uuid

import numpy as np

from serving import served_log, served_record
from tfmm.export.signatures import LOGGED
from tfmm_client import AsyncRankingClient, RankingClient
from tfmm_client.caller import Caller, Candidates, User
from tfmm_client.inputs import RANK, Inputs
from tfmm_client.replicas import Deadline, Replica
from tfmm_client.steps import Flow
from tfmm_client.versions import Version
from tfmm_client.ways import Answer, Arrays, Grpc, Metadata


class _Logging(Caller):
    """What both clients that log do; see `LoggingClient`."""

    def __init__(self, target: str | typing.Sequence[str], *, log: served_log.Log | None, **settings: typing.Any):
        super().__init__(target, **settings)
        self._log = log

    def _rank_logged(
        self, user: User, candidates: Candidates, version: Version, timeout_s: float | None, request_id: str | None
    ) -> Flow[Arrays]:
        way = _Logged(self._model_name, self._log, request_id or uuid.uuid4().hex)
        return self._rank(user, candidates, version, way, timeout_s)


class LoggingClient(_Logging, RankingClient):
    """As `RankingClient`, over gRPC; `rank` asks the signature that also says what it scored by, and writes it down.

    Args:
        target, **settings: as there.
        log: of what is ranked, closed by its owner; None: none, such as of a server that logs by itself.
    """

    def rank(  # type: ignore[override]
        self,
        user: User,
        candidates: Candidates,
        *,
        version: Version = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> np.ndarray:
        """As `RankingClient.rank`; `request_id` is the record's, by which events tell what was shown; None: a new one.

        Raises:
            FullError: the log has no place, so that nothing is asked.
        """
        return self._run(self._rank_logged(user, candidates, version, timeout_s, request_id))["score"]


class AsyncLoggingClient(_Logging, AsyncRankingClient):
    """As `LoggingClient`, its calls awaited. A call that is cancelled is not logged."""

    async def rank(  # type: ignore[override]
        self,
        user: User,
        candidates: Candidates,
        *,
        version: Version = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> np.ndarray:
        """As `LoggingClient.rank`."""
        return (await self._run(self._rank_logged(user, candidates, version, timeout_s, request_id)))["score"]


class _Logged(Grpc):
    """One request over gRPC, under its id, and what it was answered in the log."""

    def __init__(self, model_name: str, log: served_log.Log | None, request_id: str):
        super().__init__(model_name)
        self._log, self._request_id = log, request_id

    def predict(
        self,
        replica: Replica,
        signature: str,
        inputs: typing.Mapping[str, typing.Any],
        version: Version,
        deadline: Deadline,
        outputs: typing.Sequence[str] = (),
        metadata: Metadata = (),
    ) -> Flow[Answer]:
        named = signature if self._log is None else LOGGED[signature]
        said = [*metadata, (served_record.REQUEST_ID, self._request_id)]
        asked = super().predict(replica, named, inputs, version, deadline, (), said)
        if self._log is None or not self._log.takes(self._request_id):
            return (yield from asked)
        with self._log.place() as place:
            answer = yield from asked
            record = self._record(inputs, answer, replica.inputs[version, RANK], self._log.sample_rate)
            place.fill(functools.partial(served_record.fields, record))
        return answer

    def _record(
        self, inputs: typing.Mapping[str, np.ndarray], answer: Answer, known: Inputs, sample_rate: float
    ) -> served_record.Ranked:
        of_user = [name for name, one in known.items() if one.is_user]
        number = typing.cast(int, answer.version)
        return served_record.Ranked(
            self._request_id, time.time(), self._model_name, number, inputs, answer.outputs, of_user, sample_rate
        )
