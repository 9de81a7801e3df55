"""A client that logs what it ranks, for servers that keep no log of it, such as TensorFlow Serving.

    log = served_log.Log("served", "folder:///logs/served")
    with LoggingClient("127.0.0.1:8500", log=log) as client:
        scores = client.rank(user, candidates, request_id="r1")
    log.close()
"""

from __future__ import annotations

import functools
import time
import typing
import uuid

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving import client, served_log, served_record
from serving import versions as versions_lib
from serving.versions import Version
from tfmm.export.signatures import LOGGED


class LoggingClient(client.RankingClient):
    """As `RankingClient`, over gRPC; `rank` asks the signature that also says what it scored by, and writes it down.

    Args:
        target, **settings: as there.
        log: of what is ranked, closed by its owner; None: none, such as of a server that logs by itself.
    """

    def __init__(self, target: str, *, log: served_log.Log | None, **settings: typing.Any):
        super().__init__(target, **settings)
        self._log = log

    def rank(  # type: ignore[override]
        self,
        user: typing.Mapping[str, client.Value],
        candidates: typing.Mapping[str, typing.Iterable[client.Value]],
        *,
        version: Version = None,
        request_id: str | None = None,
    ) -> np.ndarray:
        """As `RankingClient.rank`; `request_id` is the record's, by which events tell what was shown; None: a new one.

        Raises:
            FullError: the log has no place, so that nothing is asked.
        """
        predict = functools.partial(self._predict_logged, request_id or uuid.uuid4().hex)
        return self._ranked(user, candidates, version, predict)["score"]

    def _predict_logged(
        self, request_id: str, inputs: typing.Mapping[str, np.ndarray], signature: str, *, version: Version
    ) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model_name
        request.model_spec.signature_name = signature if self._log is None else LOGGED[signature]
        versions_lib.choose(request.model_spec, version)
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value)))
        call = functools.partial(
            self._predictions.Predict,
            metadata=[*self._metadata, (served_record.REQUEST_ID, request_id)],
        )
        if self._log is None or not self._log.takes(request_id):
            return self._answer(call, request)[0]
        with self._log.place() as place:
            found, answered_by = self._answer(call, request)
            of_user = [name for name, one in self._inputs[version, client.RANK].items() if one.is_user]
            ranked = served_record.Ranked(
                request_id, time.time(), self._model_name, answered_by, inputs, found, of_user, self._log.sample_rate
            )
            place.fill(functools.partial(served_record.fields, ranked))
        return found

    def _answer(
        self, call: typing.Callable[..., typing.Any], request: predict_pb2.PredictRequest
    ) -> tuple[dict[str, np.ndarray], int]:
        """Returns the outputs, and the version that gave them."""
        response = self._call(lambda message, timeout, metadata: call(message, timeout=timeout), request)
        found = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
        return found, response.model_spec.version.value
