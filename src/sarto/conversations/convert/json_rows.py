"""Rows of JSON files: one object a line, a list of objects, or objects behind each other; read piece by piece."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import orjson

from sarto.conversations.conversation import RowFault
from sarto.conversations.convert.faults import MOST_LINE_BYTES, Row, broken
from sarto.conversations.convert.streams import CHUNK_BYTES, lines
from sarto.conversations.examples import read_row

_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+(?P<closed>"?)|[\[\]{}]', re.DOTALL)
"""Texts, and what opens or closes a value. A text without its end is one whose end has not been read yet."""
_WHITE = re.compile(rb"[ \t\r\n]*+")
QUOTE = ord('"')


def read_json(stream: io.BufferedReader, name: str) -> Iterator[Row]:
    """Rows of a JSON file of any of the three forms. Raises InvalidArgument where the form breaks."""
    start = stream.peek().lstrip()
    is_list = start.startswith(b"[")
    if is_list or _is_printed(start):
        for number, raw in enumerate(_values(stream, name, is_list), 1):
            yield number, 0, _row(raw)
        return
    number = 0
    for line, raw in enumerate(lines(stream, name), 1):
        if not raw.isspace():
            number += 1
            yield number, line, _row(raw)


def _is_printed(start: bytes) -> bool:
    """Whether a file begins with an object that continues on the next lines."""
    line, end, _ = start.partition(b"\n")
    if not end or not line.startswith(b"{") or not line.rstrip().endswith((b"{", b"[", b",")):
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return True
    return False


def _row(raw: bytes) -> dict[str, object] | RowFault:
    try:
        return read_row(raw, 0)
    except RowFault as fault:
        return fault


def _values(stream: io.BufferedReader, name: str, is_list: bool) -> Iterator[bytes]:
    """The text of each value of the list, or of each value of the file."""
    buffer, at, count, wants_comma = stream.read(CHUNK_BYTES), 0, 0, False
    if is_list:
        at = buffer.index(b"[") + 1
    while True:
        at = _end_of_white(buffer, at)
        if at == len(buffer):
            buffer, at = stream.read(CHUNK_BYTES), 0
            if buffer:
                continue
            if is_list:
                raise broken(name, f"the list is not closed after row {count:,}; the file seems to be cut.")
            return
        byte = buffer[at : at + 1]
        if is_list and byte == b"]":
            _refuse_rest(buffer[at + 1 :], stream, name)
            return
        if wants_comma and byte == b",":
            at, wants_comma = at + 1, False
            continue
        if wants_comma or byte not in (b"{", b"["):
            near = buffer[at : at + 30].decode("utf-8", "replace")
            raise broken(
                name, f"after row {count:,} stands {near!r}; wanted {'a comma' if wants_comma else 'an object'}."
            )
        buffer, at, end = _whole_value(buffer, at, stream, name, count + 1)
        yield buffer[at:end]
        at, count, wants_comma = end, count + 1, is_list


def _end_of_white(buffer: bytes, at: int) -> int:
    found = _WHITE.match(buffer, at)
    return found.end() if found else at


def _refuse_rest(rest: bytes, stream: io.BufferedReader, name: str) -> None:
    while rest.isspace() or not rest:
        rest = stream.read(CHUNK_BYTES)
        if not rest:
            return
    raise broken(name, f"text follows the end of the list: {rest.lstrip()[:30].decode('utf-8', 'replace')!r}.")


def _whole_value(
    buffer: bytes, begin: int, stream: io.BufferedReader, name: str, number: int
) -> tuple[bytes, int, int]:
    """A buffer with a whole object or list, its begin and its end."""
    at, depth = begin, 0
    while True:
        for mark in _MARKS.finditer(buffer, at):
            first = buffer[mark.start()]
            if first == QUOTE:
                if not mark["closed"]:
                    at = mark.start()
                    break
            elif first in b"{[":
                depth += 1
            else:
                depth -= 1
                if not depth:
                    return buffer, begin, mark.end()
            at = mark.end()
        if len(buffer) - begin > MOST_LINE_BYTES:
            raise broken(name, f"row {number:,} is longer than {MOST_LINE_BYTES >> 20} MiB, or a quote is not closed.")
        more = stream.read(CHUNK_BYTES)
        if not more:
            raise broken(name, f"row {number:,} is not closed; the file seems to be cut.")
        buffer, at, begin = buffer[begin:] + more, at - begin, 0
