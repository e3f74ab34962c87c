"""Operations with a backward pass of their own. Unneeded values are not kept, no gradient of a frozen weight is
computed, and products are as few and as large as possible. Autograd only connects them.

The matrix products are torch's; the element-wise steps between them come from a `Kernels` (eager torch, or
kernels.cpp).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sarto.engine.ops.eager_kernels import Kernels
from sarto.engine.ops.operands import beside, roomy, whole
from sarto.engine.ops.reference import LOSS_ROWS, Activation, HeadShape, LoraWeights
from sarto.engine.ops.segments import Block, Grid, Segments, blocks


class FusedOperations:
    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.name = f"fused, {kernels.name}"

    def add_norm(self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = _AddNorm.apply(stream, delta, weight, eps, self.kernels)  # type: ignore[no-untyped-call]
        return both

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        normed: Tensor = _AddNorm.apply(None, flat, weight, eps, self.kernels)[1]  # type: ignore[no-untyped-call]
        return normed.reshape(x.shape)

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float) -> Tensor:
        turned: Tensor = _Rotate.apply(qkv, cos, sin, shape, query_scale, self.kernels)  # type: ignore[no-untyped-call]
        return turned

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        out: Tensor = _Gated.apply(gate_up, activation, self.kernels)  # type: ignore[no-untyped-call]
        return out

    def lora(self, x: Tensor, weights: LoraWeights) -> Tensor:
        y: Tensor = _Lora.apply(x, weights, weights.a, *weights.b)  # type: ignore[no-untyped-call]
        return y

    def attend(self, qkv: Tensor, segments: Segments, shape: HeadShape, window: int | None, keep: bool) -> Tensor:
        out: Tensor = _Attend.apply(qkv, segments, shape, window, keep, self.kernels)  # type: ignore[no-untyped-call]
        return out

    def token_loss(self, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = _TokenLoss.apply(hidden, head, targets, self.kernels)  # type: ignore[no-untyped-call]
        return both


class _AddNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float, kernels: Kernels
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        out = roomy(delta, *delta.shape)
        stream, norm_input, scale = kernels.norm_forward(stream, delta, weight, eps, out)
        ctx.save_for_backward(norm_input, scale, weight)
        ctx.kernels = kernels
        return stream, out

    @staticmethod
    def backward(ctx: Any, stream_grad: Tensor | None, grad: Tensor) -> tuple[Tensor | None, ...]:
        norm_input, scale, weight = ctx.saved_tensors
        out = roomy(grad, *grad.shape)
        total = ctx.kernels.norm_backward(grad, stream_grad, norm_input, scale, weight, out)
        weight_grad = None
        if ctx.needs_input_grad[2]:
            weight_grad = torch.mv((grad.float() * norm_input).t(), scale)
        return total if ctx.needs_input_grad[0] else None, out, weight_grad, None, None


class _Rotate(Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float, kernels: Kernels
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.arguments = shape, query_scale, kernels
        out = torch.empty_like(qkv)
        kernels.rotate(qkv, cos, sin, shape, query_scale, 1.0, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shape, query_scale, kernels = ctx.arguments
        out = roomy(grad, *grad.shape)
        kernels.rotate(grad, *ctx.saved_tensors, shape, query_scale, -1.0, out)
        return out, None, None, None, None, None


class _Gated(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: Activation, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.arguments = activation, kernels
        out = roomy(gate_up, gate_up.shape[0], gate_up.shape[1] // 2)
        kernels.gated_forward(gate_up, activation, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        activation, kernels = ctx.arguments
        out = roomy(gate_up, *gate_up.shape)
        kernels.gated_backward(grad, gate_up, activation, out)
        return out, None, None


class _Lora(Function):
    """With h = x A^T, one product [x, h] [W, sB]^T gives base and adapter with one rounding. A small term added to an
    output that is already rounded to bfloat16 would mostly be lost. Backward likewise, [dy, dh] [[W], [A]]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: LoraWeights, a: Tensor, *b: Tensor) -> Tensor:
        matrix, outputs, inputs = weights.filled(), weights.outputs, weights.inputs
        wide = beside(x, len(a))  # (N, K + R), to a whole block
        last = inputs + len(a)
        torch.mm(wide[:, :inputs], matrix[outputs : outputs + len(a), :inputs].t(), out=wide[:, inputs:last])
        ctx.save_for_backward(wide)
        ctx.weights = weights
        product = matrix[:outputs, : wide.shape[1]].t()
        return torch.mm(wide, product) if weights.bias is None else torch.addmm(weights.bias, wide, product)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (wide,) = ctx.saved_tensors
        weights: LoraWeights = ctx.weights
        matrix, outputs, inputs, rank = weights.still_filled(), weights.outputs, weights.inputs, weights.rank
        thin = rank * len(weights.cuts)
        wide_grad = beside(grad, thin)  # (N, outputs + R), to a whole block
        b_grads = []
        for index, (first, rows) in enumerate(weights.cuts):
            part = whole(grad[:, first : first + rows])
            columns = slice(inputs + index * rank, inputs + (index + 1) * rank)
            at = outputs + index * rank
            torch.mm(part, whole(matrix[first : first + rows, columns]), out=wide_grad[:, at : at + rank])
            b_grads.append(torch.mm(part.t(), whole(wide[:, columns])).float().mul_(weights.scale))
        a_grad = torch.mm(whole(wide_grad[:, outputs : outputs + thin]).t(), wide[:, :inputs]).float()
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = torch.mm(wide_grad, matrix[: wide_grad.shape[1], :inputs])
        return x_grad, None, a_grad, *b_grads


class _Attend(Function):
    """Query heads with a common key head are stacked, so that grouped attention is two batched products without copies
    of keys. Sequences of similar length are computed together."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, segments: Segments, shape: HeadShape, window: int | None, keep: bool, kernels: Kernels
    ) -> Tensor:
        cells = qkv.index_select(0, segments.source)  # (C, (H + 2 HK) hd)
        out = cells.new_empty(len(cells), shape.heads * shape.head_dim)
        saved = []
        for grid in segments.grids:
            q, k, v = _stacked(cells, grid, shape)
            answers = _by_head(out, grid, shape.heads, shape.head_dim)  # (B, H, L, hd)
            for block in blocks(grid.length, window, grid.skip):
                queries = _queries(q, block)
                weights = _weights(queries, k, block, window, kernels)
                part = torch.bmm(weights, v[:, block.low : block.last])
                answers[:, :, block.first : block.last] = part.view(grid.count, shape.heads, -1, shape.head_dim)
                if keep:
                    saved.append(weights)
        ctx.save_for_backward(qkv if segments.shared else cells, *saved)  # whichever is smaller
        ctx.arguments = segments, shape, window, keep, kernels
        return torch.index_select(out, 0, segments.first, out=roomy(out, len(qkv), out.shape[1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cells, *saved = ctx.saved_tensors
        segments, shape, window, keep, kernels = ctx.arguments
        cells = cells.index_select(0, segments.source) if segments.shared else cells
        width = shape.head_dim
        grad_cells = grad.new_zeros(len(cells), grad.shape[1]).index_copy_(0, segments.first, grad)
        out = torch.empty_like(cells)
        at = 0
        for grid in segments.grids:
            q, k, v = _stacked(cells, grid, shape)
            answers = _by_head(grad_cells, grid, shape.heads, width).unflatten(1, (shape.kv_heads, -1))
            to = _by_head(out, grid, shape.total, width)
            k_grad, v_grad = torch.zeros_like(k), torch.zeros_like(v)
            to[:, : shape.heads, : grid.skip] = 0
            for block in blocks(grid.length, window, grid.skip):
                queries, keys = _queries(q, block), slice(block.low, block.last)
                weights = saved[at] if keep else _weights(queries, k, block, window, kernels)
                at += 1
                part = _queries(answers, block)
                scores = torch.bmm(part, v[:, keys].transpose(1, 2))
                scores = kernels.softmax_backward(weights, scores, block, window)
                q_grad = torch.bmm(scores, k[:, keys]).view(grid.count, shape.heads, -1, width)
                to[:, : shape.heads, block.first : block.last] = q_grad
                k_grad[:, keys] += torch.bmm(scores.transpose(1, 2), queries)
                v_grad[:, keys] += torch.bmm(weights.transpose(1, 2), part)
            to[:, shape.heads : -shape.kv_heads] = k_grad.view(grid.count, shape.kv_heads, -1, width)
            to[:, -shape.kv_heads :] = v_grad.view(grid.count, shape.kv_heads, -1, width)
        rows = grad.new_empty(len(segments.first), cells.shape[1])
        kernels.sum_uses(out, segments, rows)
        return rows, None, None, None, None, None


def _by_head(cells: Tensor, grid: Grid, heads: int, width: int) -> Tensor:
    """A view of a grid's cells: (B, heads, L, hd)."""
    return cells[grid.cells].view(grid.count, grid.length, heads, width).transpose(1, 2)


def _stacked(cells: Tensor, grid: Grid, shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, HK, rep, L, hd) as a view; k and v (B HK, L, hd) in a layout for products."""
    x = _by_head(cells, grid, shape.total, shape.head_dim)
    q = x[:, : shape.heads].unflatten(1, (shape.kv_heads, -1))
    k = x[:, shape.heads : -shape.kv_heads].reshape(-1, grid.length, shape.head_dim)
    v = x[:, -shape.kv_heads :].reshape(-1, grid.length, shape.head_dim)
    return q, whole(k), whole(v)


def _queries(q: Tensor, block: Block) -> Tensor:
    """(B, HK, rep, L, hd) → (B HK, rep * queries, hd)."""
    part = q[:, :, :, block.first : block.last]
    return whole(part.reshape(part.shape[0] * part.shape[1], -1, part.shape[-1]))


def _weights(queries: Tensor, k: Tensor, block: Block, window: int | None, kernels: Kernels) -> Tensor:
    scores = torch.bmm(queries, k[:, block.low : block.last].transpose(1, 2))
    return kernels.softmax_forward(scores, block, window)


class _TokenLoss(Function):
    """Losses and gradients in one pass over chunks of logits: a row of `hidden` has one target, so its gradient is
    known up to a factor before the factor is."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if needs_gradient else None
        losses, right = [], []
        for first in range(0, len(hidden), LOSS_ROWS):
            rows = slice(first, first + LOSS_ROWS)
            logits = torch.mm(hidden[rows], head.t())
            each, hits = kernels.loss(logits, targets[rows], needs_gradient)
            losses.append(each)
            right.append(hits)
            if grad is not None:
                torch.mm(logits, head, out=grad[rows])
        ctx.save_for_backward(grad)
        count = torch.cat(right).sum()
        ctx.mark_non_differentiable(count)
        return torch.cat(losses), count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (hidden_grad,) = ctx.saved_tensors
        return hidden_grad * grad.to(hidden_grad.dtype)[:, None], None, None, None
