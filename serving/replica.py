"""One server, as the replicator sees it: its versions, how far their tables are, and the rows that they are sent."""

from __future__ import annotations

import typing

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import channel
from tfmm.export.signatures import STATUS, UPSERT
from tfmm.index import rows as rows_lib

NO_INDEX = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)  # of a version without tables
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class TableStatus(typing.NamedTuple):
    """What a loaded version says about one of its tables."""

    encoder_version: str
    watermark: int
    size: int
    capacity: int


class Replica:
    """One server, as the replicator sees it.

    Args:
        target: host:port of its gRPC.
        model_name: the model's name there.
        timeout_s: per call.
        access: what the server asks of its callers.
    """

    def __init__(
        self, target: str, model_name: str, timeout_s: float = 10.0, access: channel.Access = channel.NO_ACCESS
    ):
        self.target, self._model_name, self._timeout_s = target, model_name, timeout_s
        self._metadata = access.metadata()
        self._channel = access.open(target, _CHANNEL_OPTIONS)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def versions(self) -> dict[int, bool]:
        """Returns the versions that are loaded, or load, and whether they are in service."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model_name
        response = self._models.GetModelStatus(request, timeout=self._timeout_s, metadata=self._metadata)
        states = get_model_status_pb2.ModelVersionStatus
        found = {status.version: status.state for status in response.model_version_status}
        return {
            version: state == states.AVAILABLE
            for version, state in sorted(found.items())
            if state in (states.AVAILABLE, states.LOADING)
        }

    def say_caught_up(self, version: int, found: typing.Mapping[str, TableStatus]) -> None:
        """Says that a version whose tables are as `tables` found them has the index; one that waits is served then."""
        seen = channel.watermarks_text({modality: status.watermark for modality, status in found.items()})
        self._predict(version, STATUS, {}, [(channel.CAUGHT_UP, seen)])

    def tables(self, version: int) -> dict[str, TableStatus]:
        """Returns the state of a version's tables by modality."""
        answer = self._predict(version, STATUS, {})
        columns = [answer[name].tolist() for name in ("modality", "encoder_version", "watermark", "size", "capacity")]
        return {
            modality.decode(): TableStatus(encoder.decode(), *numbers) for modality, encoder, *numbers in zip(*columns)
        }

    def upsert(self, version: int, modality: str, encoder_version: str, rows: rows_lib.IndexRows) -> np.ndarray:
        """Writes rows into a version's table; returns int32 [n] statuses, see `GraphTable.upsert`."""
        return self._predict(
            version,
            UPSERT,
            {
                "modality": np.array(modality),
                "item_ids": rows.ids,
                "rows": rows.rows,
                "scales": rows.scales,
                "sequences": rows.sequences,
                "encoder_version": np.array(encoder_version),
            },
        )["statuses"]

    def _predict(
        self,
        version: int,
        signature: str,
        inputs: typing.Mapping[str, np.ndarray],
        metadata: typing.Sequence[tuple[str, str]] = (),
    ) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model_name, signature
        request.model_spec.version.value = version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        response = self._predictions.Predict(
            request, timeout=self._timeout_s, metadata=[*self._metadata, *metadata]
        )
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def versions_with(
    target: str, model_name: str, modality: str, encoder_version: str, access: channel.Access = channel.NO_ACCESS
) -> list[int]:
    """Returns the loaded versions of a server whose rows an encoder made, and those that still load.

    Raises:
        ValueError: the server does not answer.
    """
    replica, found = Replica(target, model_name, access=access), []
    try:
        for version in replica.versions():
            try:
                table = replica.tables(version).get(modality)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    found.append(version)
                elif error.code() not in NO_INDEX:
                    raise
            else:
                found += [version] if table is not None and table.encoder_version == encoder_version else []
    except grpc.RpcError as error:
        told = f"{error.code().name}: {error.details()}"
        raise ValueError(f"A server must answer at {target}. Received: {told}.") from error
    finally:
        replica.close()
    return found
