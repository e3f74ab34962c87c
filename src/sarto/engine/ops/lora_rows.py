"""Low-rank terms with another adapter in each row, by lora_rows.cpp if the package has it: torch has no fast kernel for
that. The twin in torch is in `linear`, which checks `compiled_rows`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from torch import Tensor

from sarto.engine.ops.library import INT, INT64, POINTER, dense, find_library, is_half, load, rows_of

_TENSORS = (POINTER, POINTER, POINTER, INT64, POINTER, POINTER, POINTER, INT64)
_SIGNATURES = {"lora_rows": (INT, *[INT64] * 6, *_TENSORS)}


class CompiledRows:
    """The compiled library. Raises OSError if it cannot be loaded, AttributeError if it lacks the functions."""

    def __init__(self, path: Path) -> None:
        self._lora = load(path, _SIGNATURES)["lora_rows"]

    def lora(self, x: Tensor, slots: Tensor, parts: Tensor, a: Tensor, b: Tensor, rank: int, y: Tensor) -> None:
        """y (n, blocks · width) += B A x (n, inputs), row by row; slots (n,) int32, -1 for none; a (slots, inputs,
        projections · R), b (slots, blocks · R, width)."""
        self._lora(
            is_half(x), len(slots), a.shape[1], a.shape[2], rank, len(parts), b.shape[2], slots.data_ptr(),
            parts.data_ptr(), rows_of(x), x.stride(0), dense(a), dense(b), rows_of(y), y.stride(0),
        )  # fmt: skip


@cache
def compiled_rows() -> CompiledRows | None:
    """The library for this processor; None if the package was built without a compiler."""
    path = find_library()
    return CompiledRows(path) if path is not None else None
