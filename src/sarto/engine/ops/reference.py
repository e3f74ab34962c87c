"""The operations that decide the speed, in plain differentiable torch: their definition, and the fallback on devices
without a faster twin.

`Operations` is the seam; a decoder has one set, chosen once by `select.py`. Knows no model and no files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.engine.ops.operands import bordered, whole
from sarto.engine.ops.segments import Block, Segments, seen

Activation = Literal["silu", "gelu_tanh"]
LOSS_ROWS = 256
"""Rows of logits in memory at once: (LOSS_ROWS, V)."""


@dataclass(frozen=True)
class HeadShape:
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def total(self) -> int:
        return self.heads + 2 * self.kv_heads


@dataclass(frozen=True)
class LoraWeights:
    """One frozen matrix with the adapters of its projections.

    `bordered` (N + R, K + R), each rounded up to a whole block of zeros, is [[W, sB], [A, 0]]: W is in its corner. Each
    product rewrites the thin borders from the float32 parameters. `cuts` are (first row, rows) of each adapted
    projection in W. Projection i owns columns [i r, (i + 1) r) of the border, rows [i r, (i + 1) r) of A, and its rows
    in B."""

    bordered: Tensor | None
    """None if W is stored in another form; then a matrix is built for every product."""
    bias: Tensor | None
    outputs: int
    inputs: int
    rank: int
    scale: float
    cuts: tuple[tuple[int, int], ...]
    a: Tensor
    """(R, K) float32"""
    b: tuple[Tensor, ...]
    """Each (rows, r) float32."""
    frozen: Callable[[], Tensor] | None = None
    """Returns W (N, K) if `bordered` is None."""

    @property
    def weight(self) -> Tensor:
        if self.frozen is not None:
            return self.frozen()
        assert self.bordered is not None
        return self.bordered[: self.outputs, : self.inputs]

    def filled(self) -> Tensor:
        """The bordered matrix, with its borders rewritten from the parameters."""
        matrix = bordered(self.weight, len(self.a)) if self.bordered is None else self.bordered
        matrix[self.outputs : self.outputs + len(self.a), : self.inputs] = self.a
        for index, ((first, rows), part) in enumerate(zip(self.cuts, self.b, strict=True)):
            columns = slice(self.inputs + index * self.rank, self.inputs + (index + 1) * self.rank)
            torch.mul(part, self.scale, out=matrix[first : first + rows, columns])
        return matrix

    def still_filled(self) -> Tensor:
        """The bordered matrix a second time, before the parameters change."""
        return self.filled() if self.bordered is None else self.bordered


class Operations(Protocol):
    name: str

    def add_norm(self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Residual stream plus delta in float32 (N, D), and its root-mean-square norm in delta's dtype (N, D)."""
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension, float32 inside, x's dtype outside."""
        ...

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float) -> Tensor:
        """Rotary positions on q and k, the attention scale on q: (N, (H + 2 HK) hd), with cos, sin (N, hd / 2)."""
        ...

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """activation(gate) * up: (N, 2 F) → (N, F)."""
        ...

    def lora(self, x: Tensor, weights: LoraWeights) -> Tensor:
        """x W^T + bias + scale (x A^T) B^T: (N, K) → (N, outputs). W gets no gradient."""
        ...

    def attend(self, qkv: Tensor, segments: Segments, shape: HeadShape, window: int | None, keep: bool) -> Tensor:
        """Causal attention inside each sequence: (T, (H + 2 HK) hd), rotated and scaled, → (T, H hd).

        Without `keep`, attention weights are computed again in the backward pass."""
        ...

    def token_loss(self, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(P, D), (V, D), (P,) → cross-entropy of each target in nats, (P,) float32 and differentiable, and the number
        of targets that rank first."""
        ...


class PlainOperations:
    name = "plain"

    def add_norm(self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        stream = delta.float() if stream is None else stream + delta
        return stream, F.rms_norm(stream, stream.shape[-1:], weight, eps).to(delta.dtype)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float) -> Tensor:
        x = qkv.unflatten(1, (shape.total, -1))  # (N, H + 2 HK, hd)
        turning = shape.heads + shape.kv_heads
        first, second = x[:, :turning].float().chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        q, k = torch.cat([first * c - second * s, second * c + first * s], -1).split([shape.heads, shape.kv_heads], 1)
        return torch.cat([(q * query_scale).to(x.dtype), k.to(x.dtype), x[:, turning:]], 1).flatten(1)

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up

    def lora(self, x: Tensor, weights: LoraWeights) -> Tensor:
        y = F.linear(x, weights.weight, weights.bias)
        h = F.linear(x, weights.a.to(x.dtype))  # (N, R)
        for (first, rows), part, b in zip(weights.cuts, h.split(weights.rank, 1), weights.b, strict=True):
            term = F.linear(whole(part), b.to(x.dtype)) * weights.scale
            y = y.slice_scatter(y[:, first : first + rows] + term, 1, first, first + rows)
        return y

    def attend(self, qkv: Tensor, segments: Segments, shape: HeadShape, window: int | None, keep: bool) -> Tensor:
        cells = qkv.index_select(0, segments.source).unflatten(1, (shape.total, shape.head_dim))
        parts = []
        for grid in segments.grids:
            x = cells[grid.cells].unflatten(0, (grid.count, grid.length)).transpose(1, 2)  # (B, heads, L, hd)
            q, k, v = map(whole, x.split([shape.heads, shape.kv_heads, shape.kv_heads], 1))
            mask = None if window is None else seen(Block(0, grid.length, 0), window, qkv.device)
            out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=1.0, enable_gqa=True)
            parts.append(out.transpose(1, 2).reshape(grid.count * grid.length, -1))
        return torch.cat(parts).index_select(0, segments.first)

    def token_loss(self, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses = []
        right = torch.zeros((), dtype=torch.int64, device=hidden.device)
        for rows, target_rows in zip(hidden.split(LOSS_ROWS), targets.split(LOSS_ROWS), strict=True):
            logits = F.linear(rows, head).float()
            losses.append(F.cross_entropy(logits, target_rows, reduction="none"))
            right = right + logits.detach().argmax(-1).eq(target_rows).sum()
        return torch.cat(losses), right
