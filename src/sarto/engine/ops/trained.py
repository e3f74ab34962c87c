"""Operations on weights that are trained whole. Their backward pass adds the gradient of a weight to a float32 tensor.

Autograd would store one gradient in the weight's dtype for each batch and add them up in it. Here every batch is added
in float32, in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from sarto.engine.ops.eager_kernels import EagerKernels, Kernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.operands import whole
from sarto.engine.ops.reference import LOSS_ROWS, Operations


@dataclass(frozen=True)
class TrainedMatrix:
    """A matrix W (N, K) in the dtype of the products, with its bias; gradients are float32 of the same shapes."""

    values: Tensor
    gradient: Tensor
    bias: Tensor | None = None
    bias_gradient: Tensor | None = None

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Add grad^T x to the gradient of W, and the sum of grad's rows to that of the bias."""
        if grad.dtype == self.gradient.dtype:
            self.gradient.addmm_(grad.t(), x)
        else:
            self.gradient.add_(torch.mm(grad.t(), x))
        if self.bias_gradient is not None:
            self.bias_gradient.add_(grad.float().sum(0))


def linear(x: Tensor, matrix: TrainedMatrix) -> Tensor:
    """x W^T + bias: (T, K) → (T, N). x must be part of the graph."""
    y: Tensor = _Linear.apply(x, matrix)  # type: ignore[no-untyped-call]
    return y


def embed(tokens: Tensor, matrix: TrainedMatrix, anchor: Tensor) -> Tensor:
    """Rows of W: (T,) int64 → (T, K). `anchor` is any tensor that requires a gradient; it connects the result to the
    graph, and gets none."""
    rows: Tensor = _Embed.apply(anchor, tokens, matrix)  # type: ignore[no-untyped-call]
    return rows


def token_loss(ops: Operations, hidden: Tensor, head: TrainedMatrix, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `Operations.token_loss`."""
    kernels = ops.kernels if isinstance(ops, FusedOperations) else EagerKernels()
    both: tuple[Tensor, Tensor] = _TokenLoss.apply(hidden, head, targets, kernels)  # type: ignore[no-untyped-call]
    return both


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: TrainedMatrix) -> Tensor:
        ctx.save_for_backward(x)
        ctx.matrix = matrix
        return F.linear(x, matrix.values, matrix.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad, x = whole(grad), whole(x)
        ctx.matrix.add(grad, x)
        return torch.mm(grad, ctx.matrix.values), None


class _Embed(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tokens: Tensor, matrix: TrainedMatrix) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.matrix = matrix
        return F.embedding(tokens, matrix.values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (tokens,) = ctx.saved_tensors
        ctx.matrix.gradient.index_add_(0, tokens, grad.float())
        return None, None, None


class _TokenLoss(Function):
    """Logits are computed twice, in chunks: the head's gradient needs the factor of each loss, which only the backward
    pass has. The head is applied to supervised tokens only, so this costs a few hundredths of a step."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: TrainedMatrix, targets: Tensor, kernels: Kernels
    ) -> tuple[Tensor, Tensor]:
        losses, right = [], []
        for first in range(0, len(hidden), LOSS_ROWS):
            rows = slice(first, first + LOSS_ROWS)
            each, hits = kernels.loss(torch.mm(hidden[rows], head.values.t()), targets[rows], False)
            losses.append(each)
            right.append(hits)
        ctx.save_for_backward(hidden, targets)
        ctx.given = head, kernels
        count = torch.cat(right).sum()
        ctx.mark_non_differentiable(count)
        return torch.cat(losses), count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets = ctx.saved_tensors
        head, kernels = ctx.given
        out, factors = hidden.new_empty(hidden.shape), grad.to(hidden.dtype)[:, None]
        for first in range(0, len(hidden), LOSS_ROWS):
            rows = slice(first, first + LOSS_ROWS)
            logits = torch.mm(hidden[rows], head.values.t())
            kernels.loss(logits, targets[rows], True)
            head.add(logits, hidden[rows] * factors[rows])
            torch.mm(logits, head.values, out=out[rows])
        return out.mul_(factors), None, None, None
