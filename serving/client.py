"""Ranking client of TensorFlow Serving and of the embedded server, over gRPC or REST.

with RankingClient("127.0.0.1:8500", "http://127.0.0.1:8501") as client:
    scores = client.rank(user_id=7, behavior_item_ids=[3, 5], behavior_categories=[1, 1],
                         item_ids=[11, 12], categories=[1, 2])
"""

from __future__ import annotations

import json
import typing
import urllib.error
import urllib.request

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
)
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

Id = int | str | None  # None: missing, such as the category of an item that has none
T = typing.TypeVar("T")
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class PredictError(Exception):
    """A server's answer other than OK, with its message; `code` is gRPC's name or the HTTP status."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


class RankingClient:
    """Scores candidates for users, over gRPC (`rank`, the fast way) or REST (`rank_rest`).

    gRPC goes through the official stubs, tensors as raw bytes. Calls from several threads are safe.

    Args:
        target: host:port of gRPC.
        rest_url: such as http://127.0.0.1:8501; needed by the REST calls alone.
        model_name: the model's name at the server.
        timeout_s: per call.
    """

    def __init__(self, target: str, rest_url: str | None = None, model_name: str = "tfmm", *, timeout_s: float = 10.0):
        self._target, self._rest_url = target, rest_url
        self._model_name, self._timeout_s = model_name, timeout_s
        self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._predictions = prediction_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._text_inputs: frozenset[str] | None = None

    def rank(
        self,
        user_id: Id,
        behavior_item_ids: typing.Iterable[Id],
        behavior_categories: typing.Iterable[Id],
        item_ids: typing.Iterable[Id],
        categories: typing.Iterable[Id],
        *,
        version: int | None = None,
    ) -> np.ndarray:
        """Scores candidate items for one user.

        Args:
            user_id: int or str, as the model was exported.
            behavior_item_ids: the user's behaviors, oldest first; the model looks at the newest.
            behavior_categories: their categories.
            item_ids: the candidates; a list or an Arrow array, as all of these.
            categories: their categories.
            version: of the model; None for the newest.
        Returns:
            float32 [C], the click probabilities in the order of `item_ids`.
        Raises:
            ValueError: lengths differ, or an id is of the other type.
            PredictError: the server refuses, or does not answer in time.
        """
        inputs = self._rank_inputs(user_id, behavior_item_ids, behavior_categories, item_ids, categories)
        return self.predict(inputs, "rank", version=version, outputs=("score",))["score"]

    def rank_rest(
        self,
        user_id: Id,
        behavior_item_ids: typing.Iterable[Id],
        behavior_categories: typing.Iterable[Id],
        item_ids: typing.Iterable[Id],
        categories: typing.Iterable[Id],
        *,
        version: int | None = None,
    ) -> np.ndarray:
        """As `rank`, over REST."""
        inputs = self._rank_inputs(user_id, behavior_item_ids, behavior_categories, item_ids, categories)
        return self.predict_rest(inputs, "rank", version=version)["score"].astype(np.float32)

    def top(self, count: int, **request: typing.Any) -> list[tuple[Id, float]]:
        """Returns the best `count` of the candidates of `rank` with their scores, best first."""
        request["item_ids"] = _plain_list(request["item_ids"])
        scores = self.rank(**request)
        order = np.argsort(-scores, kind="stable")[:count]
        return [(request["item_ids"][i], float(scores[i])) for i in order]

    def predict(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str = "serving_default",
        *,
        version: int | None = None,
        outputs: typing.Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Calls a signature over gRPC.

        Args:
            inputs: arrays by name, of the signature's dtypes.
            signature: its name.
            version: of the model; None for the newest.
            outputs: the outputs wanted; none named: all.
        Returns:
            The outputs by name.
        Raises:
            PredictError: the server refuses, or does not answer in time.
        """
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name, request.model_spec.signature_name = self._model_name, signature
        if version is not None:
            request.model_spec.version.value = version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value)))
        response = self._call(self._predictions.Predict, request)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def predict_rest(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str = "serving_default",
        *,
        version: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Calls a signature over REST; floats come back as float64, a lone output under the name "output"."""
        columns = {name: _plain(np.asarray(value)) for name, value in inputs.items()}
        path = "" if version is None else f"/versions/{version}"
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        outputs = self._call_rest(f"{path}:predict", body)["outputs"]
        named = outputs if isinstance(outputs, dict) else {"output": outputs}
        return {name: np.asarray(value) for name, value in named.items()}

    def versions(self) -> list[int]:
        """Returns the versions in service, ascending."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model_name
        response = self._call(self._models.GetModelStatus, request)
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        return sorted(v.version for v in response.model_version_status if v.state == available)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rank_inputs(
        self,
        user_id: Id,
        behavior_item_ids: typing.Iterable[Id],
        behavior_categories: typing.Iterable[Id],
        item_ids: typing.Iterable[Id],
        categories: typing.Iterable[Id],
    ) -> dict[str, np.ndarray]:
        if self._text_inputs is None:
            self._text_inputs = self._find_text_inputs("rank")
        columns = {
            "user_id": [user_id],
            "behavior_item_ids": _plain_list(behavior_item_ids),
            "behavior_categories": _plain_list(behavior_categories),
            "item_id": _plain_list(item_ids),
            "category": _plain_list(categories),
        }
        for name, like in (("behavior_categories", "behavior_item_ids"), ("category", "item_id")):
            if len(columns[name]) != len(columns[like]):
                raise ValueError(f"`{name}` must have {len(columns[like])} entries. Received: {len(columns[name])}.")
        inputs = {
            name: as_ids(values, is_text=name in self._text_inputs, name=name) for name, values in columns.items()
        }
        return {name: ids[None] if name.startswith("behavior") else ids for name, ids in inputs.items()}

    def _find_text_inputs(self, signature: str) -> frozenset[str]:
        """Asks the server which inputs of a signature are strings."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model_name
        response = self._call(self._predictions.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        inputs = signatures.signature_def[signature].inputs
        return frozenset(name for name, info in inputs.items() if tf.as_dtype(info.dtype) == tf.string)

    def _call(self, method: typing.Callable[..., T], request: typing.Any) -> T:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise PredictError(error.code().name, error.details()) from error

    def _call_rest(self, path: str, body: bytes) -> dict[str, typing.Any]:
        if self._rest_url is None:
            raise ValueError("`rest_url` must be given for calls over REST.")
        url = f"{self._rest_url.rstrip('/')}/v1/models/{self._model_name}{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise PredictError(str(error.code), _error_text(error.read())) from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise PredictError("UNAVAILABLE", str(error)) from error


def as_ids(values: typing.Sequence[Id], *, is_text: bool, name: str = "ids") -> np.ndarray:
    """Returns ids as int64 [n], or as bytes [n] where they are strings; None gives 0 or "" (missing).

    Raises:
        ValueError: an id is of the other type.

    >>> as_ids([3, None], is_text=False), as_ids(["a", None], is_text=True)
    (array([3, 0]), array([b'a', b''], dtype=object))
    """
    kinds = (str, bytes) if is_text else (int, np.integer)
    wrong = [value for value in values if value is not None and not isinstance(value, kinds)]
    if wrong:
        wanted = "strings" if is_text else "integers"
        raise ValueError(f"`{name}` must hold {wanted}, as the model was exported. Received: {wrong[0]!r}.")
    if not is_text:
        return np.array([0 if value is None else value for value in values], np.int64)
    result = np.empty(len(values), object)
    texts = ["" if value is None else value for value in values]
    result[:] = [text.encode() if isinstance(text, str) else text for text in texts]
    return result


def _plain_list(values: typing.Any) -> list[typing.Any]:
    """Returns a list of Python values, out of a list, a NumPy or an Arrow array."""
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            return getattr(values, method)()
    return list(values)


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
