"""One optimiser step after another: the state of a tuning, without files and clock.

The loss is divided by the units of the whole step, so packing, micro-batches and ranks change no gradient. A resume
point stores `state()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sarto.engine.models.decoder import Decoder
from sarto.engine.models.trainable import Trainable
from sarto.engine.tuning.adamw import AdamW
from sarto.engine.tuning.methods.method import Loss, Method
from sarto.engine.tuning.packing import (
    Batch,
    MemoryPlan,
    TokenizedExample,
    TokenizedRows,
    epoch_order,
    rows_of,
    shares,
    supervised_count,
    take,
    whole,
)
from sarto.engine.tuning.ranks import RankCommand, Ranks
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.weights.tensor_file import StoredTensors
from sarto.errors import FailedPrecondition

NAMED_LINES = 20


@dataclass(frozen=True)
class Optimisation:
    weight_decay: float
    max_grad_norm: float
    seed: int


@dataclass(frozen=True)
class StepOutcome:
    loss: float
    """Mean over the step's units, in nats."""
    measured: dict[str, float]
    """Means of the method's measures, by field of StepMetrics."""
    supervised_tokens: int
    """Number of the step's units."""
    target_tokens: int
    """Tokens with a computed probability."""
    rendered_tokens: int
    computed_tokens: int
    """Computed tokens; a prefix that examples share counts once here, and in each example of the rendered tokens."""
    learning_rate: float
    gradient_norm: float


@dataclass(frozen=True)
class Evaluated:
    """A validation pass: mean loss in nats, means of the method's measures by field of EvalMetrics, and the units."""

    loss: float
    measured: dict[str, float]
    units: int


@dataclass
class LossSums:
    """Sums over the batches of a step or of a validation pass."""

    measured: list[float]
    """Sums of the method's measures."""
    loss: float = 0.0
    units: int = 0
    computed: int = 0
    targets: int = 0
    not_finite: list[int] = field(default_factory=list)
    """Lines of the batches whose loss is not finite; at most one more than a message lists."""

    def add(self, loss: float, measured: list[float], batch: Batch) -> None:
        self.loss += loss
        self.measured = [before + more for before, more in zip(self.measured, measured, strict=True)]
        self.computed += len(batch.tokens)
        self.targets += len(batch.targets)
        if not math.isfinite(loss):
            self.not_finite += batch.lines

    def over(self, ranks: Ranks, device: torch.device) -> LossSums:
        """The sums over all ranks."""
        if ranks.count == 1:
            return self
        own = [self.loss, self.units, self.computed, self.targets, *self.measured]
        vector = torch.zeros(len(own) + ranks.count * (NAMED_LINES + 1), dtype=torch.float64)
        vector[: len(own)] = torch.tensor(own, dtype=vector.dtype)
        lines = torch.tensor(self.not_finite[: NAMED_LINES + 1], dtype=vector.dtype)
        at = len(own) + ranks.rank * (NAMED_LINES + 1)
        vector[at : at + len(lines)] = lines
        vector = vector.to(device)
        ranks.sum(vector)
        loss, units, computed, targets, *rest = vector.tolist()
        measured, lines_of_all = rest[: len(self.measured)], rest[len(self.measured) :]
        not_finite = [int(line) for line in lines_of_all if line]
        return LossSums(measured, loss, int(units), int(computed), int(targets), not_finite)


class Trainer:
    """Owns adapter and optimiser; `completed` is the number of completed steps.

    Every rank has one. The leader's performs the steps. The others compute their share of the gradients by command
    (`gradients`, `evaluate`), with the leader's values."""

    def __init__(
        self,
        decoder: Decoder,
        adapter: Trainable,
        method: Method,
        loss: Loss,
        examples: TokenizedRows,
        schedule: Schedule,
        optimisation: Optimisation,
        memory: MemoryPlan,
        ranks: Ranks | None = None,
    ) -> None:
        """`loss` is the result of the method's `begin`."""
        self.decoder, self.adapter, self.method, self.loss = decoder, adapter, method, loss
        self.examples = examples
        self.schedule, self.optimisation, self.memory = schedule, optimisation, memory
        self.ranks = ranks or Ranks()
        self.completed = 0
        self._optimizer = AdamW(adapter.values, optimisation.weight_decay)

    def step(self) -> StepOutcome:
        """Perform a step. Raises FailedPrecondition with step and lines when a loss or the gradient is not finite."""
        self.command("step")
        return self.update(take(self.examples, self.indices(self.completed + 1)))

    def command(self, kind: Literal["step", "probe", "evaluate", "logits"], tokens: Sequence[int] = ()) -> None:
        """Send the other ranks the command that this rank executes next."""
        self.ranks.command(RankCommand(kind=kind, number=self.completed + 1, memory=self.memory, tokens=list(tokens)))

    def update(self, rows: list[TokenizedExample]) -> StepOutcome:
        """Perform a step on these rows, which are those of whole examples."""
        number = self.completed + 1
        sums = self.gradients(rows)
        if sums.not_finite:
            raise _not_finite("loss", number, sums.not_finite)
        norm = self._clip(number, [row.line for row in rows])
        rate = self.schedule.rate(number)
        self._optimizer.step(self.adapter.gradients, rate)
        self.adapter.refresh()
        self.completed = number
        used = list(filter(_learns, rows))
        total, rendered = self.method.units(used), sum(len(row.tokens) for row in used)
        return StepOutcome(
            sums.loss / total, self._means(sums, total), total, sums.targets, rendered, sums.computed, rate, norm
        )

    def _means(self, sums: LossSums, units: int) -> dict[str, float]:
        return {name: value / units for name, value in zip(self.method.measures, sums.measured, strict=True)}

    def _no_sums(self) -> LossSums:
        return LossSums([0.0] * len(self.method.measures))

    def indices(self, number: int) -> Sequence[int]:
        """Rows of this step."""
        per_example, places = self.method.rows_per_example, self.schedule.places(number)
        count, seed = len(self.examples) // per_example, self.optimisation.seed
        orders = {epoch: epoch_order(count, seed, epoch) for epoch in {epoch for epoch, _ in places}}
        return rows_of([orders[epoch][place] for epoch, place in places], per_example)

    def gradients(self, rows: list[TokenizedExample]) -> LossSums:
        """New gradients of a step on the rows of whole examples, of which every rank computes its share."""
        adapter, device = self.adapter, self.decoder.device
        self._share()
        adapter.gradients.zero_()
        total, sums = self.method.units(rows), self._no_sums()
        own = shares(rows, self.ranks.count, self.method.rows_per_example)[self.ranks.rank]
        for batch, counts in self._batches(own, rows):
            each, measured = self.loss(batch.to(device), self.memory)
            if counts:
                sums.add(float(each.detach()), measured.tolist(), batch)
            (each * (counts / total)).backward()
        self.ranks.sum(adapter.gradients)
        return sums.over(self.ranks, device)

    def evaluate(self, examples: TokenizedRows) -> Evaluated:
        """Means over all examples. Raises FailedPrecondition if the loss is not finite."""
        self.command("evaluate")
        sums = self.sums(examples)
        if sums.not_finite:
            raise FailedPrecondition(
                "The validation loss is not a finite number; try a smaller learning rate multiplier."
            )
        total = max(1, sums.units)
        return Evaluated(sums.loss / total, self._means(sums, total), sums.units)

    @torch.no_grad()
    def sums(self, examples: TokenizedRows) -> LossSums:
        """Sums of losses over all examples, of which every rank computes its share."""
        self._share()
        sums, device = self._no_sums(), self.decoder.device
        count, per_example = self.ranks.count, self.method.rows_per_example
        part = max(1, self.memory.token_budget // 64 // per_example) * per_example
        for start in range(0, len(examples), part * count):
            first = start + self.ranks.rank * part
            rows = take(examples, range(first, min(first + part, len(examples))))
            sums.units += self.method.units(rows)
            all_of_part = (take(examples, [i])[0] for i in range(start, min(start + part * count, len(examples))))
            for batch, counts in self._batches(rows, all_of_part):
                each, measured = self.loss(batch.to(device), self.memory)
                if counts:
                    sums.add(float(each), measured.tolist(), batch)
        return sums.over(self.ranks, device)

    def _batches(self, own: list[TokenizedExample], of_all: Iterable[TokenizedExample]) -> Iterator[tuple[Batch, bool]]:
        """This rank's batches; if ranks compute in step, followed by batches without weight until all ranks have the
        same number."""
        batches = self.method.plan(own, self.memory.token_budget)
        most = self.ranks.most(len(batches), self.decoder.device) if self.decoder.is_sharded else 0
        yield from ((batch, True) for batch in batches)
        if most > len(batches):
            examples = whole(of_all, self.method.rows_per_example)
            learning = next(example for example in examples if any(map(_learns, example)))
            batch = self.method.plan(learning, self.memory.token_budget)[0]
            yield from [(batch, False)] * (most - len(batches))

    def _share(self) -> None:
        """The leader's values on every rank."""
        if self.ranks.count > 1:
            self.ranks.share(self.adapter.values)
            self.adapter.refresh()

    def state(self) -> dict[str, Tensor]:
        """Views of everything that changes from step to step, except `completed`."""
        return {"values": self.adapter.values, "mean": self._optimizer.mean, "square": self._optimizer.square}

    def was_saved(self) -> None:
        """A resume point has the present state."""

    def restore(self, completed: int, state: StoredTensors) -> None:
        self.completed = self._optimizer.completed = completed
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.adapter.refresh()

    def _clip(self, number: int, lines: list[int]) -> float:
        norm = float(self.adapter.gradients.norm())
        if not math.isfinite(norm):
            raise _not_finite("gradient", number, lines)
        if norm > self.optimisation.max_grad_norm:
            self.adapter.gradients.mul_(self.optimisation.max_grad_norm / norm)
        return norm


def _learns(row: TokenizedExample) -> bool:
    return supervised_count(row.loss_mask) > 0


def _not_finite(what: str, step: int, lines: list[int]) -> FailedPrecondition:
    named = ", ".join(map(str, sorted(lines)[:NAMED_LINES])) + (", …" if len(lines) > NAMED_LINES else "")
    return FailedPrecondition(
        f"Step {step}: the {what} is not a finite number. The step's examples are at lines {named} of the training "
        "data. Try a smaller learning rate multiplier, and check those lines for unusual content."
    )
