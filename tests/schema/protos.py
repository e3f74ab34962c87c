"""Random values of any official protobuf message, from its descriptor: the oracle's side of the wire tests."""

from __future__ import annotations

from typing import Any

from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as ProtoMessage
from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)
KEYS = st.text("abcdefgABC_", min_size=1, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000).map(float) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)
DOUBLES = st.floats(-(2.0**100), 2.0**100, width=32) | st.just(float("inf"))
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: DOUBLES,
    FieldDescriptor.TYPE_FLOAT: DOUBLES,
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_BYTES: st.binary(min_size=1, max_size=6),
}


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return SCALARS[field.type]


@st.composite
def fill(draw: st.DrawFn, message: ProtoMessage, depth: int, skip: frozenset[str]) -> ProtoMessage:
    """Set a few random fields of `message`, at most one of each oneof; fields named in `skip` stay empty."""
    descriptor: Descriptor = message.DESCRIPTOR
    if isinstance(message, struct_pb2.Struct):
        message.update(draw(st.dictionaries(KEYS, JSON, max_size=2)))
        return message
    if isinstance(message, struct_pb2.Value):
        message.string_value = draw(TEXT)
        return message
    if isinstance(message, timestamp_pb2.Timestamp):
        message.FromMicroseconds(draw(st.integers(0, 4 * 10**15)))
        return message
    if isinstance(message, duration_pb2.Duration):
        message.FromMilliseconds(draw(st.integers(0, 10**6)))
        return message
    if descriptor.full_name == "google.protobuf.Any":
        return message
    usable = [f for f in descriptor.fields if f.full_name not in skip]
    chosen = draw(st.lists(st.sampled_from(usable), max_size=5, unique_by=lambda f: f.number)) if usable else []
    used: set[str] = set()
    for field in chosen:
        if depth == 0 and field.message_type is not None:
            continue
        if field.containing_oneof is not None:
            if field.containing_oneof.name in used:
                continue
            used.add(field.containing_oneof.name)
        _set(draw, message, field, depth, skip)
    return message


def _set(draw: st.DrawFn, message: ProtoMessage, field: FieldDescriptor, depth: int, skip: frozenset[str]) -> None:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is None:
            for key in draw(st.lists(KEYS, max_size=2, unique=True)):
                value[key] = draw(_scalar(field.message_type.fields_by_name["value"]))
        else:
            for key in draw(st.lists(KEYS, max_size=1)):
                draw(fill(value[key], depth - 1, skip))
    elif field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            if field.message_type is not None:
                draw(fill(value.add(), depth - 1, skip))
            else:
                value.append(draw(_scalar(field)))
    elif field.message_type is not None:
        value.SetInParent()
        draw(fill(value, depth - 1, skip))
    else:
        setattr(message, field.name, draw(_scalar(field)))
