"""AdamW on one vector, as torch's; written out, because importing torch's optimisers takes a second or more.

Used by `trainer.py`. All state is in the open, for resume points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8


class AdamW:
    def __init__(self, values: Tensor, weight_decay: float) -> None:
        """`values` (N,) float32 is updated in place."""
        self.values, self.weight_decay = values, weight_decay
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)
        self.completed = 0
        self._scratch = torch.empty_like(values)

    @torch.no_grad()
    def step(self, gradients: Tensor, rate: float) -> None:
        self.completed += 1
        self.values.mul_(1 - rate * self.weight_decay)
        self.mean.lerp_(gradients, 1 - FIRST_DECAY)
        self.square.mul_(SECOND_DECAY).addcmul_(gradients, gradients, value=1 - SECOND_DECAY)
        torch.sqrt(self.square, out=self._scratch)
        self._scratch.div_(math.sqrt(1 - SECOND_DECAY**self.completed)).add_(EPSILON)
        self.values.addcdiv_(self.mean, self._scratch, value=-rate / (1 - FIRST_DECAY**self.completed))
