"""Google's JSON rules in one base class: read leniently, write strictly. All API messages derive from `Message`.

Reading takes camelCase and snake_case, 64-bit integers as numbers or strings, enums as names or numbers, null as
absent; an unknown field is an error. Writing gives camelCase, enum names, 64-bit integers as strings, RFC 3339 times
with `Z`, and leaves empty fields out.
"""

from __future__ import annotations

import base64
import math
import re
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from sarto.errors import FieldViolation, InvalidArgument

_CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")
_snake_names: dict[str, str] = {}


def to_snake(name: str) -> str:
    """`learningRateMultiplier` and `learning_rate_multiplier` alike as the latter."""
    snake = _snake_names.get(name)
    if snake is None:
        snake = _CAPITAL.sub(r"_\1", name).lower() if name[:1].islower() else name
        snake = snake.rstrip("_")  # the proto types write min_ and type_ where Python has a word of its own
        if len(_snake_names) < 10_000:
            _snake_names[name] = snake
    return snake


class ProtoEnum(StrEnum):
    """An enum whose members are their own names; the wire number is the position unless `numbers` says otherwise."""

    @classmethod
    def numbers(cls) -> dict[int, str]:
        return dict(enumerate(member.value for member in cls))

    @classmethod
    def _missing_(cls, value: object) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and value in cls.numbers():
            return cls(cls.numbers()[value])
        return None

    @property
    def is_unspecified(self) -> bool:
        return str(self.value).endswith("_UNSPECIFIED")


def _integer(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("int_type", "expected an integer")
    return value


def _within(bits: int) -> Any:
    def check(value: object) -> object:
        number = _integer(value)
        if isinstance(number, int) and not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            raise PydanticCustomError("int_range", "the number does not fit {bits} bits", {"bits": bits})
        return number

    return check


def _double(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise PydanticCustomError("float_type", "expected a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("float_type", "expected a number")
    return float(value)


def _write_double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "expected a string")
    return value


def _boolean(value: object) -> object:
    if not isinstance(value, bool):
        raise PydanticCustomError("bool_type", "expected true or false")
    return value


def _bytes(value: object) -> object:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("bytes_type", "expected base64 text")
    try:
        return base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True)
    except ValueError:
        raise PydanticCustomError("bytes_type", "expected base64 text") from None


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds and `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now() -> datetime:
    return datetime.now(UTC)


Int64 = Annotated[int, BeforeValidator(_within(64)), PlainSerializer(str, return_type=str)]
Int32 = Annotated[int, BeforeValidator(_within(32))]
Double = Annotated[float, BeforeValidator(_double), PlainSerializer(_write_double)]
Text = Annotated[str, BeforeValidator(_text)]
Boolean = Annotated[bool, BeforeValidator(_boolean)]
Bytes = Annotated[
    bytes, BeforeValidator(_bytes), PlainSerializer(lambda b: base64.b64encode(b).decode(), return_type=str)
]
Timestamp = Annotated[datetime, PlainSerializer(format_time, return_type=str)]
Struct = dict[str, Any]
"""A free JSON object; its keys are the user's and stay as they are."""
JsonValue = Any
"""Any JSON value at all, a schema for example."""


class Message(BaseModel):
    """Base of every API message. Subclasses name other spellings they read and the groups of which one may be set."""

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=AliasGenerator(serialization_alias=to_camel),
        validate_default=False,
        ser_json_inf_nan="strings",
    )

    SPELLINGS: ClassVar[dict[str, str]] = {}
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            if isinstance(data, cls):
                return data
            raise PydanticCustomError("object_type", "expected a JSON object")
        values: dict[str, Any] = {}
        for key, value in data.items():
            if value is None:
                continue
            name = to_snake(key) if isinstance(key, str) else str(key)
            name = cls.SPELLINGS.get(name, name)
            if name in values:
                raise PydanticCustomError("duplicate", 'field "{name}" is given twice', {"name": name})
            values[name] = value
        for group, members in cls.ONEOFS.items():
            given = [name for name in members if name in values]
            if len(given) > 1:
                raise PydanticCustomError(
                    "oneof",
                    "oneof field '{group}' is already set. Cannot set '{second}' beside '{first}'",
                    {"group": group, "first": to_camel(given[0]), "second": to_camel(given[1])},
                )
        return values

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        names = _written_names(type(self))
        for name, value in self.__dict__.items():
            if value is None or value in ("", [], {}) or (isinstance(value, ProtoEnum) and value.is_unspecified):
                written.pop(names[name], None)
        return written

    @classmethod
    def read(cls, data: object, root: str = "") -> Self:
        """Parse a JSON value. Raises InvalidArgument listing every violation, paths beginning with `root`."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise invalid(error, root) from None

    def to_json(self) -> dict[str, Any]:
        """The JSON object that goes over the wire."""
        return self.model_dump(mode="json", by_alias=True)


@cache
def _written_names(kind: type[Message]) -> dict[str, str]:
    return {name: field.serialization_alias or name for name, field in kind.model_fields.items()}


def invalid(error: ValidationError, root: str = "") -> InvalidArgument:
    """All faults of a pydantic error as field violations with snake_case paths."""
    return InvalidArgument.of([_violation(detail, root) for detail in error.errors(include_url=False)])


def _violation(detail: ErrorDetails, root: str) -> FieldViolation:
    path = root
    for part in detail["loc"]:
        path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else str(part))
    kind = detail["type"]
    if kind == "extra_forbidden":
        parent, _, name = path.rpartition(".")
        where = f' at "{parent}"' if parent else ""
        return FieldViolation(path, f'Unknown name "{name}"{where}: Cannot find field.')
    if kind == "enum":
        expected = detail.get("ctx", {}).get("expected", "")
        return FieldViolation(path, f"Invalid value {detail['input']!r}; use one of {expected}.")
    if kind == "missing":
        return FieldViolation(path, "Required field is not set.")
    return FieldViolation(path, detail["msg"][:1].upper() + detail["msg"][1:])
