"""Answers about models, the same over gRPC and REST: version status and signatures."""

from __future__ import annotations

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from serving.model_server.manager import ModelManager


def status_response(
    manager: ModelManager, name: str, version: int | None, label: str | None
) -> get_model_status_pb2.GetModelStatusResponse:
    """Returns the state of one or all versions of a model.

    Raises:
        ServingError: NOT_FOUND for an unknown model or version.
    """
    response = get_model_status_pb2.GetModelStatusResponse()
    for entry in manager.status(name, version, label):
        status = response.model_version_status.add(version=entry.version, state=entry.state)
        status.status.error_code = entry.code
        status.status.error_message = entry.message
    return response


def metadata_response(
    manager: ModelManager, name: str, version: int | None, label: str | None
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Returns the signatures of a model.

    Raises:
        ServingError: NOT_FOUND for an unknown model or version.
    """
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with manager.lend(name, version, label) as servable:
        for key, definition in servable.signatures.items():
            signatures.signature_def[key].CopyFrom(definition)
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures)
    return response
