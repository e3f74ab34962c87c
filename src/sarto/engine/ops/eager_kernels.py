"""The element-wise operations between matrix products, in eager torch: the same functions as `native.py` (kernels.cpp).

Values are stored in the weights' dtype, sums are float32. No autograd.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.engine.ops.reference import Activation, HeadShape
from sarto.engine.ops.segments import Block, Segments, seen


class Kernels(Protocol):
    name: str

    def norm_forward(
        self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float, out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fills `out`; returns the new stream (N, D), the values for the backward pass, and 1 / rms (N,)."""
        ...

    def norm_backward(
        self, grad: Tensor, stream_grad: Tensor | None, norm_input: Tensor, scale: Tensor, weight: Tensor, out: Tensor
    ) -> Tensor:
        """Gradient of the stream (N, D) float32; a copy in the weights' dtype goes to `out`."""
        ...

    def gated_forward(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None: ...

    def gated_backward(self, grad: Tensor, gate_up: Tensor, activation: Activation, out: Tensor) -> None: ...

    def rotate(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float, sign: float, out: Tensor
    ) -> None:
        """Rotate q and k and scale q. With sign -1 it is the backward pass: the inverse rotation with the same
        scale."""
        ...

    def softmax_forward(self, scores: Tensor, block: Block, window: int | None) -> Tensor:
        """(Z, rep * queries, keys) to weights, in place if possible; unseen keys get zero."""
        ...

    def softmax_backward(self, weights: Tensor, grad: Tensor, block: Block, window: int | None) -> Tensor: ...

    def sum_uses(self, cells: Tensor, segments: Segments, out: Tensor) -> None:
        """out (T, W) gets, for every row, the sum of its cells (C, W)."""
        ...

    def loss(self, logits: Tensor, targets: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        """Loss of each row in nats (P,) float32 and whether its target ranks first; logits become softmax - onehot."""
        ...


class EagerKernels:
    name = "eager"

    def norm_forward(
        self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float, out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        stream = delta.float() if stream is None else stream + delta
        squares = torch.linalg.vector_norm(stream, dim=-1).square()
        scale = squares.div_(stream.shape[1]).add_(eps).rsqrt_()
        out.copy_((stream * scale[:, None]).mul_(weight))
        return stream, stream, scale

    def norm_backward(
        self, grad: Tensor, stream_grad: Tensor | None, norm_input: Tensor, scale: Tensor, weight: Tensor, out: Tensor
    ) -> Tensor:
        weighted = grad.float() * weight
        toward = (weighted * norm_input).sum(-1, keepdim=True).mul_(scale[:, None].pow(3).div_(-norm_input.shape[1]))
        total = weighted.mul_(scale[:, None]).addcmul_(norm_input.float(), toward)
        if stream_grad is not None:
            total += stream_grad
        out.copy_(total)
        return total

    def gated_forward(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        gate, up = gate_up.chunk(2, -1)
        torch.mul(F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh"), up, out=out)

    def gated_backward(self, grad: Tensor, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        (gate, up), (gate_grad, up_grad) = gate_up.chunk(2, -1), out.chunk(2, -1)
        if activation == "silu":
            torch.mul(grad, F.silu(gate), out=up_grad)
            gate_grad.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        else:
            torch.mul(grad, F.gelu(gate, approximate="tanh"), out=up_grad)
            gate_grad.copy_(torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh"))

    def rotate(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float, sign: float, out: Tensor
    ) -> None:
        width, turning = shape.head_dim, shape.heads + shape.kv_heads
        first, second = qkv[:, : turning * width].unflatten(1, (turning, width)).float().chunk(2, -1)
        to = out[:, : turning * width].unflatten(1, (turning, width))
        scales = torch.ones(turning, 1, device=qkv.device)
        scales[: shape.heads] = query_scale
        c, s = cos[:, None] * scales, sin[:, None] * scales * sign
        to[..., : width // 2] = first * c - second * s
        to[..., width // 2 :] = second * c + first * s
        out[:, turning * width :] = qkv[:, turning * width :]

    def softmax_forward(self, scores: Tensor, block: Block, window: int | None) -> Tensor:
        visible = seen(block, window, scores.device)
        stacked = scores.unflatten(1, (-1, len(visible)))
        weights: Tensor = stacked.masked_fill_(~visible, float("-inf")).softmax(-1).flatten(1, 2)
        return weights

    def softmax_backward(self, weights: Tensor, grad: Tensor, block: Block, window: int | None) -> Tensor:
        scores: Tensor = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
        return scores

    def sum_uses(self, cells: Tensor, segments: Segments, out: Tensor) -> None:
        if not segments.shared:
            torch.index_select(cells, 0, segments.first, out=out)
            return
        rows = segments.source.index_select(0, segments.uses)
        total = torch.zeros(out.shape, device=cells.device)
        out.copy_(total.index_add_(0, rows, cells.index_select(0, segments.uses).float()))

    def loss(self, logits: Tensor, targets: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        logs = torch.log_softmax(logits.float(), -1)
        at = targets[:, None]
        losses = logs.gather(1, at).neg_().flatten()
        right = logits.argmax(-1) == targets
        if gradient:
            logits.copy_(logs.exp_().scatter_add_(1, at, torch.full_like(losses, -1.0)[:, None]))
        return losses, right
