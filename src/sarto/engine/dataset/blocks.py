"""Split a file of lines into blocks of whole lines, with one block in memory at a time. Knows no JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines at an offset of the file. An oversized line is a block of its own, whose bytes are not read."""

    offset: int
    size: int
    first_line: int
    is_oversized: bool = False

    def read(self, path: Path) -> bytes:
        if self.is_oversized:
            return b""
        with path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def scan(path: Path, max_line_bytes: int) -> Iterator[Block]:
    """Yield the blocks of a file in order. A line longer than `max_line_bytes` is an oversized block."""
    offset, line = 0, 1
    with path.open("rb") as file:
        while True:
            file.seek(offset)
            data = file.read(BLOCK_BYTES)
            if not data:
                return
            end = data.rfind(b"\n") + 1
            if end == 0 and len(data) == BLOCK_BYTES:
                size = len(data) + _rest_of_line(file)
                yield Block(offset, size, line, is_oversized=size > max_line_bytes)
                offset, line = offset + size, line + 1
                continue
            end = end or len(data)
            yield Block(offset, end, line)
            offset, line = offset + end, line + data.count(b"\n", 0, end)


def _rest_of_line(file: BinaryIO) -> int:
    """The number of bytes up to and including the next newline."""
    size = 0
    while chunk := file.read(BLOCK_BYTES):
        end = chunk.find(b"\n") + 1
        if end:
            return size + end
        size += len(chunk)
    return size


def read_line(path: Path, line: int, max_line_bytes: int) -> bytes | None:
    """The line with this 1-based number, without its newline; None when the file has fewer lines or the line is
    oversized."""
    for block in scan(path, max_line_bytes):
        if block.first_line > line:
            return None
        if block.is_oversized:
            continue
        lines = block.read(path).split(b"\n")
        if line < block.first_line + len(lines) - (0 if lines[-1] else 1):
            return lines[line - block.first_line]
    return None
