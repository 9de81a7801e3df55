"""What both clients do, written as flows of steps: `client` takes the steps, `asynchronous` awaits them."""

from __future__ import annotations

import functools
import json
import typing

import numpy as np

from tfmm_client import access as access_lib
from tfmm_client import errors, replicas
from tfmm_client.inputs import RANK, Inputs, Value, plain_list, rank_request
from tfmm_client.replicas import Deadline, Replica, Retry
from tfmm_client.steps import Flow, T, Wait
from tfmm_client.versions import Version
from tfmm_client.ways import Arrays, Grpc, Rest, Way

User = typing.Mapping[str, Value]
Candidates = typing.Mapping[str, typing.Iterable[Value]]
Ask = typing.Callable[[Replica, Deadline], Flow[T]]

SILENT_S = 3.0
CHANNEL_OPTIONS: list[tuple[str, typing.Any]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Of a name that stands for several addresses, each has its turn, and one that is away is left out.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # A machine that is gone without a word, whose kernel takes no more: the connection ends after this time without an
    # acknowledgment (TCP_USER_TIMEOUT, which gRPC sets with keepalive). Pings come as seldom as any server permits.
    ("grpc.keepalive_timeout_ms", round(1e3 * SILENT_S)),
    ("grpc.keepalive_time_ms", 300_000),
]
DEFAULT_RETRY = Retry()
UPSERT = "upsert_items"  # the signature that writes
CONNECT_S = 2.0  # for a connection to stand, where there are other servers to ask


class Caller:
    """The part of a client that sends nothing itself; see `RankingClient`."""

    def __init__(
        self,
        target: replicas.Addresses = None,
        rest_url: replicas.Addresses = None,
        model_name: str = "tfmm",
        *,
        timeout_s: float = 10.0,
        access: access_lib.Access = access_lib.NO_ACCESS,
        retry: Retry = DEFAULT_RETRY,
    ):
        self._model_name, self._timeout_s, self._access, self._retry = model_name, timeout_s, access, retry
        self._turns = replicas.Turns(replicas.listed(target, rest_url))
        for one in self._turns.replicas:
            access.verify(one.target, one.url)
        self._grpc, self._rest = Grpc(model_name), Rest(model_name)
        self._connect_s = CONNECT_S if len(self._turns.replicas) > 1 else 20.0  # gRPC's own
        self._connect()

    def _connect(self) -> None:
        """Makes what steps are taken with."""
        raise NotImplementedError

    def _open(self, target: str, api: typing.Any) -> typing.Any:
        """Returns a channel, of `grpc` or of `grpc.aio`."""
        connects = [("grpc.min_reconnect_backoff_ms", round(1e3 * self._connect_s))]  # which is what a try has, too
        return self._access.open(target, CHANNEL_OPTIONS + connects, api)

    def _over_replicas(
        self, ask: Ask[T], timeout_s: float | None, *, may_differ: bool = False, retry: Retry | None = None
    ) -> Flow[T]:
        """Asks one replica after another until one answers, or no try is left; `retry`: the client's."""
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        tries = replicas.Tries(self._turns.next(), deadline, retry or self._retry, may_differ=may_differ)
        while True:
            try:
                return (yield from ask(tries.next(), deadline))
            except (errors.PredictError, ValueError) as error:
                wait_s = tries.wait_s(error)
            if wait_s:
                yield Wait(wait_s)

    def _rank(
        self,
        user: User,
        candidates: Candidates,
        version: Version,
        way: Way,
        timeout_s: float | None,
        asked: str = RANK,
    ) -> Flow[Arrays]:
        """Ranks at one of the replicas; where they are of several versions, at one that takes what is given."""
        refusals: list[tuple[Inputs, ValueError]] = []
        ask = functools.partial(self._rank_at, user, candidates, version, way, asked, refusals)
        return self._over_replicas(ask, timeout_s, may_differ=True)

    def _rank_at(
        self,
        user: User,
        candidates: Candidates,
        version: Version,
        way: Way,
        asked: str,
        refusals: list[tuple[Inputs, ValueError]],
        replica: Replica,
        deadline: Deadline,
    ) -> Flow[Arrays]:
        """Sends a request of `rank` or `pre_rank`, again where what it takes has changed since it was asked."""
        known = replica.inputs.get((version, asked))
        inputs = known or (yield from self._find_inputs(replica, version, way, deadline, asked))
        while True:
            for refused, said in refusals:
                if refused == inputs:
                    raise said  # it takes what one took that refused the request
            try:
                signature, arrays = rank_request(user, candidates, inputs, asked)
                answer = yield from way.predict(replica, signature, arrays, version, deadline, ("score",))
                return answer.outputs
            except ValueError as error:  # `InvalidRequest` is one
                refusals.append((inputs, error))
                if inputs is not known:
                    raise
                inputs = yield from self._find_inputs(replica, version, way, deadline, asked)

    def _find_inputs(
        self, replica: Replica, version: Version, way: Way, deadline: Deadline, asked: str
    ) -> Flow[Inputs]:
        found = (yield from way.known(replica, version, deadline, asked))[1]
        replica.inputs[version, asked] = found
        return found

    def _predict(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str,
        version: Version,
        outputs: typing.Sequence[str],
        way: Way,
        timeout_s: float | None,
    ) -> Flow[Arrays]:
        def ask(replica: Replica, deadline: Deadline) -> Flow[Arrays]:
            answer = yield from way.predict(replica, signature, inputs, version, deadline, outputs)
            return answer.outputs

        if signature != UPSERT:
            return self._over_replicas(ask, timeout_s)
        targets = [one.target or one.url or "" for one in self._turns.replicas]
        if len(targets) > 1 or "," in targets[0]:
            raise ValueError(
                f"{UPSERT!r} must be sent to one server, since each has its own tables: name one target in a client of "
                f"its own for each server. Received: {', '.join(targets)}."
            )
        return self._over_replicas(ask, timeout_s, retry=Retry(rounds=1))

    def _versions(self, timeout_s: float | None) -> Flow[list[int]]:
        return self._over_replicas(self._grpc.versions, timeout_s)


def best(count: int, candidates: Candidates, scores: np.ndarray) -> list[tuple[int | str, float]]:
    """Returns ids and scores of the best candidates, the best first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return [(candidates["item_id"][i], float(scores[i])) for i in order]  # type: ignore[index]


def with_listed_ids(candidates: Candidates) -> dict[str, typing.Any]:
    """Returns candidates with their ids as a list.

    Raises:
        ValueError: they have none.
    """
    if "item_id" not in candidates:
        raise ValueError(f"`candidates` must have 'item_id'. Received: {sorted(candidates)}.")
    return {**candidates, "item_id": plain_list(candidates["item_id"], "item_id")}
