"""Parses JSON of users without silent changes: bodies, rows, arguments in text form.

As in Google's parser, a comma after the last element of an object or a list is skipped. Values that JSON parsers often
change (`NaN`, half surrogate pairs, keys that occur twice) are refused. Knows no fields and no formats.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

MAX_LEVELS = 100
_COMMAS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|(?P<empty>[\[{,]\s*+,)|(?P<last>,(?=\s*+[\]}]))', re.DOTALL)
"""Strings, commas with nothing before them, and commas after the last element."""


class RepeatedKey(ValueError):
    """One object has the same key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f'the key "{key[:100]}" occurs twice in one object')
        self.key = key


class TooDeep(ValueError):
    """More levels of nesting than Google's parser accepts."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_LEVELS} levels of nesting")


def read_json_text(raw: bytes) -> Any:
    """The value. Raises RepeatedKey, TooDeep, and ValueError for invalid JSON."""
    value, raw = _read(raw)
    if _may_repeat_keys(raw, _count_keys(value)):
        json.loads(raw, object_pairs_hook=_refuse_repeated)
    return value


def repeat_json_text(raw: bytes) -> Any:
    """The value of a parsed text, for a response that repeats it: `orjson.dumps` writes numbers with their original
    digits."""
    _, raw = _read(raw)
    return json.loads(raw, parse_int=orjson.Fragment, parse_float=orjson.Fragment)


def _read(raw: bytes) -> tuple[Any, bytes]:
    """The value, and the text without commas after last elements."""
    try:
        return orjson.loads(raw), raw
    except orjson.JSONDecodeError as error:
        mended = _without_last_commas(raw)
        if mended is None:
            raise
        try:
            return orjson.loads(mended), mended
        except orjson.JSONDecodeError:
            raise error from None  # which names the place in the text as it was sent


def _without_last_commas(raw: bytes) -> bytes | None:
    """The text without commas after last elements; None if there are none."""
    matches = [match for match in _COMMAS.finditer(raw) if match.lastgroup]
    if not matches or any(match.lastgroup == "empty" for match in matches):
        return None
    ends = [0, *(match.end() for match in matches)]
    starts = [*(match.start() for match in matches), len(raw)]
    return b"".join(raw[end:start] for end, start in zip(ends, starts, strict=True))


def _may_repeat_keys(raw: bytes, keys: int) -> bool:
    """Whether a text with this number of different keys may have a repeated one. A key shows as `":` in the bytes and
    an escaped quote inside text as `\":`. So equal counts exclude repeats, unless white space before a colon hides a
    key."""
    if b" :" in raw or b"\t:" in raw or b"\r:" in raw or b"\n:" in raw:
        return True
    return raw.count(b'":') - raw.count(b'\\":') != keys


def _count_keys(value: Any) -> int:
    """Number of keys in all objects. Raises TooDeep."""
    count = 0
    level: list[Any] = [value] if type(value) is dict or type(value) is list else []
    for _ in range(MAX_LEVELS):
        below: list[Any] = []
        for inner in level:
            if type(inner) is dict:
                count += len(inner)
                inner = inner.values()
            below += [each for each in inner if type(each) is dict or type(each) is list]
        if not below:
            return count
        level = below
    raise TooDeep


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise RepeatedKey(key)
        seen.add(key)
