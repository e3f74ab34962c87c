"""The operations of a CUDA device: the fused ones with torch's flexible attention over one packed sequence.

Attention sees a document mask instead of grids one after the other; what lies between products is compiled region by
region. With `compiled` off the same code runs uncompiled, on any device, which is how a test holds it equal to `plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.kernels import EagerKernels
from sarto.engine.ops.plain import Activation, HeadShape, PlainOperations
from sarto.engine.ops.segments import Segments


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
        """`keep` says nothing here: attention weights never exist."""
        cells = qkv.index_select(0, segments.source).unflatten(1, (shape.total, shape.head_dim))
        q, k, v = cells.transpose(0, 1)[None].split([shape.heads, shape.kv_heads, shape.kv_heads], 1)  # (1, H, C, hd)
        mask = self._mask(segments, window)
        out: Tensor = self._flex(q, k, v, block_mask=mask, scale=1.0, enable_gqa=shape.heads != shape.kv_heads)
        return out[0].transpose(0, 1).flatten(1).index_select(0, segments.first)

    def _mask(self, segments: Segments, window: int | None) -> BlockMask:
        """All layers of a batch share the masks of its segments."""
        if self._segments is not segments:
            self._segments, self._masks = segments, {}
        if window not in self._masks:
            self._masks[window] = document_mask(segments, window)
        return self._masks[window]


def document_mask(segments: Segments, window: int | None) -> BlockMask:
    """Over the cells: a query sees the keys at and before it in its own sequence, the nearest `window` of them.

    Cells behind the end of a sequence see it too, and nothing reads them."""
    device = segments.source.device
    lengths = [grid.length for grid in segments.grids for _ in range(grid.count)]
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)  # (C,)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = (sequence[query] == sequence[key]) & (key <= query)
        return visible if window is None else visible & (key > query - window)

    cells = len(sequence)
    return create_block_mask(sees, None, None, cells, cells, device=str(device))
