"""One optimiser step after another: the state of a tuning, and nothing about files or the clock.

The loss is normalised by the supervised tokens of the whole step, so packing, micro-batches and ranks change
no gradient.
Used by `loop.py`; a resume point stores `state()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarto.engine.data.batches import Batch, Tokenized, epoch_order, plan, shares, supervised_count
from sarto.engine.families.decoder import Decoder
from sarto.engine.lora import LoraAdapter
from sarto.engine.tuning.adamw import AdamW
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.tuning.supervised import MemoryPlan, batch_loss
from sarto.engine.tuning.team import Order, Team
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


@dataclass
class Sums:
    """Over the batches of a step or of a validation pass."""

    loss: float = 0.0
    right: int = 0
    targets: int = 0
    not_finite: list[int] = field(default_factory=list)
    """Lines of the batches whose loss is no finite number; at least one more than are named in a message."""

    def add(self, loss: float, right: int, batch: Batch) -> None:
        self.loss, self.right, self.targets = self.loss + loss, self.right + right, self.targets + len(batch.targets)
        if not math.isfinite(loss):
            self.not_finite += batch.lines

    def over(self, team: Team, device: torch.device) -> Sums:
        """The sums of all ranks."""
        if team.count == 1:
            return self
        told = torch.zeros(3 + team.count * (NAMED_LINES + 1), dtype=torch.float64)
        told[:3] = torch.tensor([self.loss, self.right, self.targets], dtype=told.dtype)
        lines = torch.tensor(self.not_finite[: NAMED_LINES + 1], dtype=told.dtype)
        own = 3 + team.rank * (NAMED_LINES + 1)
        told[own : own + len(lines)] = lines
        told = told.to(device)
        team.sum(told)
        loss, right, targets, *lines_of_all = told.tolist()
        return Sums(loss, int(right), int(targets), [int(line) for line in lines_of_all if line])


def take(examples: Examples, indices: Iterable[int]) -> list[Tokenized]:
    return [Tokenized(examples.tokens(i), examples.loss_mask(i), examples.line(i)) for i in indices]


class Trainer:
    """Owns adapter and optimiser; `completed` counts the steps behind it.

    Every rank of a team has one. The leader's takes the steps; the others' compute their share of the gradients when
    they are told to (`gradients`, `evaluate`), with the values the leader has."""

    def __init__(
        self,
        decoder: Decoder,
        adapter: LoraAdapter,
        examples: Examples,
        schedule: Schedule,
        optimisation: Optimisation,
        memory: MemoryPlan,
        team: Team | None = None,
    ) -> None:
        self.decoder, self.adapter, self.examples = decoder, adapter, examples
        self.schedule, self.optimisation, self.memory = schedule, optimisation, memory
        self.team = team or Team()
        self.completed = 0
        self._optimizer = AdamW(adapter.values, optimisation.weight_decay)

    def step(self) -> StepOutcome:
        """Raises FailedPrecondition, naming step and lines, when a loss or the gradient is not finite."""
        self.order("step")
        return self.update(take(self.examples, self.indices(self.completed + 1)))

    def order(self, kind: Literal["step", "probe", "evaluate", "logits"], tokens: Sequence[int] = ()) -> None:
        """Tell the other ranks what this one does next."""
        self.team.order(Order(kind=kind, number=self.completed + 1, memory=self.memory, tokens=list(tokens)))

    def update(self, examples: list[Tokenized]) -> StepOutcome:
        """A step on these very examples."""
        number = self.completed + 1
        found = self.gradients(examples)
        if found.not_finite:
            raise _not_finite("loss", number, found.not_finite)
        norm = self._clip(number, [example.line for example in examples])
        rate = self.schedule.rate(number)
        self._optimizer.step(self.adapter.gradients, rate)
        self.completed = number
        used = list(filter(_learns, examples))
        total, rendered = _targets(used), sum(len(example.tokens) for example in used)
        return StepOutcome(found.loss / total, found.right / total, total, rendered, rate, norm)

    def indices(self, number: int) -> Sequence[int]:
        """Rows of the number-th step."""
        size, per_epoch = self.schedule.batch_size, self.schedule.steps_per_epoch
        order = epoch_order(len(self.examples), self.optimisation.seed, self.schedule.epoch(number))
        first = (number - 1) % per_epoch * size
        return [int(i) for i in order[first : first + size]]

    def gradients(self, examples: list[Tokenized]) -> Sums:
        """Fresh gradients of a step on these examples, of which every rank computes its share."""
        adapter, device = self.adapter, self.decoder.device
        self.team.share(adapter.values)
        adapter.gradients.zero_()
        total, sums = _targets(examples), Sums()
        for batch, counts in self._batches(shares(examples, self.team.count)[self.team.rank], examples):
            each, hits = batch_loss(self.decoder, adapter, batch.to(device), self.memory)
            if counts:
                sums.add(float(each.detach()), int(hits), batch)
            (each * (counts / total)).backward()
        self.team.sum(adapter.gradients)
        return sums.over(self.team, device)

    def evaluate(self, examples: Examples) -> tuple[float, float, int]:
        """Mean loss, accuracy and count of supervised tokens over all examples. Raises FailedPrecondition if not
        finite."""
        self.order("evaluate")
        found = self.sums(examples)
        if found.not_finite:
            raise FailedPrecondition(
                "the validation loss is not a finite number; try a smaller learning rate multiplier"
            )
        total = max(1, found.targets)
        return found.loss / total, found.right / total, found.targets

    @torch.no_grad()
    def sums(self, examples: Examples) -> Sums:
        """Of losses over all examples, of which every rank computes its share."""
        self.team.share(self.adapter.values)
        sums, device = Sums(), self.decoder.device
        part, count = max(1, self.memory.token_budget // 64), self.team.count
        for start in range(0, len(examples), part * count):
            first = start + self.team.rank * part
            rows = take(examples, range(first, min(first + part, len(examples))))
            all_of_part = (take(examples, [i])[0] for i in range(start, min(start + part * count, len(examples))))
            for batch, counts in self._batches(rows, all_of_part):
                each, hits = batch_loss(self.decoder, self.adapter, batch.to(device), self.memory)
                if counts:
                    sums.add(float(each), int(hits), batch)
        return sums.over(self.team, device)

    def _batches(self, own: list[Tokenized], of_all: Iterable[Tokenized]) -> Iterator[tuple[Batch, bool]]:
        """This rank's batches; where ranks compute in step, then such as count for nothing, until all have as many."""
        batches = plan(own, self.memory.token_budget)
        most = self.team.most(len(batches), self.decoder.device) if self.decoder.is_sharded else 0
        yield from ((batch, True) for batch in batches)
        if most > len(batches):
            (batch,) = plan([next(filter(_learns, of_all))], self.memory.token_budget)
            yield from [(batch, False)] * (most - len(batches))

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


def _learns(example: Tokenized) -> bool:
    return supervised_count(example.loss_mask) > 0


def _targets(examples: Iterable[Tokenized]) -> int:
    return sum(supervised_count(example.loss_mask) for example in examples)


def _not_finite(what: str, step: int, lines: list[int]) -> FailedPrecondition:
    named = ", ".join(map(str, sorted(lines)[:NAMED_LINES])) + (", …" if len(lines) > NAMED_LINES else "")
    return FailedPrecondition(
        f"step {step}: the {what} is not a finite number. The step's examples are at lines {named} of the training "
        "data. Try a smaller learning rate multiplier, and look at those lines for unusual content."
    )
