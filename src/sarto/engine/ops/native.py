"""The element-wise operations of kernels.cpp, called on raw pointers; a test compares them with their twin
`eager_kernels.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sarto.engine.ops.library import FLOAT, INT, INT64, POINTER, dense, is_half, load, rows_of
from sarto.engine.ops.reference import Activation, HeadShape
from sarto.engine.ops.segments import Block, Segments

KINDS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}
_I, _N, _P, _F = INT, INT64, POINTER, FLOAT
_SIGNATURES = {
    "norm_forward": (_I, _N, _N, _P, _P, _N, _P, _F, _P, _P, _P, _P, _N),
    "norm_backward": (_I, _N, _N, _P, _N, _P, _P, _P, _P, _P, _P, _N),
    "gated_forward": (_I, _I, _N, _N, _P, _N, _P, _N),
    "gated_backward": (_I, _I, _N, _N, _P, _N, _P, _N, _P, _N),
    "rotate": (_I, _N, _N, _N, _N, _P, _N, _P, _P, _F, _F, _P, _N),
    "softmax_forward": (_I, _N, _N, _N, _N, _N, _N, _P),
    "softmax_backward": (_I, _N, _N, _N, _N, _N, _N, _P, _P),
    "sum_uses": (_I, _N, _N, _P, _P, _P, _P, _N),
    "loss": (_I, _N, _N, _P, _P, _P, _P, _I),
}


class CompiledKernels:
    """The compiled kernels. Raises OSError if the library cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self.name = f"compiled {path.name.split('.')[0].removeprefix('_kernels_')}"
        self._call = load(path, _SIGNATURES)

    def norm_forward(
        self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float, out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, width = delta.shape
        total = delta.new_empty(rows, width, dtype=torch.float32)
        norm_input, scale = delta.new_empty(rows, width), total.new_empty(rows)
        self._call["norm_forward"](
            is_half(delta), rows, width, None if stream is None else dense(stream), rows_of(delta), delta.stride(0),
            dense(weight), eps, dense(total), dense(norm_input), dense(scale), rows_of(out), out.stride(0),
        )  # fmt: skip
        return total, norm_input, scale

    def norm_backward(
        self, grad: Tensor, stream_grad: Tensor | None, norm_input: Tensor, scale: Tensor, weight: Tensor, out: Tensor
    ) -> Tensor:
        rows, width = grad.shape
        total = scale.new_empty(rows, width)
        self._call["norm_backward"](
            is_half(grad), rows, width, rows_of(grad), grad.stride(0),
            None if stream_grad is None else dense(stream_grad),
            dense(norm_input), dense(scale), dense(weight), dense(total), rows_of(out), out.stride(0),
        )  # fmt: skip
        return total

    def gated_forward(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        self._call["gated_forward"](
            is_half(gate_up), KINDS[activation], *out.shape, rows_of(gate_up), gate_up.stride(0), rows_of(out),
            out.stride(0),
        )  # fmt: skip

    def gated_backward(self, grad: Tensor, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        self._call["gated_backward"](
            is_half(grad), KINDS[activation], *grad.shape, rows_of(grad), grad.stride(0), rows_of(gate_up),
            gate_up.stride(0), rows_of(out), out.stride(0),
        )  # fmt: skip

    def rotate(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float, sign: float, out: Tensor
    ) -> None:
        self._call["rotate"](
            is_half(qkv), len(qkv), shape.heads, shape.kv_heads, shape.head_dim, rows_of(qkv), qkv.stride(0),
            dense(cos), dense(sin), query_scale, sign, rows_of(out), out.stride(0),
        )  # fmt: skip

    def softmax_forward(self, scores: Tensor, block: Block, window: int | None) -> Tensor:
        self._call["softmax_forward"](*_span(scores, block, window), dense(scores))
        return scores

    def softmax_backward(self, weights: Tensor, grad: Tensor, block: Block, window: int | None) -> Tensor:
        self._call["softmax_backward"](*_span(grad, block, window), dense(weights), dense(grad))
        return grad

    def sum_uses(self, cells: Tensor, segments: Segments, out: Tensor) -> None:
        self._call["sum_uses"](
            is_half(cells), *out.shape, dense(cells), dense(segments.starts), dense(segments.uses), rows_of(out),
            out.stride(0),
        )  # fmt: skip

    def loss(self, logits: Tensor, targets: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        right = logits.new_empty(len(logits), dtype=torch.bool)
        self._call["loss"](
            is_half(logits), *logits.shape, dense(logits), dense(targets), dense(losses), dense(right), gradient
        )
        return losses, right


def _span(scores: Tensor, block: Block, window: int | None) -> tuple[int, ...]:
    """(Z, rep * queries, keys) and its position in the sequence, in the library's form."""
    rows, keys = scores.shape[0] * scores.shape[1], scores.shape[2]
    return is_half(scores), rows, block.last - block.first, keys, block.first, block.low, window or 0
