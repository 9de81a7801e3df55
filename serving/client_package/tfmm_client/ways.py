"""The two ways to a server: what is asked of it and what it answers, over gRPC and over REST."""

from __future__ import annotations

import contextlib
import json
import typing

import numpy as np

from tfmm_client import errors, messages, tensors, versions
from tfmm_client import inputs as inputs_lib
from tfmm_client.inputs import RANK, Inputs
from tfmm_client.replicas import Deadline, Replica
from tfmm_client.steps import Call, Flow, Send
from tfmm_client.versions import Version

Arrays = dict[str, np.ndarray]
Metadata = typing.Sequence[tuple[str, str]]


class Answer(typing.NamedTuple):
    """The outputs of a signature by name, and the version that gave them; over REST it is not said."""

    outputs: Arrays
    version: int | None


class Way(typing.Protocol):
    """How a model is asked."""

    def known(
        self, replica: Replica, version: Version, deadline: Deadline, asked: str = RANK
    ) -> Flow[tuple[int, Inputs]]:
        """Asks for the number of a version, and what its `rank`, or what is asked for, takes."""

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
        """Calls a signature."""


class Grpc:
    """Over gRPC."""

    def __init__(self, model_name: str):
        self._model_name = model_name

    def known(
        self, replica: Replica, version: Version, deadline: Deadline, asked: str = RANK
    ) -> Flow[tuple[int, Inputs]]:
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._choose(request, version)
        answer = yield Call(replica, messages.METADATA, request, deadline.left_s())
        signatures = messages.SignatureDefMap.FromString(answer.metadata["signature_def"].value).signature_def
        found = {
            name: {
                key: (one.dtype, [dim.size for dim in one.tensor_shape.dim])
                for key, one in signature.inputs.items()
            }
            for name, signature in signatures.items()
        }
        return answer.model_spec.version.value, inputs_lib.of_signatures(found, asked)

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
        request = messages.PredictRequest(output_filter=outputs)
        request.model_spec.signature_name = signature
        self._choose(request, version)
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tensors.to_proto(value))
        answer = yield Call(replica, messages.PREDICT, request, deadline.left_s(), metadata)
        found = {name: tensors.to_array(value) for name, value in answer.outputs.items()}
        return Answer(found, answer.model_spec.version.value)

    def versions(self, replica: Replica, deadline: Deadline) -> Flow[list[int]]:
        """Asks for the versions in service."""
        request = messages.GetModelStatusRequest()
        self._choose(request, None)
        answer = yield Call(replica, messages.STATUS, request, deadline.left_s())
        return sorted(one.version for one in answer.model_version_status if one.state == messages.AVAILABLE)

    def _choose(self, request: typing.Any, version: Version) -> None:
        request.model_spec.name = self._model_name
        versions.choose(request.model_spec, version)


class Rest:
    """Over REST: floats come as float64, a lone output under the name "output"."""

    def __init__(self, model_name: str):
        self._model_name = model_name

    def known(
        self, replica: Replica, version: Version, deadline: Deadline, asked: str = RANK
    ) -> Flow[tuple[int, Inputs]]:
        answer = yield Send(replica, self._path(version, "/metadata"), None, deadline.left_s())
        with _understood(answer):
            found = {
                name: {key: _tensor_info(one) for key, one in signature["inputs"].items()}
                for name, signature in answer["metadata"]["signature_def"]["signature_def"].items()
            }
            number = int(answer["model_spec"]["version"])
        return number, inputs_lib.of_signatures(found, asked)

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
        columns = {name: tensors.plain(np.asarray(value)) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        answer = yield Send(replica, self._path(version, ":predict"), body, deadline.left_s())
        with _understood(answer):
            found = answer["outputs"]
            named = found if isinstance(found, dict) else {"output": found}
            arrays = {name: np.asarray(value) for name, value in named.items()}
            return Answer({name: arrays[name] for name in outputs or arrays}, None)

    def _path(self, version: Version, call: str) -> str:
        return f"/v1/models/{self._model_name}{versions.path(version)}{call}"


@contextlib.contextmanager
def _understood(answer: typing.Any) -> typing.Iterator[None]:
    """Raises ServerError where an answer is none of such a server's, such as a proxy's own."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.ServerError("200", f"no answer of TensorFlow Serving's REST API: {str(answer)[:200]}") from error


def _tensor_info(described: typing.Mapping[str, typing.Any]) -> tuple[int, list[int]]:
    """Returns data type and shape of a tensor as the REST API describes it."""
    shape = [int(dim["size"]) for dim in described["tensor_shape"].get("dim", [])]
    return messages.DATA_TYPES[described["dtype"]], shape
