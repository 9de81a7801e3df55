"""The client for callers with threads."""

from __future__ import annotations

import time
import typing

import grpc
import numpy as np

from tfmm_client import errors, http, messages
from tfmm_client.caller import Caller, Candidates, User, best, with_listed_ids
from tfmm_client.inputs import PRE_RANK
from tfmm_client.steps import Call, Flow, Send, Step, T, Work
from tfmm_client.versions import Version
from tfmm_client.ways import Arrays


class RankingClient(Caller):
    """Scores candidates for users, over gRPC (`rank`, the fast way) or REST (`rank_rest`).

    A call goes to one of the servers, each in its turn. One that is away, or not ready, costs no call where another
    stands: the next is asked at once, and after all of them, all again after a wait; one that has too much to do, or
    not the version, leaves the call to the others. A score is of one version. What `rank` takes is asked of each server
    once, and again where a request does not fit: another version may be in service by then. Calls from several threads
    are safe.

    Args:
        target: host:port of gRPC, or a list of them; a name that leads to several addresses is balanced over all.
        rest_url: such as http://127.0.0.1:8501, or a list, of the same servers; needed by the REST calls alone.
        model_name: the model's name at the servers.
        timeout_s: per call, all tries together; it travels with the call, so that a server does not work for nobody.
        access: what the servers ask of their callers: `Access(ca_file=...)` for TLS, a token for upserts.
        retry: how often and when a call is tried again.
    Raises:
        ValueError: a token would leave this machine without TLS, or there is no server.
        OSError: a file of certificates cannot be read.
    """

    def _connect(self) -> None:
        found = [one for one in self._turns.replicas if one.target is not None]
        self._channels = {one: self._open(one.target, grpc) for one in found}  # type: ignore[arg-type]
        self._calls = {
            (one, method): channel.unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            for one, channel in self._channels.items()
            for method in messages.METHODS
        }
        self._http = http.Sender(**http.settings(self._access, [one.url for one in self._turns.replicas]))

    def rank(
        self, user: User, candidates: Candidates, *, version: Version = None, timeout_s: float | None = None
    ) -> np.ndarray:
        """Scores candidate items for one user.

        Items' features, of candidates and behaviors, may be left out where the model's index holds them: the server
        looks them up by item id. Those that are given count in their place.

        Args:
            user: by name, the features of the user and of the request, one value each (a list, where the feature is
                multi-valued), and the columns of each sequence, oldest behavior first; the model looks at the newest.
            candidates: by name, the features of the items, one value per candidate: lists, NumPy or Arrow arrays.
            version: of the model, its number or a label of the server's; None for the newest.
            timeout_s: of this call; None: the client's.
        Returns:
            float32 [C], the click probabilities in the order of the candidates.
        Raises:
            ValueError: a feature is missing or unknown, of another type, or lengths differ.
            PredictError: the server refuses, or does not answer in time; its kinds say which.
        """
        return self._run(self._rank(user, candidates, version, self._grpc, timeout_s))["score"]

    def rank_rest(
        self, user: User, candidates: Candidates, *, version: Version = None, timeout_s: float | None = None
    ) -> np.ndarray:
        """As `rank`, over REST."""
        scores = self._run(self._rank(user, candidates, version, self._rest, timeout_s))["score"]
        return scores.astype(np.float32)

    def pre_rank(
        self, user: User, candidates: Candidates, *, version: Version = None, timeout_s: float | None = None
    ) -> np.ndarray:
        """Scores thousands of items for one user by the light head of a model, to choose the candidates of `rank`.

        Takes what `rank` does, but for the items' features that the model's index holds: they are always looked up.

        Returns:
            float32 [C], scores in the order of the candidates.
        Raises:
            ValueError: as `rank`, and where the model has no such head.
            PredictError: the server refuses, or does not answer in time; its kinds say which.
        """
        return self._run(self._rank(user, candidates, version, self._grpc, timeout_s, PRE_RANK))["score"]

    def top(
        self, count: int, user: User, candidates: Candidates, *, timeout_s: float | None = None
    ) -> list[tuple[int | str, float]]:
        """Returns the ids of the best `count` of the candidates of `rank` with their scores, best first."""
        listed = with_listed_ids(candidates)
        return best(count, listed, self.rank(user, listed, timeout_s=timeout_s))

    def predict(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str = "serving_default",
        *,
        version: Version = None,
        outputs: typing.Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Arrays:
        """Calls a signature of one of the servers over gRPC.

        A signature that reads is tried again as `rank` is. `upsert_items`, which writes, is sent once, and by a client
        of one server alone: each server has its own tables, so that an upsert must reach each. Where it fails with
        `Unavailable` or `DeadlineExceeded`, it may have been applied; sent again as it was, it changes nothing more.

        Args:
            inputs: arrays by name, of the signature's dtypes.
            signature: its name.
            version: of the model, its number or a label of the server's; None for the newest.
            outputs: the outputs wanted; none named: all.
            timeout_s: of this call; None: the client's.
        Returns:
            The outputs by name.
        Raises:
            ValueError: an upsert, and the client has several servers.
            PredictError: the server refuses, or does not answer in time; its kinds say which.
        """
        return self._run(self._predict(inputs, signature, version, outputs, self._grpc, timeout_s))

    def predict_rest(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str = "serving_default",
        *,
        version: Version = None,
        timeout_s: float | None = None,
    ) -> Arrays:
        """Calls a signature over REST; floats come back as float64, a lone output under the name "output"."""
        return self._run(self._predict(inputs, signature, version, (), self._rest, timeout_s))

    def versions(self, *, timeout_s: float | None = None) -> list[int]:
        """Returns the versions in service at one of the servers, ascending."""
        return self._run(self._versions(timeout_s))

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._http.close()

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        """Takes a flow's steps, one after another."""
        try:
            step = next(flow)
            while True:
                try:
                    found = self._take(step)
                except (errors.PredictError, ValueError) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(found)
        except StopIteration as done:
            return done.value
        finally:
            flow.close()  # where a step fails otherwise, or is interrupted: what the flow holds is given back

    def _take(self, step: Step) -> typing.Any:
        if isinstance(step, Call):
            return self._call(step)
        if isinstance(step, Work):
            return step.function()
        return self._send(step) if isinstance(step, Send) else time.sleep(step.seconds)

    def _call(self, step: Call) -> typing.Any:
        if step.replica.target is None:
            raise ValueError("`target` must be given for calls over gRPC.")
        metadata = [*self._access.metadata(), *step.metadata]
        try:
            return self._calls[step.replica, step.method](step.request, timeout=step.timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise errors.of(error.code().name, error.details()) from error

    def _send(self, step: Send) -> typing.Any:
        if step.replica.url is None:
            raise ValueError("`rest_url` must be given for calls over REST.")
        return self._http.send(step, self._connect_s)
