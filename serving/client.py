"""Ranking client of TensorFlow Serving and of the embedded server, over gRPC or REST.

with RankingClient("127.0.0.1:8500", "http://127.0.0.1:8501") as client:
    scores = client.rank(
        user={"user_id": 7, "behavior_item_ids": [3, 5], "behavior_categories": [1, 1]},
        candidates={"item_id": [11, 12], "category": [1, 2]},
    )
    scores = client.rank({"user_id": 7, "behavior_item_ids": [3, 5]}, {"item_id": [11, 12]})  # categories as indexed
"""

from __future__ import annotations

import collections.abc
import functools
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

from serving import channel
from serving import versions as versions_lib
from serving.client_values import Input, Inputs, Value, as_row
from serving.versions import Version

T = typing.TypeVar("T")
RANK, PRE_RANK = "rank", "pre_rank"  # signatures, whose inputs the server says
_REFUSALS = ("INVALID_ARGUMENT", "400")  # codes of requests that the model cannot take
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class PredictError(Exception):
    """A server's answer other than OK, with its message; `code` is gRPC's name or the HTTP status."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


class RankingClient:
    """Scores candidates for users, over gRPC (`rank`, the fast way) or REST (`rank_rest`).

    gRPC goes through the official stubs, tensors as raw bytes. Calls from several threads are safe. What `rank` takes
    is asked of the server once, and again where a request does not fit: another version may be in service by then.

    Args:
        target: host:port of gRPC.
        rest_url: such as http://127.0.0.1:8501; needed by the REST calls alone.
        model_name: the model's name at the server.
        timeout_s: per call; it travels with the call, so that a server does not work for nobody.
        access: what the server asks of its callers: `Access(ca_file=...)` for TLS, a token for upserts.
    Raises:
        ValueError: a token would leave this machine without TLS.
    """

    def __init__(
        self,
        target: str,
        rest_url: str | None = None,
        model_name: str = "tfmm",
        *,
        timeout_s: float = 10.0,
        access: channel.Access = channel.NO_ACCESS,
    ):
        self._target, self._rest_url = target, rest_url
        self._model_name, self._timeout_s = model_name, timeout_s
        access.verify(target, rest_url)
        self._metadata = access.metadata()
        self._channel = access.open(target, _OPTIONS)
        context = access.context() if (rest_url or "").startswith("https:") else None
        self._opener = urllib.request.build_opener(channel.NoRedirect, urllib.request.HTTPSHandler(context=context))
        self._predictions = prediction_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._inputs: dict[tuple[Version, str], Inputs] = {}  # by the version asked for, and the signature

    def rank(
        self,
        user: typing.Mapping[str, Value],
        candidates: typing.Mapping[str, typing.Iterable[Value]],
        *,
        version: Version = None,
    ) -> np.ndarray:
        """Scores candidate items for one user.

        Items' features, of candidates and behaviors, may be left out where the model's index holds them: the server
        looks them up by item id. Those that are given count in their place.

        Args:
            user: by name, the features of the user and of the request, one value each (a list, where the feature is
                multi-valued), and the columns of each sequence, oldest behavior first; the model looks at the newest.
            candidates: by name, the features of the items, one value per candidate: lists, NumPy or Arrow arrays.
            version: of the model, its number or a label of the server's; None for the newest.
        Returns:
            float32 [C], the click probabilities in the order of the candidates.
        Raises:
            ValueError: a feature is missing or unknown, of another type, or lengths differ.
            PredictError: the server refuses, or does not answer in time.
        """
        predict = functools.partial(self.predict, outputs=("score",))
        return self._ranked(user, candidates, version, predict)["score"]

    def rank_rest(
        self,
        user: typing.Mapping[str, Value],
        candidates: typing.Mapping[str, typing.Iterable[Value]],
        *,
        version: Version = None,
    ) -> np.ndarray:
        """As `rank`, over REST."""
        return self._ranked(user, candidates, version, self.predict_rest)["score"].astype(np.float32)

    def pre_rank(
        self,
        user: typing.Mapping[str, Value],
        candidates: typing.Mapping[str, typing.Iterable[Value]],
        *,
        version: Version = None,
    ) -> np.ndarray:
        """Scores thousands of items for one user by the light head of a model, to choose the candidates of `rank`.

        Takes what `rank` does, but for the items' features that the model's index holds: they are always looked up.

        Returns:
            float32 [C], scores in the order of the candidates.
        Raises:
            ValueError: as `rank`, and where the model has no such head.
            PredictError: the server refuses, or does not answer in time.
        """
        predict = functools.partial(self.predict, outputs=("score",))
        return self._ranked(user, candidates, version, predict, PRE_RANK)["score"]

    def top(
        self,
        count: int,
        user: typing.Mapping[str, Value],
        candidates: typing.Mapping[str, typing.Iterable[Value]],
    ) -> list[tuple[int | str, float]]:
        """Returns the ids of the best `count` of the candidates of `rank` with their scores, best first."""
        if "item_id" not in candidates:
            raise ValueError(f"`candidates` must have 'item_id'. Received: {sorted(candidates)}.")
        ids = _plain_list(candidates["item_id"], "item_id")
        scores = self.rank(user, {**candidates, "item_id": ids})
        order = np.argsort(-scores, kind="stable")[:count]
        return [(ids[i], float(scores[i])) for i in order]

    def predict(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str = "serving_default",
        *,
        version: Version = None,
        outputs: typing.Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Calls a signature over gRPC.

        Args:
            inputs: arrays by name, of the signature's dtypes.
            signature: its name.
            version: of the model, its number or a label of the server's; None for the newest.
            outputs: the outputs wanted; none named: all.
        Returns:
            The outputs by name.
        Raises:
            PredictError: the server refuses, or does not answer in time.
        """
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name, request.model_spec.signature_name = self._model_name, signature
        versions_lib.choose(request.model_spec, version)
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value)))
        response = self._call(self._predictions.Predict, request)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def predict_rest(
        self,
        inputs: typing.Mapping[str, typing.Any],
        signature: str = "serving_default",
        *,
        version: Version = None,
    ) -> dict[str, np.ndarray]:
        """Calls a signature over REST; floats come back as float64, a lone output under the name "output"."""
        columns = {name: _plain(np.asarray(value)) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        outputs = self._call_rest(f"{versions_lib.path(version)}:predict", body)["outputs"]
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

    def _ranked(
        self,
        user: typing.Mapping[str, Value],
        candidates: typing.Mapping[str, typing.Iterable[Value]],
        version: Version,
        predict: typing.Callable[..., dict[str, np.ndarray]],
        asked: str = RANK,
    ) -> dict[str, np.ndarray]:
        """Sends a request of `rank` or `pre_rank`, and once more where what it takes has changed meanwhile."""
        known = self._inputs.get((version, asked))
        if known is None:
            self._inputs[version, asked] = self._find_inputs(version, asked)
        try:
            signature, inputs = rank_request(user, candidates, self._inputs[version, asked], asked)
            return predict(inputs, signature, version=version)
        except (ValueError, PredictError) as error:
            is_of_inputs = isinstance(error, ValueError) or error.code in _REFUSALS
            found = self._find_inputs(version, asked) if known is not None and is_of_inputs else known
            if found is None or found == known:
                raise
        self._inputs[version, asked] = found
        signature, inputs = rank_request(user, candidates, found, asked)
        return predict(inputs, signature, version=version)

    def _find_inputs(self, version: Version, asked: str = RANK) -> Inputs:
        """Asks the server for the inputs of a signature, and which of `rank`'s `rank_ids` does without."""
        signatures = get_model_metadata_pb2.SignatureDefMap()
        self._metadata_of(version).metadata["signature_def"].Unpack(signatures)
        known = signatures.signature_def
        if asked not in known:
            raise ValueError(
                f"`{asked}` must be a signature of the model; a pre-ranking head is made by `tfmm train --head "
                f"pre-ranking`. Received: {', '.join(sorted(known))}."
            )
        needed = set(known["rank_ids" if asked == RANK and "rank_ids" in known else asked].inputs)
        found = {}
        for name, info in known[asked].inputs.items():
            shape = [dim.size for dim in info.tensor_shape.dim]
            dtype = tf.as_dtype(info.dtype).as_numpy_dtype
            found[name] = Input(dtype, len(shape) == 2, shape[0] == 1, name not in needed)
        return found

    def _metadata_of(self, version: Version) -> get_model_metadata_pb2.GetModelMetadataResponse:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model_name
        versions_lib.choose(request.model_spec, version)
        return self._call(self._predictions.GetModelMetadata, request)

    def _call(self, method: typing.Callable[..., T], request: typing.Any) -> T:
        try:
            return method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise PredictError(error.code().name, error.details()) from error

    def _call_rest(self, path: str, body: bytes) -> dict[str, typing.Any]:
        if self._rest_url is None:
            raise ValueError("`rest_url` must be given for calls over REST.")
        url = f"{self._rest_url.rstrip('/')}/v1/models/{self._model_name}{path}"
        headers = {"Content-Type": "application/json", channel.TIME_OUT: str(round(1e3 * self._timeout_s))}
        request = urllib.request.Request(url, body, headers | dict(self._metadata))
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise PredictError(str(error.code), _error_text(error.read())) from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise PredictError("UNAVAILABLE", str(error)) from error


def rank_request(
    user: typing.Mapping[str, Value],
    candidates: typing.Mapping[str, typing.Iterable[Value]],
    wanted: Inputs,
    asked: str = RANK,
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the signature for what is given, as `rank` or `rank_ids`, and its tensors; what is left out is empty.

    Args:
        user, candidates: as `RankingClient.rank` takes them.
        wanted: the signature's inputs.
        asked: the signature; `rank` may become `rank_ids`.
    Raises:
        ValueError: a feature is missing or unknown, of another type, or lengths differ.
    """
    for side, given, names in (
        ("user", user, {name for name, found in wanted.items() if found.is_user}),
        ("candidates", candidates, {name for name, found in wanted.items() if not found.is_user}),
    ):
        optional = {name for name in names if wanted[name].is_optional}
        if missing := sorted(names - optional - set(given)):
            raise ValueError(f"`{side}` must have {sorted(names)}, as the model was exported. Missing: {missing}.")
        if unknown := sorted(set(given) - names):
            raise ValueError(f"`{side}` must have {sorted(names)} and no others. Received: {unknown}.")
    inputs = {name: as_tensor([value], wanted[name], name) for name, value in user.items()}
    inputs |= {name: as_tensor(_plain_list(v, name), wanted[name], name) for name, v in candidates.items()}
    count = len(inputs["item_id"])
    for name in candidates:
        if len(inputs[name]) != count:
            raise ValueError(f"`{name}` must have {count} entries. Received: {len(inputs[name])}.")
    optional = {name for name, found in wanted.items() if found.is_optional}
    if optional and not optional & set(inputs):
        return "rank_ids", inputs
    for name in optional & set(candidates):
        inputs[name] = _with_a_place(inputs[name], wanted[name])
    for name in optional - set(inputs):
        inputs[name] = as_tensor([[]] if wanted[name].is_list else [], wanted[name], name)
    return asked, inputs


def as_tensor(rows: typing.Sequence[Value], wanted: Input, name: str = "values") -> np.ndarray:
    """Returns rows as a tensor; None, and what pads lists of different lengths, is missing: 0, "" or NaN.

    Args:
        rows: one value per row, or one list of values.
        wanted: the input that they are for.
        name: said in errors.
    Raises:
        ValueError: a value is of another type.

    >>> as_tensor([3, None], Input(np.int64, False, False))
    array([3, 0])
    >>> as_tensor([["a"], []], Input(object, True, False))
    array([[b'a'],
           [b'']], dtype=object)
    """
    if not wanted.is_list:
        return as_row(rows, wanted, name)
    lists = [_plain_list([] if row is None else row, name) for row in rows]
    length = max((len(row) for row in lists), default=0)
    flat = as_row([value for row in lists for value in (*row, *[None] * (length - len(row)))], wanted, name)
    return flat.reshape(len(lists), length)


def _with_a_place(values: np.ndarray, wanted: Input) -> np.ndarray:
    """Returns lists with room for a value at least: an input without any is one that is left out."""
    if not wanted.is_list or values.shape[1]:
        return values
    return as_tensor([[None]] * len(values), wanted)


def _plain_list(values: typing.Any, name: str) -> list[typing.Any]:
    """Returns a list of Python values, out of a list, a NumPy or an Arrow array."""
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
    if isinstance(values, str | bytes | collections.abc.Mapping) or not isinstance(values, collections.abc.Iterable):
        raise ValueError(f"`{name}` must be a list of values, or an array. Received: {values!r}.")
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
