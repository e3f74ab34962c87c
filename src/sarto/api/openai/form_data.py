"""A multipart/form-data body, parsed while it arrives: short text fields in any order, and one file, whose bytes are
returned block by block.

Memory is bounded: one block, and the fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sarto.errors import InvalidArgument

MOST_PARTS = 30
MOST_HEAD_BYTES, MOST_FIELD_BYTES = 8 * 1024, 16 * 1024
_BOUNDARY = re.compile(r"""(?i);\s*boundary=("[^"]{1,200}"|[^;,\s]{1,200})""")
_NAME = re.compile(r'(?i);\s*name="([^"]{0,200})"')
_FILE_NAME = re.compile(r'(?i);\s*filename="([^"]{0,1000})"')


@dataclass
class _Part:
    name: str
    is_file: bool
    text: bytes = b""


class FormReader:
    """Takes blocks and returns the bytes of the file field. `close` raises InvalidArgument if a part is missing."""

    def __init__(self, content_type: str, file_field: str) -> None:
        match = _BOUNDARY.search(content_type)
        if match is None or not content_type.lower().startswith("multipart/form-data"):
            raise InvalidArgument("Send the body as multipart/form-data with a boundary.")
        self._delimiter = b"\r\n--" + match[1].strip('"').encode("latin-1", "replace")
        self._file_field = file_field
        self._held = b"\r\n"  # then the first delimiter is like all others
        self._part: _Part | None = None
        self._parts, self._is_ended, self._is_started = 0, False, False
        self.fields: dict[str, str] = {}
        self.file_name = ""
        self.has_file = False

    def feed(self, block: bytes) -> bytes:
        self._held += block
        found = []
        while not self._is_ended:
            if self._part is not None:
                data, is_more = self._body()
                found.append(data)
            else:
                is_more = self._head()
            if not is_more:
                return b"".join(found)
        self._held = b""  # an epilogue means nothing
        return b"".join(found)

    def close(self) -> None:
        if not self._is_ended:
            raise InvalidArgument("The form ended before its closing boundary; nothing was stored.")
        if not self.has_file:
            raise InvalidArgument.field(self._file_field, "The form has no such file.")

    def _head(self) -> bool:
        """Read up to the bytes of the next part, or the end; whether all of that has arrived."""
        if not self._is_started:
            if len(self._held) < len(self._delimiter):
                return False
            if not self._held.startswith(self._delimiter):
                raise InvalidArgument("The form does not begin with the boundary that its Content-Type names.")
            self._held, self._is_started = self._held[len(self._delimiter) :], True
        if self._held.startswith(b"--"):
            self._is_ended = True
            return True
        head, blank, rest = self._held.partition(b"\r\n\r\n")
        if len(head) > MOST_HEAD_BYTES:
            raise InvalidArgument(f"The headers of a part are longer than {MOST_HEAD_BYTES} bytes.")
        if not blank:
            return False
        self._held = rest
        self._begin(head.decode("utf-8", "replace"))
        return True

    def _begin(self, head: str) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidArgument(f"The form has more than {MOST_PARTS} parts.")
        disposition = next((line for line in head.split("\r\n") if line.lower().startswith("content-disposition:")), "")
        name = _NAME.search(disposition)
        if name is None:
            raise InvalidArgument('A part of the form has no name: it needs Content-Disposition: form-data; name="…".')
        is_file = name[1] == self._file_field
        if name[1] in self.fields or (is_file and self.has_file):
            raise InvalidArgument.field(name[1], "The form has this field twice.")
        if is_file:
            file_name = _FILE_NAME.search(disposition)
            self.file_name, self.has_file = file_name[1] if file_name else "", True
        self._part = _Part(name[1], is_file)

    def _body(self) -> tuple[bytes, bool]:
        """The file's bytes among those that have arrived, and whether the part ended."""
        assert self._part is not None
        at = self._held.find(self._delimiter)
        if at >= 0:
            data, self._held = self._held[:at], self._held[at + len(self._delimiter) :]
        else:
            cut = max(0, len(self._held) - len(self._delimiter) + 1)
            data, self._held = self._held[:cut], self._held[cut:]
        if not self._part.is_file:
            self._part.text += data
            if len(self._part.text) > MOST_FIELD_BYTES:
                raise InvalidArgument.field(self._part.name, f"A field has at most {MOST_FIELD_BYTES} bytes.")
            data = b""
        if at >= 0:
            if not self._part.is_file:
                self.fields[self._part.name] = self._part.text.decode("utf-8", "replace")
            self._part = None
        return data, at >= 0
