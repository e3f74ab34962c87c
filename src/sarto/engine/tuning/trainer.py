"""One optimiser step after another: the state of a tuning, and nothing about files or the clock.

The loss is normalised by the supervised tokens of the whole step, so packing and micro-batches change no gradient.
Used by `loop.py`; a resume point stores `state()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarto.engine.data.batches import Batch, Tokenized, epoch_order, plan
from sarto.engine.families.decoder import Decoder
from sarto.engine.lora import LoraAdapter
from sarto.engine.tuning.adamw import AdamW
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.tuning.supervised import MemoryPlan, batch_loss
from sarto.errors import FailedPrecondition

NAMED_LINES = 20


class Examples(Protocol):
    """Tokenised rows by number; `line` is where a row stands in the user's file."""

    def __len__(self) -> int: ...
    def tokens(self, index: int) -> npt.NDArray[np.uint32]: ...
    def loss_mask(self, index: int) -> npt.NDArray[np.bool_]: ...
    def line(self, index: int) -> int: ...


@dataclass(frozen=True)
class Optimisation:
    weight_decay: float
    max_grad_norm: float
    seed: int


@dataclass(frozen=True)
class StepOutcome:
    loss: float
    """Mean over the step's supervised tokens, in nats."""
    accuracy: float
    supervised_tokens: int
    rendered_tokens: int
    learning_rate: float
    gradient_norm: float


def take(examples: Examples, indices: Iterable[int]) -> list[Tokenized]:
    return [Tokenized(examples.tokens(i), examples.loss_mask(i), examples.line(i)) for i in indices]


class Trainer:
    """Owns adapter and optimiser; `completed` counts the steps behind it."""

    def __init__(
        self,
        decoder: Decoder,
        adapter: LoraAdapter,
        examples: Examples,
        schedule: Schedule,
        optimisation: Optimisation,
        memory: MemoryPlan,
    ) -> None:
        self.decoder, self.adapter, self.examples = decoder, adapter, examples
        self.schedule, self.optimisation, self.memory = schedule, optimisation, memory
        self.completed = 0
        self._optimizer = AdamW(adapter.values, optimisation.weight_decay)

    def step(self) -> StepOutcome:
        """Raises FailedPrecondition, naming step and lines, when a loss or the gradient is not finite."""
        return self.update(take(self.examples, self.indices(self.completed + 1)))

    def update(self, examples: list[Tokenized]) -> StepOutcome:
        """A step on these very examples."""
        number = self.completed + 1
        batches = plan(examples, self.memory.token_budget)
        lines = [example.line for example in examples]
        total = sum(len(batch.targets) for batch in batches)
        loss, right = self.accumulate(batches, total, number)
        norm = self._clip(number, lines)
        rate = self.schedule.rate(number)
        self._optimizer.step(self.adapter.gradients, rate)
        self.completed = number
        rendered = sum(batch.rendered_tokens for batch in batches)
        return StepOutcome(loss, right / total, total, rendered, rate, norm)

    def indices(self, number: int) -> Sequence[int]:
        """Rows of the number-th step."""
        size, per_epoch = self.schedule.batch_size, self.schedule.steps_per_epoch
        order = epoch_order(len(self.examples), self.optimisation.seed, self.schedule.epoch(number))
        first = (number - 1) % per_epoch * size
        return [int(i) for i in order[first : first + size]]

    def accumulate(self, batches: list[Batch], total: int, number: int) -> tuple[float, int]:
        """Fresh gradients of a step: mean loss and count of right targets."""
        self.adapter.gradients.zero_()
        loss, right = 0.0, 0
        for batch in batches:
            each, hits = batch_loss(self.decoder, self.adapter, batch.to(self.decoder.device), self.memory)
            value = float(each.detach())
            if not math.isfinite(value):
                raise _not_finite("loss", number, list(batch.lines))
            (each / total).backward()
            loss += value / total
            right += int(hits)
        return loss, right

    def state(self) -> dict[str, Tensor]:
        """Views of everything that changes from step to step, `completed` apart."""
        return {"values": self.adapter.values, "mean": self._optimizer.mean, "square": self._optimizer.square}

    def restore(self, completed: int, state: dict[str, Tensor]) -> None:
        self.completed = self._optimizer.completed = completed
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def _clip(self, number: int, lines: list[int]) -> float:
        norm = float(self.adapter.gradients.norm())
        if not math.isfinite(norm):
            raise _not_finite("gradient", number, lines)
        if norm > self.optimisation.max_grad_norm:
            self.adapter.gradients.mul_(self.optimisation.max_grad_norm / norm)
        return norm


def _not_finite(what: str, step: int, lines: list[int]) -> FailedPrecondition:
    named = ", ".join(map(str, sorted(lines)[:NAMED_LINES])) + (", …" if len(lines) > NAMED_LINES else "")
    return FailedPrecondition(
        f"step {step}: the {what} is not a finite number. The step's examples are at lines {named} of the training "
        "data. Try a smaller learning rate multiplier, and look at those lines for unusual content."
    )


@torch.no_grad()
def evaluate(
    decoder: Decoder, adapter: LoraAdapter, examples: Examples, memory: MemoryPlan
) -> tuple[float, float, int]:
    """Mean loss, accuracy and count of supervised tokens over all examples. Raises FailedPrecondition if not finite."""
    loss, right, total = 0.0, 0, 0
    part = max(1, memory.token_budget // 64)
    for first in range(0, len(examples), part):
        rows = take(examples, range(first, min(first + part, len(examples))))
        for batch in plan(rows, memory.token_budget):
            each, hits = batch_loss(decoder, adapter, batch.to(decoder.device), memory)
            loss, right, total = loss + float(each), right + int(hits), total + len(batch.targets)
    if not math.isfinite(loss):
        raise FailedPrecondition("the validation loss is not a finite number; try a smaller learning rate multiplier")
    return loss / max(1, total), right / max(1, total), total
