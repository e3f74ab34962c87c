"""Google's JSON rules in one base class: read leniently, write strictly. All API messages derive from `Message`.

Reading takes camelCase and snake_case, 64-bit integers as numbers or strings, enums as names or numbers, null as
absent; an unknown field is an error. Writing gives camelCase, enum names, 64-bit integers as strings, RFC 3339 times
with `Z`, and leaves empty fields out.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, lru_cache
from itertools import islice
from typing import Annotated, Any, ClassVar, LiteralString, Self, get_origin

from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from sarto.errors import MOST_VIOLATIONS, FieldViolation, InvalidArgument

_CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")
MOST_NAME = 100
"""Most characters of a field's name."""
FEW_SETTINGS = 3
"""Most settings of a message that an error lists."""


@lru_cache(maxsize=10_000)
def _snake(name: str) -> str:
    snake = _CAPITAL.sub(r"_\1", name).lower() if name[:1].islower() else name
    return snake.rstrip("_")  # the proto types write min_ and type_ where Python has a word of its own


def to_snake(name: str) -> str:
    """Converts `learningRateMultiplier` and `learning_rate_multiplier` to the latter."""
    return _snake(name) if len(name) <= MOST_NAME else name


@dataclass
class _FaultCount:
    """Number of faults found while reading. Beyond the limit nothing further is checked: values are replaced by valid
    ones, and the result is discarded."""

    count: int = 0

    @property
    def is_full(self) -> bool:
        return self.count >= MOST_VIOLATIONS


_FAULTS: ContextVar[_FaultCount | None] = ContextVar("faults", default=None)


def _fault(kind: LiteralString, words: LiteralString, instead: Any, facts: dict[str, Any] | None = None) -> Any:
    """Raises PydanticCustomError; beyond the limit of faults, returns `instead`."""
    faults = _FAULTS.get()
    if faults is not None:
        if faults.is_full:
            return instead
        faults.count += 1
    raise PydanticCustomError(kind, words, facts)


class ProtoEnum(StrEnum):
    """An enum whose members are their own names; the wire number is the position unless `numbers` says otherwise."""

    @classmethod
    def numbers(cls) -> dict[int, str]:
        return dict(enumerate(member.value for member in cls))

    @classmethod
    def _missing_(cls, value: object) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and value in cls.numbers():
            return cls(cls.numbers()[value])
        faults = _FAULTS.get()
        if faults is None:
            return None
        faults.count += 1
        return next(iter(cls)) if faults.count > MOST_VIOLATIONS else None

    @property
    def is_unspecified(self) -> bool:
        return str(self.value).endswith("_UNSPECIFIED")


def _integer(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return _fault("int_type", "expected an integer", 0)
    return value


def _within(bits: int) -> Any:
    def check(value: object) -> object:
        number = _integer(value)
        if isinstance(number, int) and not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            return _fault("int_range", "the number does not fit {bits} bits", 0, {"bits": bits})
        return number

    return check


def _double(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return _fault("float_type", "expected a number", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _fault("float_type", "expected a number", 0.0)
    try:
        return float(value)
    except OverflowError:
        return _fault("float_range", "the number does not fit 64 bits", 0.0)


def _write_double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _text(value: object) -> object:
    if not isinstance(value, str):
        return _fault("string_type", "expected a string", "")
    return value


def _boolean(value: object) -> object:
    if not isinstance(value, bool):
        return _fault("bool_type", "expected true or false", False)
    return value


def _bytes(value: object) -> object:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return _fault("bytes_type", "expected base64 text", b"")
    try:
        return base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True)
    except ValueError:
        return _fault("bytes_type", "expected base64 text", b"")


def _struct(value: object) -> object:
    return value if isinstance(value, dict) else _fault("dict_type", "expected a JSON object", {})


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
Struct = Annotated[dict[str, Any], BeforeValidator(_struct)]
"""A free JSON object; its keys are the user's and unchanged."""
JsonValue = Any
"""Any JSON value, such as a schema."""


class Message(BaseModel):
    """Base of every API message. Subclasses declare other accepted spellings, and groups of fields of which one may be
    set."""

    model_config = ConfigDict(
        extra="forbid",
        defer_build=True,  # building the validators of all messages takes longer than a command of the program
        alias_generator=AliasGenerator(serialization_alias=to_camel),
        validate_default=False,
        ser_json_inf_nan="strings",
    )

    SPELLINGS: ClassVar[dict[str, str]] = {}
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Counts the faults inside, and checks nothing more beyond the limit."""
        faults = _FAULTS.get()
        if faults is None:
            return handler(cls._read_keys(data))
        if faults.is_full:
            return _blank(cls)  # type: ignore[return-value]
        before = faults.count
        try:
            return handler(cls._read_keys(data))
        except ValidationError as error:
            faults.count = max(faults.count, before + error.error_count())
            raise
        except PydanticCustomError:
            faults.count += 1
            raise

    @classmethod
    def _read_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            if isinstance(data, cls):
                return data
            raise PydanticCustomError("object_type", "expected a JSON object")
        values: dict[str, Any] = {}
        unknown = 0
        for key, value in data.items():
            if value is None:
                continue
            name = to_snake(key) if isinstance(key, str) else str(key)
            name = cls.SPELLINGS.get(name, name)
            if name in _repeated(cls) and not isinstance(value, list):
                value = [value]
            if name in values:
                raise PydanticCustomError("duplicate", 'field "{name}" is given twice', {"name": name})
            values[name] = value
            unknown += name not in cls.model_fields
            if unknown > MOST_VIOLATIONS:  # one more than an error lists, so that it ends with "and more"
                break
        for group, members in cls.ONEOFS.items():
            names = [name for name in members if name in values]
            if len(names) > 1:
                settings = [path for name in names for path in _settings(values[name], to_camel(name))]
                raise PydanticCustomError(
                    "oneof",
                    "oneof field '{group}' is already set. Cannot set '{second}' beside '{first}'{settings}",
                    {"group": group, "first": to_camel(names[0]), "second": to_camel(names[1]),
                     "settings": f". Look at {', '.join(settings)}" if settings else ""},
                )  # fmt: skip
        return values

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        names = _written_names(type(self))
        for name, value in self.__dict__.items():
            if value is not None and name in _present(type(self)):
                continue
            if value is None or value in ("", [], {}) or (isinstance(value, ProtoEnum) and value.is_unspecified):
                written.pop(names[name], None)
        return written

    @classmethod
    def read(cls, data: object, root: str = "") -> Self:
        """Parse a JSON value. Raises InvalidArgument with the first violations, whose paths begin with `root`."""
        faults = _FaultCount()
        mine = _FAULTS.set(faults)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise invalid(error, root, more=faults.is_full) from None
        finally:
            _FAULTS.reset(mine)

    def to_json(self) -> dict[str, Any]:
        """The JSON object on the wire."""
        return self.model_dump(mode="json", by_alias=True)


def _settings(value: Any, path: str) -> list[str]:
    """The paths of a message's values, where they are so few that they may be there by mistake."""
    leaves = list(islice(_leaves(value, path), FEW_SETTINGS + 1))
    return leaves if len(leaves) <= FEW_SETTINGS else []


def _leaves(value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield path
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{to_camel(to_snake(str(key)))}"[:MOST_NAME])


@cache
def _blank(kind: type[Message]) -> Message:
    return kind.model_construct()


@cache
def _written_names(kind: type[Message]) -> dict[str, str]:
    return {name: field.serialization_alias or name for name, field in kind.model_fields.items()}


@cache
def _repeated(kind: type[Message]) -> frozenset[str]:
    """Fields that are lists. Google's JSON accepts one value in place of a list."""
    fields = kind.model_fields.items()
    return frozenset(name for name, field in fields if get_origin(field.annotation) is list)


@cache
def _present(kind: type[Message]) -> frozenset[str]:
    """Fields of which one may be set: an empty text in one is not the same as none."""
    members = [name for group in kind.ONEOFS.values() for name in group]
    return frozenset(name for name in members if kind.model_fields[name].default is None)


def invalid(error: ValidationError, root: str = "", *, more: bool = False) -> InvalidArgument:
    """The faults of a pydantic error as field violations with snake_case paths."""
    return InvalidArgument.of((_violation(detail, root) for detail in error.errors(include_url=False)), more=more)


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
        return FieldViolation(path, f"Invalid value {repr(detail['input'])[:MOST_NAME]}; use one of {expected}.")
    if kind == "missing":
        return FieldViolation(path, "Required field is not set.")
    return FieldViolation(path, detail["msg"][:1].upper() + detail["msg"][1:])
