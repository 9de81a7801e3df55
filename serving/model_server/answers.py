"""Answers every request about models from the versions in service, the same for gRPC and REST."""

from __future__ import annotations

import contextlib
import typing

from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.model_server import inference, predict, sources
from serving.model_server.access import Guard
from serving.model_server.errors import INVALID_ARGUMENT, ServingError
from serving.model_server.logged import Logs, Recording, request_id
from serving.model_server.manager import ModelManager
from serving.model_server.servable import Servable
from tfmm.export.signatures import STATUS, UPSERT

METADATA_FIELD = "signature_def"  # the one that GetModelMetadata knows


class Answers:
    """One method per call; each raises ServingError or tf.errors.OpError.

    Args:
        manager: lends the versions.
        as_tensor_content: whether outputs of Predict travel as raw bytes instead of typed value lists.
        verify_methods: whether the signature's `method_name` must be that of the call.
        guard: says who may write.
        logs: of what is served.
    """

    def __init__(
        self,
        manager: ModelManager,
        *,
        as_tensor_content: bool = False,
        verify_methods: bool = False,
        guard: Guard | None = None,
        logs: Logs = Logs(),  # noqa: B008 (a tuple)
    ):
        self.manager, self.logs = manager, logs
        self.guard = guard or Guard()
        self._as_tensor_content = as_tensor_content
        self._verify_methods = verify_methods

    def request_id(self, given: str | bytes | None) -> str:
        """Returns the id under which a request is logged, "" where nothing is; raises as `logged.request_id` does."""
        return request_id(given) if self.logs.all() else ""

    def predict(
        self, request: predict_pb2.PredictRequest, authorization: str | bytes | None = None, request_id: str = ""
    ) -> predict_pb2.PredictResponse:
        _verify_spec(request)
        with self.lend_for(request.model_spec, authorization, request_id) as servable:
            return predict.predict(servable, request, as_tensor_content=self._as_tensor_content)

    @contextlib.contextmanager
    def lend_for(
        self, spec: model_pb2.ModelSpec, authorization: str | bytes | None, request_id: str = ""
    ) -> typing.Iterator[Servable]:
        """Lends the version whose signature a ModelSpec names, if this caller may call it; it logs what it is to."""
        if spec.signature_name == UPSERT:
            self.guard.verify(authorization)
        with self.manager.lend(*target(spec), also_waiting=spec.signature_name in (UPSERT, STATUS)) as servable:
            with sources.told(servable.sources):
                yield typing.cast(Servable, Recording(servable, self.logs, request_id)) if request_id else servable

    def classify(self, request: classification_pb2.ClassificationRequest) -> classification_pb2.ClassificationResponse:
        with self._lend(request) as servable:
            return inference.classify(servable, request, verify_method=self._verify_methods)

    def regress(self, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
        with self._lend(request) as servable:
            return inference.regress(servable, request, verify_method=self._verify_methods)

    def multi_inference(self, request: inference_pb2.MultiInferenceRequest) -> inference_pb2.MultiInferenceResponse:
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self.manager.lend(*target(spec)) as servable:
            return inference.multi_inference(servable, request, verify_methods=self._verify_methods)

    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the state of one or all versions of a model."""
        _verify_spec(request)
        response = get_model_status_pb2.GetModelStatusResponse()
        for entry in self.manager.status(*target(request.model_spec)):
            status = response.model_version_status.add(version=entry.version, state=entry.state)
            status.status.error_code = entry.code
            status.status.error_message = entry.message
        return response

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Returns the signatures of a model."""
        unknown = [field for field in request.metadata_field if field != METADATA_FIELD]
        if unknown or not request.metadata_field:
            raise ServingError(
                INVALID_ARGUMENT,
                f"`metadata_field` must be {METADATA_FIELD}. Received: {list(request.metadata_field)}.",
            )
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._lend(request) as servable:
            for key, definition in servable.signatures.items():
                signatures.signature_def[key].CopyFrom(definition)
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
        response.metadata[METADATA_FIELD].Pack(signatures)
        return response

    def _lend(self, request: typing.Any) -> typing.ContextManager[Servable]:
        _verify_spec(request)
        return self.manager.lend(*target(request.model_spec))


def _verify_spec(request: typing.Any) -> None:
    if not request.HasField("model_spec"):
        raise ServingError(INVALID_ARGUMENT, "Missing ModelSpec")


def target(spec: model_pb2.ModelSpec) -> tuple[str, int | None, str | None]:
    """Returns name, version and label that a request's ModelSpec asks for."""
    return spec.name, spec.version.value if spec.HasField("version") else None, spec.version_label or None
