"""Reads GGUF files: metadata and tensors, checked before they are mapped.

Layout (GGUF specification, version 2 and 3, little endian): magic, version, counts, key-value pairs, tensor table,
alignment padding, tensor data. Every count, length and offset is checked against the file's size, so a broken or
hostile file causes InvalidArgument with bounded memory, never a crash.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sarto.errors import InvalidArgument

MAGIC = b"GGUF"
MAX_ITEMS = 4_000_000
MAX_TENSORS = 100_000
MAX_DEPTH = 4
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """A storage type: `block` values have `size_bytes` bytes."""

    name: str
    block: int
    size_bytes: int


FORMATS = {
    0: Format("F32", 1, 4),
    1: Format("F16", 1, 2),
    2: Format("Q4_0", 32, 18),
    3: Format("Q4_1", 32, 20),
    8: Format("Q8_0", 32, 34),
    30: Format("BF16", 1, 2),
}


@dataclass(frozen=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]
    """Row-major, as in torch: (out, in)."""
    format: Format
    offset: int
    size_bytes: int


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.end = data, 0, len(data)

    def take(self, count: int) -> bytes:
        if count < 0 or count > self.end - self.at:
            raise InvalidArgument(f"GGUF file ends inside its header (byte {self.at}); download it again.")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY or depth >= MAX_DEPTH:
            raise InvalidArgument(f"GGUF metadata has an unknown value type {kind} (byte {self.at}).")
        item, count = self.number("<I"), self.number("<Q")
        if count > MAX_ITEMS:
            raise InvalidArgument(f"GGUF metadata has an array of {count} items; at most {MAX_ITEMS} are allowed.")
        return [self.value(item, depth + 1) for _ in range(count)]


class GgufFile:
    """An open file. `metadata` and `tensors` are read at once; `tensor` decodes one."""

    def __init__(self, data: mmap.mmap) -> None:
        cursor = _Cursor(data)
        if cursor.take(4) != MAGIC:
            raise InvalidArgument("Not a GGUF file: the first four bytes are not GGUF.")
        version = cursor.number("<I")
        if version not in (2, 3):
            raise InvalidArgument(f"GGUF version {version} is not supported; versions 2 and 3 are.")
        tensor_count, pair_count = cursor.number("<Q"), cursor.number("<Q")
        if tensor_count > MAX_TENSORS or pair_count > MAX_TENSORS:
            raise InvalidArgument(
                f"GGUF header claims {tensor_count} tensors and {pair_count} keys; the file is broken."
            )
        self._data = data
        self.metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = cursor.text()
            self.metadata[key] = cursor.value(cursor.number("<I"))
        table = [self._entry(cursor) for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 4096:
            raise InvalidArgument(f"GGUF alignment {alignment!r} is not a number from 1 to 4096.")
        start = -(-cursor.at // alignment) * alignment
        self.tensors = {name: self._tensor_info(name, shape, kind, start + at) for name, shape, kind, at in table}
        placed = sorted(self.tensors.values(), key=lambda tensor: tensor.offset)
        for one, following in pairwise(placed):
            if one.offset + one.size_bytes > following.offset:
                raise InvalidArgument(f"GGUF tensors {one.name!r} and {following.name!r} overlap; the file is broken.")

    @staticmethod
    def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = cursor.text(), cursor.number("<I")
        if not 1 <= dimensions <= 4:
            raise InvalidArgument(f"GGUF tensor {name!r} has {dimensions} dimensions; 1 to 4 are possible.")
        shape = tuple(reversed([cursor.number("<Q") for _ in range(dimensions)]))
        return name, shape, cursor.number("<I"), cursor.number("<Q")

    def _tensor_info(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorInfo:
        if kind not in FORMATS:
            known = ", ".join(f.name for f in FORMATS.values())
            raise InvalidArgument(f"GGUF tensor {name!r} has storage type {kind}; Sarto reads {known}.")
        form, count = FORMATS[kind], 1
        for size in shape:
            count *= size
        if not count:  # its other dimensions could be anything
            raise InvalidArgument(f"GGUF tensor {name!r} has no values; the file is broken.")
        if shape[-1] % form.block:
            raise InvalidArgument(
                f"GGUF tensor {name!r}: rows of {shape[-1]} do not divide into blocks of {form.block}."
            )
        size_bytes = count // form.block * form.size_bytes
        if offset + size_bytes > len(self._data):
            raise InvalidArgument(f"GGUF tensor {name!r} is beyond the end of the file; download it again.")
        return TensorInfo(name, shape, form, offset, size_bytes)

    def tensor(self, name: str) -> Floats:
        """The tensor as float32 in its row-major shape. Raises InvalidArgument if the file does not have it."""
        info = self.tensors.get(name)
        if info is None:
            raise InvalidArgument(f"GGUF file has no tensor {name!r}.")
        raw = np.frombuffer(self._data, np.uint8, info.size_bytes, info.offset)
        with np.errstate(all="ignore"):  # a scale may be infinite in a broken file
            return _decode(raw, info.format).reshape(info.shape)


@contextmanager
def open_gguf(path: Path) -> Iterator[GgufFile]:
    """Map the file read-only within the context."""
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise InvalidArgument(f"{path.name} is too short to be a GGUF file.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield GgufFile(data)


def _decode(raw: npt.NDArray[np.uint8], form: Format) -> Floats:
    """Bytes of whole blocks to float32. Layouts: GGUF quantisation types (scale d, minimum m in half precision)."""
    if form.name == "F32":
        return raw.view(np.float32).copy()
    if form.name == "F16":
        return raw.view(np.float16).astype(np.float32)
    if form.name == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    blocks = raw.reshape(-1, form.size_bytes)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)  # (blocks, 1)
    if form.name == "Q8_0":
        return (blocks[:, 2:].view(np.int8).astype(np.float32) * scale).ravel()
    at = 2 if form.name == "Q4_0" else 4
    packed = blocks[:, at:]
    quants = np.concatenate([packed & 0x0F, packed >> 4], axis=1).astype(np.float32)  # (blocks, 32)
    if form.name == "Q4_0":
        return ((quants - 8.0) * scale).ravel()
    minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    return (quants * scale + minimum).ravel()
