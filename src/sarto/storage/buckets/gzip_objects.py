"""Objects stored with `Content-Encoding: gzip`, read uncompressed."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO, cast

from sarto.errors import InvalidArgument
from sarto.storage.buckets.objects import StoredObject

GZIP = "gzip"


def is_packed(stored: StoredObject) -> bool:
    return stored.fields.content_encoding.lower() == GZIP


def unpacked(stored: StoredObject, packed: BinaryIO, most_bytes: int) -> BinaryIO:
    """A stream over the decompressed bytes, which closes `packed`. Reading raises InvalidArgument for invalid or
    truncated gzip, and for more than `most_bytes`."""
    return cast(BinaryIO, io.BufferedReader(_UnpackedObject(stored, packed, most_bytes)))


class _UnpackedObject(io.RawIOBase):
    def __init__(self, stored: StoredObject, packed: BinaryIO, most_bytes: int) -> None:
        self._uri, self._packed, self._left = stored.uri, packed, most_bytes
        self._stream = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            words = f'"{self._uri}" has Content-Encoding gzip and cannot be unpacked ({error}); store it again.'
            raise InvalidArgument(words) from None
        self._left -= len(data)
        if self._left < 0:
            raise InvalidArgument(f'"{self._uri}" has more decompressed bytes than the limit for a file.')
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._packed.close()
        super().close()
