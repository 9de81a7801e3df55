"""Ranking client of TensorFlow Serving and of the embedded server, over gRPC or REST.

with RankingClient("127.0.0.1:8500", "tfmm") as client:
    scores = client.rank(user_id=7, behavior_item_ids=[3, 5], behavior_categories=[1, 1],
                         item_ids=[11, 12], categories=[1, 2])
"""

from __future__ import annotations

import json
import types
import typing
import urllib.error
import urllib.request

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc, predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

Id = int | str
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class PredictError(Exception):
    """A server's answer other than OK, with its message; `code` is gRPC's name or the HTTP status."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


class _Client:
    """What both transports share: the calls of a ranking application."""

    def predict(self, inputs: typing.Mapping[str, typing.Any], signature: str = "serving_default", *,
                version: int | None = None) -> dict[str, np.ndarray]:  # fmt: skip
        raise NotImplementedError

    def rank(
        self,
        user_id: Id,
        behavior_item_ids: typing.Sequence[Id],
        behavior_categories: typing.Sequence[Id],
        item_ids: typing.Sequence[Id],
        categories: typing.Sequence[Id],
        *,
        version: int | None = None,
    ) -> np.ndarray:
        """Scores candidate items for one user.

        Args:
            user_id: int or str, as the model was exported.
            behavior_item_ids: the user's behaviors, oldest first; the model looks at the newest.
            behavior_categories: their categories.
            item_ids: the candidates.
            categories: their categories.
            version: of the model; None for the newest.
        Returns:
            float32 [C], the click probabilities in the order of `item_ids`.
        Raises:
            ValueError: lengths differ.
            PredictError: the server refuses.
        """
        for name, one, other in (
            ("behavior_categories", behavior_categories, behavior_item_ids),
            ("categories", categories, item_ids),
        ):
            if len(one) != len(other):
                raise ValueError(f"`{name}` must have {len(other)} entries. Received: {len(one)}.")
        inputs = {
            "user_id": as_ids([user_id]),
            "behavior_item_ids": as_ids([list(behavior_item_ids)], like=item_ids),
            "behavior_categories": as_ids([list(behavior_categories)], like=categories),
            "item_id": as_ids(item_ids),
            "category": as_ids(categories),
        }
        return self.predict(inputs, "rank", version=version)["score"]

    def top(self, count: int, **request: typing.Any) -> list[tuple[Id, float]]:
        """Returns the best `count` of the candidates of `rank` with their scores, best first."""
        scores = self.rank(**request)
        order = np.argsort(-scores, kind="stable")[:count]
        return [(request["item_ids"][i], float(scores[i])) for i in order]

    def close(self) -> None:
        """Frees the connection."""

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: types.TracebackType | None) -> None:  # fmt: skip
        self.close()


class RankingClient(_Client):
    """Calls Predict over gRPC with the official stubs; tensors travel as raw bytes.

    Args:
        target: host:port.
        model_name: the model's name at the server.
        timeout_s: per call.
    """

    def __init__(self, target: str, model_name: str = "tfmm", *, timeout_s: float = 10.0):
        self._model_name, self._timeout_s = model_name, timeout_s
        self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._predictions = prediction_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, inputs: typing.Mapping[str, typing.Any], signature: str = "serving_default", *,
                version: int | None = None) -> dict[str, np.ndarray]:  # fmt: skip
        """Calls a signature.

        Args:
            inputs: arrays by name, of the signature's dtypes.
            signature: its name.
            version: of the model; None for the newest.
        Returns:
            The outputs by name.
        Raises:
            PredictError: the server refuses, or does not answer in time.
        """
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model_name, signature
        if version is not None:
            request.model_spec.version.value = version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value)))
        try:
            response = self._predictions.Predict(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise PredictError(error.code().name, error.details()) from error
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def versions(self) -> list[int]:
        """Returns the versions in service, ascending."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model_name
        try:
            response = self._models.GetModelStatus(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise PredictError(error.code().name, error.details()) from error
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        return sorted(v.version for v in response.model_version_status if v.state == available)

    def close(self) -> None:
        self._channel.close()


class RestClient(_Client):
    """Calls predict over REST in columnar JSON: for tools and tests; gRPC is the fast way.

    Args:
        url: such as http://127.0.0.1:8501.
        model_name: the model's name at the server.
        timeout_s: per call.
    """

    def __init__(self, url: str, model_name: str = "tfmm", *, timeout_s: float = 10.0):
        self._base, self._timeout_s = f"{url.rstrip('/')}/v1/models/{model_name}", timeout_s

    def predict(self, inputs: typing.Mapping[str, typing.Any], signature: str = "serving_default", *,
                version: int | None = None) -> dict[str, np.ndarray]:  # fmt: skip
        """As RankingClient.predict; floats come back as float64, and a single output is named "output"."""
        columns = {name: _plain(np.asarray(value)) for name, value in inputs.items()}
        path = "" if version is None else f"/versions/{version}"
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        outputs = self._call(f"{path}:predict", body)["outputs"]
        named = outputs if isinstance(outputs, dict) else {"output": outputs}
        return {name: np.asarray(value) for name, value in named.items()}

    def versions(self) -> list[int]:
        """Returns the versions in service, ascending."""
        status = self._call("", None)["model_version_status"]
        return sorted(int(v["version"]) for v in status if v["state"] == "AVAILABLE")

    def _call(self, path: str, body: bytes | None) -> dict[str, typing.Any]:
        request = urllib.request.Request(self._base + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise PredictError(str(error.code), _error_text(error.read())) from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise PredictError("UNAVAILABLE", str(error)) from error


def as_ids(values: typing.Sequence[typing.Any], like: typing.Sequence[typing.Any] = ()) -> np.ndarray:
    """Returns ids as int64, or as bytes where they are strings; `like` decides where there are none.

    >>> as_ids([3, 5]).dtype, as_ids(["a"]).tolist(), as_ids([[]], like=["b"]).shape
    (dtype('int64'), [b'a'], (1, 0))
    """
    array = np.asarray(values)
    if array.dtype.kind in "US" or (not array.size and np.asarray(like).dtype.kind in "US"):
        return (np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array).astype(object)
    return array.astype(np.int64)


def _plain(array: np.ndarray) -> typing.Any:
    if array.dtype.kind in "OSU":
        flat = [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
        result = np.empty(len(flat), object)
        result[:] = flat
        return result.reshape(array.shape).tolist()
    return array.tolist()


def _error_text(body: bytes) -> str:
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")
