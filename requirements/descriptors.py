"""Writes the descriptors of TensorFlow Serving's messages for tfmm_client, from the installed tensorflow-serving-api.

python requirements/descriptors.py
"""

from __future__ import annotations

import pathlib

from google.protobuf import descriptor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

(FILE,) = (pathlib.Path(__file__).resolve().parents[1] / "serving/client_package/tfmm_client").glob("*.binpb")


def descriptors() -> bytes:
    """Returns a FileDescriptorSet of what the client's calls need, each file after those that it needs."""
    found: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(file) -> None:  # type: ignore[no-untyped-def]
        for needed in file.dependencies:
            add(needed)
        if file.name not in found:
            found[file.name] = descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb)

    for module in (predict_pb2, get_model_metadata_pb2, get_model_status_pb2):
        add(module.DESCRIPTOR)
    return descriptor_pb2.FileDescriptorSet(file=found.values()).SerializeToString()


if __name__ == "__main__":
    FILE.write_bytes(descriptors())
