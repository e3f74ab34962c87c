"""The operations of a CUDA device: the fused ones with torch's flexible attention over one packed sequence.

Attention uses a document mask instead of one grid after the other. The operations between products are compiled region
by region. With `compiled` off the same code runs uncompiled, on any device, so that a test can compare it with
`reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sarto.engine.ops.eager_kernels import EagerKernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.reference import Activation, HeadShape, PlainOperations
from sarto.engine.ops.segments import Segments

MASK_BLOCK = 128
"""Side of the squares of the attention mask that are computed or skipped as a whole."""


class AcceleratedOperations(FusedOperations):
    """LoRA product and chunked loss are the fused ones; norm, rotation and gated unit the plain ones, compiled."""

    def __init__(self, *, compiled: bool) -> None:
        super().__init__(EagerKernels())
        self.name = f"accelerated, {'compiled' if compiled else 'eager'}"
        plain = PlainOperations()

        def region(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=True) if compiled else function

        self._add_norm, self._norm = region(plain.add_norm), region(plain.norm)
        self._rotate, self._gated = region(plain.rotate), region(plain.gated)
        self._flex = region(flex_attention)
        self._segments: Segments | None = None
        self._masks: dict[int | None, BlockMask] = {}

    def add_norm(self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = self._add_norm(stream, delta, weight, eps)
        return both

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed: Tensor = self._norm(x, weight, eps)
        return normed

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float) -> Tensor:
        turned: Tensor = self._rotate(qkv, cos, sin, shape, query_scale)
        return turned

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        out: Tensor = self._gated(gate_up, activation)
        return out

    def attend(self, qkv: Tensor, segments: Segments, shape: HeadShape, window: int | None, keep: bool) -> Tensor:
        """Attention under the document mask. `keep` has no effect: attention weights are never stored."""
        cells = qkv.index_select(0, segments.source).unflatten(1, (shape.total, shape.head_dim))
        q, k, v = cells.transpose(0, 1)[None].split([shape.heads, shape.kv_heads, shape.kv_heads], 1)  # (1, H, C, hd)
        mask = self._mask(segments, window)
        out: Tensor = self._flex(q, k, v, block_mask=mask, scale=1.0, enable_gqa=shape.heads != shape.kv_heads)
        return out[0].transpose(0, 1).flatten(1).index_select(0, segments.first)

    def _mask(self, segments: Segments, window: int | None) -> BlockMask:
        """The masks of a batch's segments, shared by all layers."""
        if self._segments is not segments:
            self._segments, self._masks = segments, {}
        if window not in self._masks:
            self._masks[window] = document_mask(segments, window)
        return self._masks[window]


def document_mask(segments: Segments, window: int | None) -> BlockMask:
    """A mask over the cells: a query sees the keys up to itself in its own sequence, the nearest `window` of them.

    Cells after the end of a sequence see it too, and their results are not used. Full and partial blocks are derived
    from the ends of the sequences; evaluating every pair of cells would take a matrix of all pairs."""
    lengths = [grid.length for grid in segments.grids for _ in range(grid.count)]
    cells = sum(lengths)
    count = -(-cells // MASK_BLOCK)
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sequence = F.pad(numbers, (0, count * MASK_BLOCK - cells), value=-1)
    first, last = sequence[::MASK_BLOCK], sequence[MASK_BLOCK - 1 :: MASK_BLOCK]
    at = torch.arange(count) * MASK_BLOCK
    query, key = at[:, None], at[None]
    is_before = key < query
    seen = is_before & (last[None] == first[:, None])
    whole = is_before & (first[None] == last[:, None])
    if window is not None:
        seen &= query - (key + MASK_BLOCK - 1) < window
        whole &= query + MASK_BLOCK - 1 - key < window
    seen |= key == query
    device = segments.source.device
    sequence = sequence.to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = (sequence[query] == sequence[key]) & (key <= query)
        return visible if window is None else visible & (key > query - window)

    in_part, whole_ones = _listed(seen & ~whole, device), _listed(whole, device)
    return BlockMask.from_kv_blocks(
        *in_part, *whole_ones, BLOCK_SIZE=MASK_BLOCK, mask_mod=sees, seq_lengths=(cells, cells)
    )


def _listed(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(queries, keys) of blocks to the number of blocks of each query, and their indices, first in the row: (1, 1, N)
    and (1, 1, N, N)."""
    order = blocks.int().argsort(stable=True, dim=1, descending=True)
    return blocks.sum(1)[None, None].int().to(device), order[None, None].int().to(device)
