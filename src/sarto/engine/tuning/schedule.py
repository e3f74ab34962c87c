"""Schedule of a run by step numbers: learning rate, epochs, evaluations, checkpoints. Pure arithmetic.

Steps are counted from 1; step s is the s-th optimiser step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sarto.contract.tuning_run import EvalMetrics

CHECKPOINTS = 10
"""Below this many epochs every epoch has a checkpoint; from it on about this many are spread evenly."""
EVALUATION_SHARE = 0.05
"""Evaluations between the epoch ends may cost this share of the training tokens."""
FINAL_RATE = 0.1
"""The cosine ends at this share of the learning rate."""
PATIENCE = 2
"""Consecutive evaluations above the best from which validation loss counts as turned."""


@dataclass(frozen=True)
class Schedule:
    examples: int
    batch_size: int
    epochs: int
    learning_rate: float
    warmup_steps: int
    steps: int = 0
    """Number of steps of a schedule that is counted in steps; 0 for whole epochs. Its batches continue across the end
    of an epoch."""
    evaluate_every: int = 0
    checkpoint_every: int = 0
    """Intervals in steps, of a schedule that is counted in steps."""

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.examples // self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps or self.steps_per_epoch * self.epochs

    def epoch(self, step: int) -> int:
        """1-based."""
        if self.steps:
            return (step - 1) * self.batch_size // self.examples + 1
        return (step - 1) // self.steps_per_epoch + 1

    def places(self, step: int) -> list[tuple[int, int]]:
        """(Epoch, place in its order) of each example of a step."""
        if self.steps:
            first = (step - 1) * self.batch_size
            cut = (divmod(at, self.examples) for at in range(first, first + self.batch_size))
            return [(epochs + 1, place) for epochs, place in cut]
        first = (step - 1) % self.steps_per_epoch * self.batch_size
        return [(self.epoch(step), at) for at in range(first, min(first + self.batch_size, self.examples))]

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine down to a tenth."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))

    def checkpoint_steps(self, last_only: bool) -> frozenset[int]:
        if self.steps:
            return self._every(self.checkpoint_every)
        if last_only:
            return frozenset({self.total_steps})
        count = min(self.epochs, CHECKPOINTS)
        return frozenset(round(i * self.epochs / count) * self.steps_per_epoch for i in range(1, count + 1))

    def evaluation_steps(self, training_tokens: int, validation_tokens: int) -> frozenset[int]:
        """The end of every epoch, and steps evenly between as far as the cost allows; tokens are those of one pass."""
        if self.steps:
            return self._every(self.evaluate_every)
        ends = {epoch * self.steps_per_epoch for epoch in range(1, self.epochs + 1)}
        # a validation token costs about a third of a training token: no backward pass
        between = int(EVALUATION_SHARE * 3 * training_tokens / max(1, validation_tokens))  # per epoch
        inner = min(between, 3, self.steps_per_epoch - 1)
        cuts = (round(self.steps_per_epoch * i / (inner + 1)) for i in range(1, inner + 1))
        return frozenset(ends | {end - self.steps_per_epoch + cut for cut in cuts for end in ends})

    def _every(self, interval: int) -> frozenset[int]:
        return frozenset({*range(interval, self.total_steps, interval), self.total_steps})


def turned(evaluations: Sequence[EvalMetrics]) -> bool:
    """Whether validation loss was above its best for PATIENCE consecutive evaluations, and is rising."""
    if len(evaluations) <= PATIENCE:
        return False
    best = min(each.loss for each in evaluations[:-PATIENCE])
    last = [each.loss for each in evaluations[-PATIENCE:]]
    return all(loss > best for loss in last) and last == sorted(last)
