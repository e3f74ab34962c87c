"""The body of a multipart upload, parsed while it arrives: a JSON resource, then the bytes, in two parts.

Accepts CRLF and LF line ends, and boundaries in single quotes, since clients send them. Memory is bounded: one block,
and a resource of at most 1 MiB.
"""

from __future__ import annotations

import re
from typing import Any

from sarto.api.http.bodies import read_value
from sarto.errors import InvalidArgument

MAX_HEAD_BYTES = 1 << 20
_BOUNDARY = re.compile(r"""(?i);\s*boundary=("[^"]{1,200}"|[^;,\s]{1,200})""")
_HEADER_END = re.compile(rb"\r?\n\r?\n")


def boundary(content_type: str) -> str:
    """The boundary of a Content-Type, without quotes. Raises InvalidArgument if it has none."""
    match = _BOUNDARY.search(content_type)
    if match is None or not content_type.lower().startswith("multipart/"):
        raise InvalidArgument(
            "A multipart body needs a Content-Type of multipart/related or multipart/mixed with a boundary."
        )
    return match.group(1).strip('"')


class MultipartReader:
    """Takes blocks and returns the second part's bytes. `close` raises InvalidArgument if the end is missing."""

    def __init__(self, content_type: str) -> None:
        written = boundary(content_type).encode("latin-1", "replace")
        self._boundaries = {written, written.strip(b"'")}
        self._held = b""
        self._delimiter = b""
        self._is_ended = False
        self.resource: Any = None
        self.content_type = ""
        self.is_open = False
        """Whether the headers of both parts were read: `resource` and `content_type` are known, bytes follow."""

    def feed(self, block: bytes) -> bytes:
        self._held += block
        if not self.is_open and not self._heads():
            if len(self._held) > MAX_HEAD_BYTES:
                raise InvalidArgument(f"The first part of a multipart upload is larger than {MAX_HEAD_BYTES} bytes.")
            return b""
        return self._body()

    def close(self) -> None:
        if not self._is_ended:
            raise InvalidArgument("The multipart body ended before its closing boundary; nothing was stored.")

    def _heads(self) -> bool:
        """Read up to the second part's bytes, once all of that has arrived."""
        if not self._delimiter:
            self._delimiter = self._first_line()
        if not self._delimiter:
            return False
        first, delimiter, rest = self._held.partition(self._delimiter)
        if not delimiter:
            return False
        if rest.startswith(b"--"):
            raise InvalidArgument("A multipart upload has two parts: the resource and the bytes.")
        second = _HEADER_END.search(rest)
        if second is None:
            return False
        self.resource = _json(first)
        self.content_type = _content_type(rest[: second.start() + 1])
        self._held = rest[second.end() :]
        self.is_open = True
        return True

    def _first_line(self) -> bytes:
        """The delimiter between parts, with this sender's line ends; empty while the first line is incomplete."""
        line, newline, rest = self._held.lstrip(b"\r\n").partition(b"\n")
        if not newline:
            return b""
        bare = line.rstrip(b" \t\r")
        if bare[:2] != b"--" or bare[2:] not in self._boundaries:
            raise InvalidArgument("The multipart body does not begin with the boundary its Content-Type names.")
        self._held = rest
        return (b"\r\n" if line.endswith(b"\r") else b"\n") + bare

    def _body(self) -> bytes:
        if self._is_ended:
            self._held = b""  # an epilogue means nothing
            return b""
        at = self._held.find(self._delimiter)
        if at < 0:
            keep = len(self._delimiter) - 1
            data, self._held = self._held[:-keep], self._held[-keep:]
            return data
        after = self._held[at + len(self._delimiter) :]
        if len(after) < 2:
            return b""
        if after[:2] != b"--":
            raise InvalidArgument("A multipart upload has two parts: the resource and the bytes.")
        data, self._held, self._is_ended = self._held[:at], b"", True
        return data


def _json(part: bytes) -> Any:
    """The body of the first part, whose headers may be missing."""
    if part.startswith((b"\r\n", b"\n")):
        text = part
    else:
        head = _HEADER_END.search(part)
        text = part[head.end() :] if head else b""
    if not text.strip():
        raise InvalidArgument("The resource of the multipart upload is not JSON: it is empty.")
    return read_value(text, "")


def _content_type(head: bytes) -> str:
    for line in head.splitlines():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-type":
            return value.strip().decode("latin-1")
    return ""
