"""Requests that no good client sends, made of the contract alone: each has one value that is out of all bounds."""

import math
from collections.abc import Iterator
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_TEXTS = (
    *(
        "\0",
        "x" * 70_000,
        "../../etc/passwd",
        "a\nb",
        "\u202e\U0001f600",
        "\u0663",
        "*",
        "@last",
        "{}",
        "-1",
        "nan",
        "1e999/x",
    ),
    *("9" * 30 + "-0", f"{2**64}-0", f"0-{2**64}", f"{2**64 - 1}-{2**64 - 1}", "9" * 16, "job-" + "0" * 32 + "\n"),
)
_FLOATS = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, -0.0)
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), -1, 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), -1, 2**31, 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (2**32 - 1,),
    FieldDescriptor.CPPTYPE_UINT64: (2**64 - 1,),
}
_DEEPEST = 90
"""A decoder of the client's own takes no more than 100 messages in each other."""

UNDECODABLE = (b"\xff", b"\x0a\xff", b"\x0b" * 200, b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
"""Cut short, groups that do not end, a length of no end."""


def variants(base: Message) -> Iterator[tuple[str, Message]]:
    """Copies of a request, each with one field changed, and the field's name."""
    for place, change in _changes(base.DESCRIPTOR, (), base):
        copy = type(base)()
        copy.CopyFrom(base)
        try:
            change(copy)
        except ValueError:  # a text that the client itself cannot send
            continue
        yield ".".join(place), copy


def _changes(descriptor: Any, place: tuple[str, ...], base: Message | None) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Of a message of that type; `base` is what stands there now, where something does."""
    for field in descriptor.fields:
        here, kind = (*place, field.name), field.message_type
        if kind is None:
            for value in _values(field):
                yield here, _setter(here, value, is_repeated=field.is_repeated)
        elif kind.GetOptions().map_entry or _excludes(base, field):
            continue
        elif (whole := _messages(kind.full_name)) is not None:
            for value in whole:
                yield here, _setter(here, value, is_repeated=field.is_repeated)
        elif field.is_repeated:
            for inner, change in _changes(kind, (), None):
                yield (*here, *inner), _in_new_item(here, change)
        else:
            yield from _changes(kind, here, None if base is None else getattr(base, field.name))


def _excludes(base: Message | None, field: FieldDescriptor) -> bool:
    """Whether something else stands in the one place that both could have."""
    oneof = field.containing_oneof
    return base is not None and oneof is not None and base.WhichOneof(oneof.name) not in (None, field.name)


def _values(field: FieldDescriptor) -> tuple[Any, ...]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return _TEXTS if field.type == FieldDescriptor.TYPE_STRING else (b"", b"\xff\0", b"{" * 1000)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return _FLOATS
        case FieldDescriptor.CPPTYPE_ENUM:
            return (-1, 999)
        case FieldDescriptor.CPPTYPE_BOOL:
            return ()  # both are good
        case kind:
            return _INTEGERS[kind]


def _messages(name: str) -> tuple[Message, ...] | None:
    """Of the types that everybody has."""
    times = ((2**63 - 1, 0), (-(2**63), 0), (2**62, 999_999_999), (1, -(2**31)), (1, 2**31 - 1), (-1, -1))
    match name:
        case "google.protobuf.Timestamp":
            return tuple(Timestamp(seconds=seconds, nanos=nanos) for seconds, nanos in times)
        case "google.protobuf.Duration":
            return tuple(Duration(seconds=seconds, nanos=nanos) for seconds, nanos in times)
        case "google.protobuf.Struct":
            return tuple(_structs())
        case "google.protobuf.Value":
            return tuple(struct.fields[name] for struct in _structs() for name in struct.fields)
        case "google.protobuf.ListValue":
            items = [struct.fields[name] for struct in _structs() for name in struct.fields]
            return tuple(struct_pb2.ListValue(values=[item]) for item in items)
    return None


def _structs() -> Iterator[struct_pb2.Struct]:
    for name in ("beta", "tau", "", "\0"):
        for number in (math.nan, math.inf, -math.inf, 1e308):
            yield struct_pb2.Struct(fields={name: struct_pb2.Value(number_value=number)})
    deep = struct_pb2.Value(number_value=1)
    for _ in range(_DEEPEST // 2 - 5):
        deep = struct_pb2.Value(list_value=struct_pb2.ListValue(values=[deep]))
    for value in (deep, struct_pb2.Value(), struct_pb2.Value(string_value="x" * 70_000)):
        yield struct_pb2.Struct(fields={"beta": value})
    yield struct_pb2.Struct(fields={"tau": struct_pb2.Value(struct_value=struct_pb2.Struct(fields={"quantile": deep}))})


def _setter(place: tuple[str, ...], value: Any, *, is_repeated: bool) -> Any:
    def change(message: Any) -> None:
        for name in place[:-1]:
            message = getattr(message, name)
        if is_repeated:
            getattr(message, place[-1]).append(value)
        elif isinstance(value, Message):
            getattr(message, place[-1]).CopyFrom(value)
        else:
            setattr(message, place[-1], value)

    return change


def _in_new_item(place: tuple[str, ...], change: Any) -> Any:
    def append(message: Any) -> None:
        for name in place:
            message = getattr(message, name)
        change(message.add())

    return append
