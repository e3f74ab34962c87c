"""The mapping of a source's columns to conversations: which column is what, which rows are taken, how they are split.

A mapping is all that a conversion depends on besides the bytes of its sources. It is read from TOML or JSON.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sarto.conversations.convert.places import place
from sarto.conversations.convert.streams import ENCODINGS
from sarto.errors import InvalidArgument

VERSION = 1
MOST_BYTES = 1 << 20
SHAPES: dict[str, tuple[str, ...]] = {
    "gemini": (),
    "messages": ("messages",),
    "turns": ("messages", "role", "text"),
    "columns": ("input", "output"),
    "preference": ("chosen", "rejected"),
}
"""Roles that a shape needs, by its name."""
MAY: dict[str, tuple[str, ...]] = {
    "gemini": (),
    "messages": ("system", "tools"),
    "turns": ("system", "tools"),
    "columns": ("system", "tools"),
    "preference": ("input", "system", "tools"),
}
"""Roles that it may have."""
TESTS = ("equals", "non_empty", "min_chars", "max_chars")


@dataclass(frozen=True)
class Filter:
    """A condition on the text of a column; a row that does not meet it is left out."""

    column: str
    equals: str | None = None
    non_empty: bool = False
    min_chars: int = 0
    max_chars: int | None = None

    def __post_init__(self) -> None:
        place(self.column)


@dataclass(frozen=True)
class ColumnMapping:
    """`columns` has a column or a JSON path for each role; several for `input`, which are joined by an empty line."""

    shape: str
    columns: Mapping[str, tuple[str, ...]]
    system_text: str = ""
    filters: tuple[Filter, ...] = ()
    split: str = "train"
    validation_share: float = 0.0
    seed: int = 0
    deduplicate: bool = False
    skip_faults: bool = False
    encoding: str = "utf-8"
    delimiter: str = ""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InvalidArgument(f"shape: one of {', '.join(SHAPES)} is wanted, not {self.shape!r}.")
        for role in SHAPES[self.shape]:
            if not self.columns.get(role):
                raise InvalidArgument(f"columns.{role}: the shape {self.shape} needs it; name a column or a JSON path.")
        for role, names in self.columns.items():
            if role not in SHAPES[self.shape] + MAY[self.shape]:
                known = ", ".join(SHAPES[self.shape] + MAY[self.shape]) or "no columns"
                raise InvalidArgument(f"columns.{role}: the shape {self.shape} has {known}.")
            if len(names) > 1 and role != "input":
                raise InvalidArgument(f"columns.{role}: one column is wanted; only input may join several.")
            for name in names:
                place(name)
        if not 0 <= self.validation_share < 1:
            raise InvalidArgument(f"validation_share: from 0 to below 1 is wanted, not {self.validation_share}.")
        if not 0 <= self.seed < 2**63:
            raise InvalidArgument(f"seed: 0 or more, in 63 bits, is wanted, not {self.seed}.")
        if self.encoding not in ENCODINGS:
            raise InvalidArgument(f"encoding: one of {', '.join(ENCODINGS)} is wanted, not {self.encoding!r}.")
        if len(self.delimiter) > 1 or self.delimiter in ('"', "\n", "\r", "\0"):
            raise InvalidArgument(f"delimiter: one character is wanted, not {self.delimiter!r}.")

    def used(self) -> list[str]:
        """Every column or path that is read."""
        named = [name for names in self.columns.values() for name in names]
        if self.shape == "turns":
            named = [name for role, names in self.columns.items() if role not in ("role", "text") for name in names]
        return named + [each.column for each in self.filters]


def to_json(mapping: ColumnMapping) -> dict[str, Any]:
    """The mapping without values that are as by default, for TOML and JSON."""
    written: dict[str, Any] = {"version": VERSION, "shape": mapping.shape}
    for each in fields(ColumnMapping):
        value = getattr(mapping, each.name)
        if each.name not in ("shape", "columns", "filters") and value != each.default:
            written[each.name] = value
    if mapping.columns:
        columns = mapping.columns.items()
        written["columns"] = {role: names[0] if len(names) == 1 else list(names) for role, names in columns}
    if mapping.filters:
        written["filters"] = [
            {
                key: value
                for key, value in asdict(each).items()
                if value is not None and value is not False and (key, value) != ("min_chars", 0)
            }
            for each in mapping.filters
        ]
    return written


def to_toml(mapping: ColumnMapping) -> str:
    written = to_json(mapping)
    columns, filters = written.pop("columns", {}), written.pop("filters", [])
    parts = ["".join(_assignments(written))]
    if columns:
        parts.append("[columns]\n" + "".join(_assignments(columns)))
    parts += ["[[filters]]\n" + "".join(_assignments(each)) for each in filters]
    return "\n".join(parts)


def _assignments(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        # TOML's basic strings have the escapes of JSON's, and its lists, numbers and booleans the same spelling.
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f")


def read_mapping(path: Path) -> ColumnMapping:
    """The mapping in a file. Raises InvalidArgument with the file's name and the field."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidArgument(f"{path}: a mapping has at most {MOST_BYTES >> 20} MiB.")
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.") from None
    return parse_mapping(raw, str(path))


def parse_mapping(raw: bytes, name: str) -> ColumnMapping:
    """A mapping of TOML or JSON. Raises InvalidArgument."""
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: it is neither JSON nor TOML ({error}).") from None
    try:
        return _mapping(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error.message}") from None


@dataclass(frozen=True)
class _Kind:
    """What a field of a mapping file may be."""

    types: tuple[type, ...]
    words: str


TEXT, WHOLE = _Kind((str,), "text"), _Kind((int,), "a whole number")
NUMBER, FLAG = _Kind((int, float), "a number"), _Kind((bool,), "true or false")
FIELDS = {
    "shape": TEXT, "system_text": TEXT, "split": TEXT, "encoding": TEXT, "delimiter": TEXT, "validation_share": NUMBER,
    "seed": WHOLE, "deduplicate": FLAG, "skip_faults": FLAG,
}  # fmt: skip
FILTER_FIELDS = {"column": TEXT, "equals": TEXT, "non_empty": FLAG, "min_chars": WHOLE, "max_chars": WHOLE}
MADE = "made"
"""The key of a stored mapping for what was made with it; it is ignored when the mapping is read."""


def _mapping(value: dict[str, Any]) -> ColumnMapping:
    rest = {key: each for key, each in value.items() if key not in ("version", "columns", "filters", MADE)}
    if value.get("version", VERSION) != VERSION:
        raise InvalidArgument(f"version: {VERSION} is wanted, not {value['version']!r}.")
    if "shape" not in value:
        raise InvalidArgument(f"shape: missing; one of {', '.join(SHAPES)} is wanted.")
    columns = value.get("columns", {})
    if not isinstance(columns, dict):
        raise InvalidArgument("columns: a table of roles with columns is wanted.")
    filters = value.get("filters", [])
    if not isinstance(filters, list):
        raise InvalidArgument("filters: a list of tables is wanted.")
    return ColumnMapping(
        columns={role: _names(names, f"columns.{role}") for role, names in columns.items()},
        filters=tuple(_filter(each, f"filters[{index}]") for index, each in enumerate(filters)),
        **_checked(rest, FIELDS, ""),
    )


def _names(value: object, where: str) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidArgument(f"{where}: the name of a column, a JSON path, or a list of them is wanted.")
    return tuple(names)


def _filter(value: object, where: str) -> Filter:
    if not isinstance(value, dict) or "column" not in value:
        raise InvalidArgument(f"{where}: a table with column and one of {', '.join(TESTS)} is wanted.")
    if not any(test in value for test in TESTS):
        raise InvalidArgument(f"{where}: one of {', '.join(TESTS)} is wanted.")
    return Filter(**_checked(value, FILTER_FIELDS, f"{where}."))


def _checked(values: Mapping[str, Any], known: Mapping[str, _Kind], where: str) -> dict[str, Any]:
    for key, value in values.items():
        if key not in known:
            raise InvalidArgument(f"{where}{key}: an unknown field; known are {', '.join(known)}.")
        kind = known[key]
        if type(value) not in kind.types:
            raise InvalidArgument(f"{where}{key}: {kind.words} is wanted, not {value!r}.")
    return dict(values)
