"""TensorBoard event files with scalars, written without a library. An event is a protocol buffer message of a few
fields, framed as a TFRecord with masked checksums."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import google_crc32c

WALL_TIME, STEP, FILE_VERSION, SUMMARY = 1, 2, 3, 5
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5


class EventFile:
    """Appends and flushes; a file that ends in the middle of an event is readable up to there."""

    def __init__(self, folder: Path, start: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{int(start)}.sarto").open("wb")
        self._write(_double(WALL_TIME, start) + _bytes(FILE_VERSION, b"brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float], time: float) -> None:
        summary = b"".join(_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in values.items())
        self._write(_double(WALL_TIME, time) + _varint_field(STEP, step) + _bytes(SUMMARY, summary))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))
        self._file.flush()


def _checksum(data: bytes) -> bytes:
    """A masked checksum: without the mask, a checksum of data that contains checksums would be trivial."""
    plain = int(google_crc32c.value(data))
    return struct.pack("<I", ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | EIGHT_BYTES) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | FOUR_BYTES) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | BYTES) + _varint(len(value)) + value
