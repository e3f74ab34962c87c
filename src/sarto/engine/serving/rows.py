"""Low-rank terms with another adapter in each row, from rows.cpp where the package was built with it: torch has no good
kernel for that. The twin in torch is in `products`, which asks `compiled_rows` whether this is there."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from sarto.engine.ops.compiled import find_library

_I, _N, _P = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


class CompiledRows:
    """Raises OSError for a library that cannot be loaded, AttributeError for one without these functions."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self._lora = library.sarto_lora_rows
        self._lora.argtypes = (_I, *[_N] * 6, _P, _P, _P, _N, _P, _P, _P, _N)
        self._lora.restype = None

    def lora(self, x: Tensor, slots: Tensor, parts: Tensor, a: Tensor, b: Tensor, rank: int, y: Tensor) -> None:
        """y (n, blocks · width) += B A x (n, inputs), row by row; slots (n,) int32, -1 for none; a (slots, inputs,
        projections · R), b (slots, blocks · R, width)."""
        self._lora(
            _is_half(x), len(slots), a.shape[1], a.shape[2], rank, len(parts), b.shape[2], slots.data_ptr(),
            parts.data_ptr(), _rows(x), x.stride(0), _dense(a), _dense(b), _rows(y), y.stride(0),
        )  # fmt: skip


@cache
def compiled_rows() -> CompiledRows | None:
    """Of this processor, or None where the package was built without a compiler."""
    path = find_library()
    return CompiledRows(str(path)) if path is not None else None


def _is_half(tensor: Tensor) -> bool:
    assert tensor.dtype in (torch.bfloat16, torch.float32), tensor.dtype
    return tensor.dtype == torch.bfloat16


def _dense(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _rows(tensor: Tensor) -> int:
    """A matrix whose rows are dense; they may lie apart."""
    assert tensor.stride(1) == 1
    return tensor.data_ptr()
