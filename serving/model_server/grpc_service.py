"""TensorFlow Serving's gRPC services, and the standard health service, on grpc.aio."""

from __future__ import annotations

import asyncio
import time
import typing

import grpc
import tensorflow as tf
from google.protobuf import message as message_lib
from google.protobuf import wrappers_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving import channel
from serving.model_server import config, errors
from serving.model_server.answers import Answers
from serving.model_server.execution import Executor, Terms
from serving.model_server.manager import ModelManager
from serving.model_server.metrics import ServerMetrics
from serving.served_record import REQUEST_ID
from tfmm.export.signatures import STATUS

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


_MEASURED = ("Predict", "Classify", "Regress", "MultiInference")


class Statuses(grpc.aio.ServerInterceptor):
    """Turns whatever a call raises into its status, and counts it.

    A message that cannot be parsed is the client's fault, and said so.
    """

    def __init__(self, metrics: ServerMetrics):
        self._metrics = metrics

    async def intercept_service(self, continuation, details):  # type: ignore[no-untyped-def]
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler

        async def answer(raw: bytes, context: grpc.aio.ServicerContext) -> typing.Any:
            started, code, request = time.perf_counter(), errors.CANCELLED, None
            try:
                request = _parse(handler.request_deserializer, raw)
                response = await handler.unary_unary(request, context)
                code = errors.OK
                return response
            except Exception as error:  # every failure becomes a status
                failure = errors.report(details.method, error)
                code = failure.code
                await context.abort(_CODES.get(failure.code, grpc.StatusCode.UNKNOWN), failure.message)
            finally:
                name = details.method.rsplit("/", 1)[-1]
                if name in _MEASURED:
                    self._metrics.record(name, "GRPC", _spec(request), code, time.perf_counter() - started)

        return grpc.unary_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)


def _spec(request: typing.Any) -> typing.Any:
    """Returns the ModelSpec of an inference request, None where it has none."""
    if isinstance(request, inference_pb2.MultiInferenceRequest):
        return request.tasks[0].model_spec if request.tasks else None
    return request.model_spec if request is not None else None


def _parse(deserializer: typing.Callable[[bytes], typing.Any], raw: bytes) -> typing.Any:
    try:
        return deserializer(raw)
    except message_lib.DecodeError as error:
        raise errors.ServingError(errors.INVALID_ARGUMENT, f"The request is no such message: {error}") from error


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, answers: Answers, executor: Executor):
        self._answers = answers
        self._executor = executor

    async def _submit(
        self, call: typing.Callable, request: typing.Any, context: grpc.aio.ServicerContext, *more: typing.Any
    ):
        left_s, spec = context.time_remaining(), _spec(request)
        deadline = None if left_s is None else time.monotonic() + left_s
        kind = (call.__name__, spec.name, spec.signature_name) if spec is not None else call.__name__
        return await self._executor.submit(call, request, *more, terms=Terms(deadline, kind, request.ByteSize()))

    async def Predict(self, request: predict_pb2.PredictRequest, context: grpc.aio.ServicerContext):
        metadata = dict(context.invocation_metadata() or ())
        authorization = metadata.get(channel.AUTHORIZATION)
        if seen := metadata.get(channel.CAUGHT_UP):
            self._answers.guard.verify(authorization)
        if request_id := self._answers.request_id(metadata.get(REQUEST_ID)):
            context.set_trailing_metadata([(REQUEST_ID, request_id)])
        response = await self._submit(self._answers.predict, request, context, authorization, request_id)
        if seen and request.model_spec.signature_name == STATUS and seen == _watermarks(response):
            self._answers.manager.mark_caught_up(response.model_spec.name, response.model_spec.version.value)
        return response

    async def Classify(self, request: classification_pb2.ClassificationRequest, context: grpc.aio.ServicerContext):
        return await self._submit(self._answers.classify, request, context)

    async def Regress(self, request: regression_pb2.RegressionRequest, context: grpc.aio.ServicerContext):
        return await self._submit(self._answers.regress, request, context)

    async def MultiInference(self, request: inference_pb2.MultiInferenceRequest, context: grpc.aio.ServicerContext):
        return await self._submit(self._answers.multi_inference, request, context)

    async def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.aio.ServicerContext
    ):
        return self._answers.metadata(request)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, answers: Answers):
        self._answers = answers

    async def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.aio.ServicerContext
    ):
        return self._answers.status(request)

    async def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.aio.ServicerContext
    ):
        self._answers.guard.verify(dict(context.invocation_metadata() or ()).get(channel.AUTHORIZATION))
        configs = config.from_proto(request.config)
        await asyncio.get_running_loop().run_in_executor(None, self._answers.manager.reload, configs)
        return model_management_pb2.ReloadConfigResponse()


def health_handler(manager: ModelManager) -> grpc.GenericRpcHandler:
    """Returns grpc.health.v1.Health; its messages have the wire format of StringValue and Int32Value."""

    def state(request: wrappers_pb2.StringValue) -> int:
        if request.value not in _HEALTH_NAMES:
            return _SERVICE_UNKNOWN
        return _SERVING if manager.is_ready() else _NOT_SERVING

    async def check(request: wrappers_pb2.StringValue, context: grpc.aio.ServicerContext):
        if state(request) == _SERVICE_UNKNOWN:
            raise errors.ServingError(errors.NOT_FOUND, f"unknown service {request.value}")
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


def add_services(server: grpc.aio.Server, answers: Answers, executor: Executor, *, with_health: bool = True) -> None:
    """Registers every service with a server that has the interceptor `Statuses`."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(answers, executor), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(answers), server)
    if with_health:
        server.add_generic_rpc_handlers((health_handler(answers.manager),))


def _watermarks(status: predict_pb2.PredictResponse) -> str | None:
    """Returns how far the tables of a version are, as its index_status says; None where its caller left that out."""
    if not {"modality", "watermark"} <= set(status.outputs):
        return None
    modalities, watermarks = (tf.make_ndarray(status.outputs[name]).tolist() for name in ("modality", "watermark"))
    return channel.watermarks_text(dict(zip([modality.decode() for modality in modalities], watermarks)))
