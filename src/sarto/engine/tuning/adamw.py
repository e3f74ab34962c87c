"""AdamW on one vector, as torch's. Implemented here because importing torch's optimisers takes a second or more.

All state is accessible, for resume points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8
PIECE = 1 << 17
"""Values that are updated together: their state stays in the processor's cache from one operation to the next."""


class AdamW:
    def __init__(self, values: Tensor, weight_decay: float) -> None:
        """`values` (N,) float32 is updated in place."""
        self.values, self.weight_decay = values, weight_decay
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)
        self.completed = 0
        self._scratch = torch.empty_like(values[:PIECE])

    @torch.no_grad()
    def step(self, gradients: Tensor, rate: float) -> None:
        self.completed += 1
        state = (self.values, self.mean, self.square, gradients)
        for values, mean, square, gradient in zip(*(vector.split(PIECE) for vector in state), strict=True):
            scratch = self._scratch[: len(values)]
            values.mul_(1 - rate * self.weight_decay)
            mean.lerp_(gradient, 1 - FIRST_DECAY)
            square.mul_(SECOND_DECAY).addcmul_(gradient, gradient, value=1 - SECOND_DECAY)
            torch.sqrt(square, out=scratch)
            scratch.div_(math.sqrt(1 - SECOND_DECAY**self.completed)).add_(EPSILON)
            values.addcdiv_(mean, scratch, value=-rate / (1 - FIRST_DECAY**self.completed))
