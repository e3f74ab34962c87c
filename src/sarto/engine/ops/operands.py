"""Memory for operands of matrix products, with defined values after the end of each row.

A kernel may load whole blocks of columns and multiply the values after the end of a row by zero. oneDNN's bfloat16
kernels for matrix tiles (AMX) do so if rows have gaps and their length is no multiple of 32. Zero times uninitialised
memory can be NaN. So an operand is dense, or its rows end at a whole block, or zeros follow them. These functions
allocate all operands of training and serving. A test reads the memory after the operands of every product.
"""

from __future__ import annotations

from torch import Tensor

BLOCK = 32
"""Columns that a kernel may load at once."""
ROOM = 64
"""Free columns after a matrix that a LoRA product reads next: the thin factor is written there, without a copy of x."""


def aligned(columns: int) -> int:
    """A number rounded up to whole blocks."""
    return -(-columns // BLOCK) * BLOCK


def roomy(like: Tensor, rows: int, columns: int) -> Tensor:
    """An empty matrix (rows, columns) with free columns of zeros after it."""
    wide = like.new_empty(rows, columns + ROOM)
    wide[:, columns:] = 0
    return wide[:, :columns]


def beside(x: Tensor, columns: int) -> Tensor:
    """[x, at least this many free columns of zeros] as one matrix of whole blocks: in x's own free columns if it has
    enough, else in a copy."""
    rows, width = x.shape
    total = aligned(width + columns)
    if total <= width + ROOM and x.stride() == (width + ROOM, 1) and x.storage_offset() == 0:
        return x.as_strided((rows, total), x.stride())
    wide = x.new_empty(rows, total)
    wide[:, :width] = x
    wide[:, width:] = 0
    return wide


def bordered(weight: Tensor, columns: int) -> Tensor:
    """[[W, 0], [0, 0]], larger by at least this many rows and columns and rounded up to whole blocks."""
    outputs, inputs = weight.shape
    matrix = weight.new_empty(aligned(outputs + columns), aligned(inputs + columns))
    matrix[:outputs, :inputs] = weight
    matrix[:outputs, inputs:] = 0
    matrix[outputs:] = 0
    return matrix


def whole(x: Tensor) -> Tensor:
    """A part of a larger matrix in a form that a product may read: a copy if its rows have gaps and end within a
    block."""
    is_dense = x.stride(-2) == x.shape[-1]
    return x if x.stride(-1) == 1 and (is_dense or x.shape[-1] % BLOCK == 0) else x.contiguous()
