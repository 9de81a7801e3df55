"""Messages of TensorFlow Serving that its Python package leaves out, for config files as text protos."""

from __future__ import annotations

import typing

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def new(name: str, fields: typing.Mapping[str, typing.Any]) -> typing.Any:
    """Returns an empty message whose fields are numbered in their order.

    Args:
        name: the message's.
        fields: "STRING" or "BOOL" by name; or a pair, a message's name and its fields.

    >>> new("Outer", {"inner": ("Inner", {"path": "STRING"})}).inner.path
    ''
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"tfmm/{name}.proto", package="tfmm.serving", syntax="proto3")
    _declare(file, name, fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName(f"tfmm.serving.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)()
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)()  # protobuf 3


def _declare(
    file: descriptor_pb2.FileDescriptorProto, name: str, fields: typing.Mapping[str, typing.Any]
) -> None:
    field = descriptor_pb2.FieldDescriptorProto
    message = file.message_type.add(name=name)
    for number, (key, kind) in enumerate(fields.items(), start=1):
        if isinstance(kind, str):
            message.field.add(name=key, number=number, type=getattr(field, f"TYPE_{kind}"), label=field.LABEL_OPTIONAL)
        else:
            inner, its_fields = kind
            _declare(file, inner, its_fields)
            message.field.add(
                name=key,
                number=number,
                type=field.TYPE_MESSAGE,
                type_name=f".tfmm.serving.{inner}",
                label=field.LABEL_OPTIONAL,
            )
