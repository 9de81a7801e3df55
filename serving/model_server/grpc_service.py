"""TensorFlow Serving's gRPC services, and the standard health service, on grpc.aio."""

from __future__ import annotations

import asyncio
import typing

import grpc
from google.protobuf import wrappers_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.model_server import config, errors, predict
from serving.model_server.execution import Executor
from serving.model_server.manager import ModelManager
from serving.model_server.responses import metadata_response, status_response

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3  # grpc.health.v1.HealthCheckResponse
_HEALTH_NAMES = (
    "",
    "ModelService",
    "PredictionService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
)
_HEALTH_POLL_S = 0.2


async def _abort(context: grpc.aio.ServicerContext, error: Exception) -> typing.NoReturn:
    failure = errors.from_exception(error)
    await context.abort(_CODES.get(failure.code, grpc.StatusCode.UNKNOWN), failure.message)
    raise AssertionError  # abort raises


def _target(spec: model_pb2.ModelSpec) -> tuple[str, int | None, str | None]:
    return spec.name, spec.version.value if spec.HasField("version") else None, spec.version_label or None


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; Classify, Regress and MultiInference answer UNIMPLEMENTED."""

    def __init__(self, manager: ModelManager, executor: Executor, *, as_tensor_content: bool):
        self._manager = manager
        self._executor = executor
        self._as_tensor_content = as_tensor_content

    async def Predict(self, request: predict_pb2.PredictRequest, context: grpc.aio.ServicerContext):
        try:
            return await self._executor.submit(self._predict, request)
        except Exception as error:  # every failure becomes a status
            await _abort(context, error)

    def _predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        with self._manager.lend(*_target(request.model_spec)) as servable:
            return predict.predict(servable, request, as_tensor_content=self._as_tensor_content)

    async def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.aio.ServicerContext
    ):
        try:
            unknown = [f for f in request.metadata_field if f != "signature_def"]
            if unknown or not request.metadata_field:
                raise errors.ServingError(
                    errors.INVALID_ARGUMENT, f"Metadata field {(unknown or [''])[0]} is not supported"
                )
            return metadata_response(self._manager, *_target(request.model_spec))
        except Exception as error:  # every failure becomes a status
            await _abort(context, error)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, manager: ModelManager):
        self._manager = manager

    async def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.aio.ServicerContext
    ):
        try:
            return status_response(self._manager, *_target(request.model_spec))
        except Exception as error:  # every failure becomes a status
            await _abort(context, error)

    async def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.aio.ServicerContext
    ):
        response = model_management_pb2.ReloadConfigResponse()
        try:
            configs = config.from_proto(request.config)
            await asyncio.get_running_loop().run_in_executor(None, self._manager.reload, configs)
        except Exception as error:  # the call itself succeeds; the response says what failed
            failure = errors.from_exception(error)
            response.status.error_code = failure.code
            response.status.error_message = failure.message
        return response


def health_handler(manager: ModelManager) -> grpc.GenericRpcHandler:
    """Returns grpc.health.v1.Health; its messages have the wire format of StringValue and Int32Value."""

    def state(request: wrappers_pb2.StringValue) -> int:
        if request.value not in _HEALTH_NAMES:
            return _SERVICE_UNKNOWN
        return _SERVING if manager.is_ready() else _NOT_SERVING

    async def check(request: wrappers_pb2.StringValue, context: grpc.aio.ServicerContext):
        if state(request) == _SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.value}")
        return wrappers_pb2.Int32Value(value=state(request))

    async def watch(request: wrappers_pb2.StringValue, context: grpc.aio.ServicerContext):
        last = None
        while True:
            now = state(request)
            if now != last:
                yield wrappers_pb2.Int32Value(value=now)
            last = now
            await asyncio.sleep(_HEALTH_POLL_S)

    coding = {
        "request_deserializer": wrappers_pb2.StringValue.FromString,
        "response_serializer": wrappers_pb2.Int32Value.SerializeToString,
    }
    return grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health",
        {
            "Check": grpc.unary_unary_rpc_method_handler(check, **coding),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, **coding),
        },
    )


def add_services(
    server: grpc.aio.Server, manager: ModelManager, executor: Executor, *, as_tensor_content: bool
) -> None:
    """Registers every service with a server."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(manager, executor, as_tensor_content=as_tensor_content), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager), server)
    server.add_generic_rpc_handlers((health_handler(manager),))
