"""A JSON body from bytes to a value: its charset, and whether it is short enough to parse on the event loop."""

from __future__ import annotations

from typing import Any

import orjson

from sarto.conversations.json_text import read_json_text
from sarto.errors import InvalidArgument
from sarto.schema.json_size import count, json_excess

SHORT_BYTES, FEW_VALUES = 64 * 1024, 500
BOM = b"\xef\xbb\xbf"
CHARSETS = frozenset(("utf-8", "utf8", "us-ascii", "iso-8859-1", "latin1", "windows-1252", "utf-16"))


def is_short(body: bytes) -> bool:
    """Whether parsing takes well under a millisecond, so that the event loop may do it itself."""
    return len(body) <= SHORT_BYTES and count(body, b",[{") <= FEW_VALUES


def read_value(body: bytes, content_type: str) -> Any:
    """The value of a JSON body; an empty body is an empty object. Raises InvalidArgument, with line and column for
    invalid JSON."""
    body = _as_utf8(body, content_type)
    if not body.strip():
        return {}
    _check_size(body)
    try:
        return read_json_text(body)
    except orjson.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise InvalidArgument(f"Invalid JSON payload received: {error.msg}, at {at}.") from None
    except ValueError as error:
        raise InvalidArgument(f"Invalid JSON payload received: {error}.") from None


def _check_size(body: bytes) -> None:
    """Raises InvalidArgument for too many values or levels."""
    if reason := json_excess(body):
        raise InvalidArgument(f"The JSON of the body {reason}; send several requests, or flatter ones.")


def _as_utf8(body: bytes, content_type: str) -> bytes:
    """A body in the charset that its client declares, without a byte order mark."""
    charset = next((part.partition("=")[2] for part in content_type.lower().split(";") if "charset=" in part), "utf-8")
    charset = charset.strip(" \"'")
    if charset not in CHARSETS:
        raise InvalidArgument(f'The charset "{charset[:80]}" is not supported; send JSON as UTF-8.')
    try:
        return body.removeprefix(BOM) if charset in ("utf-8", "utf8") else body.decode(charset).encode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"The body is not {charset}, as in its Content-Type: {error.reason}.") from None
