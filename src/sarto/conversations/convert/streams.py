"""Bytes of a local file: decompressed within bounds, and as UTF-8 whose faults are named with their byte."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sarto.conversations.convert.faults import MOST_LINE_BYTES, broken, needs_arrow
from sarto.errors import InvalidArgument

CHUNK_BYTES = 1 << 20
MOST_RATIO, RATIO_FROM_BYTES = 250, 64 << 20
"""A file that unpacks to more than this many times its size is a bomb; small files may."""
MOST_UNPACKED_BYTES = 64 << 30
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
ENCODINGS = (
    "utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "cp1250", "cp1251", "iso-8859-15",
    "mac-roman", "shift_jis", "euc-jp", "gb18030", "big5", "euc-kr",
)  # fmt: skip
WIDE = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Encodings by the byte order mark at the start."""
NEAR_BYTES = 20


class Unpacked(io.RawIOBase):
    """The decompressed bytes of a gzip or zstd file of one or more members. Raises InvalidArgument for broken data and
    for a bomb."""

    def __init__(self, file: str, packed: BinaryIO, compression: str) -> None:
        self._file, self._packed, self._count = file, packed, 0
        self._compression = compression
        self._inner = gzip.GzipFile(fileobj=packed) if compression == "gzip" else _zstd(file, packed)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._inner.close()
        super().close()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            data = self._inner.read(len(buffer))
        except (OSError, EOFError, ValueError, MemoryError, zlib.error) as error:
            reason = str(error) or type(error).__name__
            raise broken(self._file, f"the {self._compression} data is broken or cut ({reason}).") from None
        self._count += len(data)
        if self._count > RATIO_FROM_BYTES and self._count > MOST_RATIO * max(1, self._packed.tell()):
            raise broken(
                self._file,
                f"it unpacks to more than {MOST_RATIO} times its size, which a dataset does not. If it is one, unpack "
                "it and convert the result.",
            )
        if self._count > MOST_UNPACKED_BYTES:
            raise broken(self._file, f"it unpacks to more than {MOST_UNPACKED_BYTES >> 30} GiB; split it.")
        buffer[: len(data)] = data
        return len(data)


def _zstd(file: str, packed: BinaryIO) -> BinaryIO:
    try:
        import pyarrow
    except ImportError:
        raise needs_arrow(file, "a zstd file") from None
    stream: BinaryIO = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), "zstd")
    return stream


class Utf8(io.RawIOBase):
    """Text of any encoding as checked UTF-8 without a byte order mark. Raises InvalidArgument with the offset of the
    first byte that the encoding does not have."""

    def __init__(self, file: str, inner: BinaryIO, encoding: str) -> None:
        self._file, self._inner, self._encoding = file, inner, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._read, self._lines, self._has_ended = 0, 1, False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._has_ended:
            chunk = self._inner.read(CHUNK_BYTES)
            self._has_ended = not chunk
            self._ready = memoryview(self._checked(chunk))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _checked(self, chunk: bytes) -> bytes:
        is_first = self._read == 0
        if is_first and self._encoding == "utf-8":
            self._refuse_wide(chunk)
        self._read += len(chunk)
        if self._encoding == "utf-8" and chunk.isascii() and not self._decoder.getstate()[0] and chunk:
            self._lines += chunk.count(b"\n")
            return chunk
        try:
            text = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise self._wrong(error) from None
        if is_first:
            text = text.removeprefix("\ufeff")
        self._lines += text.count("\n")
        return text.encode()

    def _refuse_wide(self, start: bytes) -> None:
        for mark, encoding in WIDE.items():
            if start.startswith(mark):
                raise broken(self._file, f"it is {encoding.upper()} text (byte offset 0). Add --encoding {encoding}.")
        first = start[:64]
        for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if first[offset::2].count(0) > len(first) / 4 and all(first[1 - offset :: 2]):
                found = f"it looks like UTF-16 text without a byte order mark (NUL byte at byte offset {offset})."
                raise broken(self._file, f"{found} Add --encoding {encoding}.")

    def _wrong(self, error: UnicodeDecodeError) -> InvalidArgument:
        data: bytes = error.object
        offset = self._read - len(data) + error.start
        line = self._lines + data[: error.start].count(b"\n")
        near = data[max(0, error.start - NEAR_BYTES) : error.start + NEAR_BYTES].decode("latin-1")
        remedy = (
            "Save it as UTF-8, or add --encoding cp1252 (Windows, western Europe), latin-1 or another one."
            if self._encoding == "utf-8"
            else "Name another one with --encoding."
        )
        found = f"byte 0x{data[error.start]:02X} at byte offset {offset:,} (line {line:,}), near {near!r},"
        return broken(self._file, f"{found} is not {self._encoding.upper()}. {remedy}")


def compression_of(path: Path) -> str:
    """`gzip`, `zstd`, or empty."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), "")


@contextmanager
def open_bytes(path: Path, name: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed. `name` is the file's name in errors."""
    compression = compression_of(path)
    with path.open("rb") as file:
        if not compression:
            yield file
            return
        with io.BufferedReader(Unpacked(name, file, compression), CHUNK_BYTES) as unpacked:
            yield unpacked


@contextmanager
def open_text(path: Path, name: str, encoding: str) -> Iterator[io.BufferedReader]:
    """The text of a file as checked UTF-8. Raises InvalidArgument, now or while it is read."""
    if encoding not in ENCODINGS:
        raise InvalidArgument(f"--encoding is one of {', '.join(ENCODINGS)}, not {encoding}.")
    with open_bytes(path, name) as file:
        yield io.BufferedReader(Utf8(name, file, encoding), CHUNK_BYTES)


def lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines with their ends. Raises InvalidArgument for one that is too long."""
    number = 0
    while line := stream.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > MOST_LINE_BYTES:
            raise broken(name, f"line {number:,} is longer than {MOST_LINE_BYTES >> 20} MiB; is it a text file?")
        yield line
