"""Safetensors files as large as a model, with one tensor at a time in memory: the library's writer copies all of
them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
NAMED = {name: dtype for dtype, name in TYPES.items()}
PIECE_BYTES = 1 << 22


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write float32 or bfloat16 tensors in the order of the mapping."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]
        }  # fmt: skip
        at += tensor.nbytes
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)
    with path.open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for tensor in tensors.values():
            file.write(content(tensor))


def content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy if it is dense and in the processor's memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


class StoredTensors:
    """The tensors of a file, read in pieces, so that the file's pages do not count as this process's memory.

    Raises OSError, ValueError or KeyError for a file that is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
        self._data = 8 + size
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._entries: dict[str, dict[str, Any]] = header

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def add_to(self, digest: hashlib._Hash, name: str) -> None:
        """Add a tensor's bytes to a digest."""
        first, last = self._entries[name]["data_offsets"]
        with self._path.open("rb") as file:
            file.seek(self._data + int(first))
            for left in range(int(last) - int(first), 0, -PIECE_BYTES):
                piece = file.read(min(left, PIECE_BYTES))
                if len(piece) < min(left, PIECE_BYTES):
                    raise ValueError("it is shorter than its header says")
                digest.update(piece)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in memory of its own."""
        entry = self._entries[name]
        first, last = entry["data_offsets"]
        values = np.fromfile(self._path, np.uint8, int(last) - int(first), offset=self._data + int(first))
        return torch.from_numpy(values).view(NAMED[entry["dtype"]]).view(entry["shape"])
