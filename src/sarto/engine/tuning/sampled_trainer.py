"""A trainer whose rows are sampled: in each step the present weights answer prompts, and the answers are learned by
their rewards. Gradients, updates and resume points are those of `Trainer`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sarto.contract.common import TuningParameters
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.trainable import Trainable
from sarto.engine.tuning.methods.method import Loss, Method
from sarto.engine.tuning.methods.reinforcement import PolicyLoss, Rollout, rows_of_groups
from sarto.engine.tuning.packing import MemoryPlan, TokenizedExample, TokenizedRows, take
from sarto.engine.tuning.ranks import Ranks
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.tuning.trainer import Evaluated, LossSums, Optimisation, StepOutcome, Trainer
from sarto.errors import FailedPrecondition

MEAN_NATS = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest mean difference of a sampled token's log-probability between sampler and trainer."""
WORST_NATS = {torch.float32: 1e-3, torch.bfloat16: 2.0}
"""The same for a single token. In bfloat16 the logits of improbable tokens are rounded in steps of 1/8, so the mean is
the sharper test there. Measured with a base of 135 million parameters and AMX: 0.030 and 0.25, in float32 8e-6 and
7e-5."""


class SampledTrainer(Trainer):
    def __init__(self, *parts: Any, rollout: Rollout) -> None:
        """`parts` are the arguments of `Trainer`."""
        super().__init__(*parts)
        self.rollout = rollout

    def step(self) -> StepOutcome:
        """Sample, score and learn. Raises as `gradients` does, before the weights change."""
        number = self.completed + 1
        prompts = take(self.examples, self.indices(number))
        sampled = self.rollout.sample(number, prompts)
        outcome = self.update(rows_of_groups(prompts, sampled.groups))
        return replace(outcome, measured=outcome.measured | sampled.measured)

    def gradients(self, rows: list[TokenizedExample]) -> LossSums:
        """Those of the rows. Raises FailedPrecondition when sampler and trainer have other log-probabilities."""
        assert isinstance(self.loss, PolicyLoss)
        self.loss.worst = 0.0
        sums = super().gradients(rows)
        self._check_match(self._means(sums, self.method.units(rows))["mismatch"], self.loss.worst)
        return sums

    def evaluate(self, examples: TokenizedRows) -> Evaluated:
        """The mean reward of greedy answers. The loss is its negative, since fewer is better in a loss."""
        measured = self.rollout.evaluate(self.completed, take(examples, range(len(examples))))
        return Evaluated(-measured["reward"], measured, len(examples))

    def was_saved(self) -> None:
        self.rollout.forget(self.completed)

    def _check_match(self, mean: float, worst: float) -> None:
        dtype = self.decoder.dtype
        if mean > MEAN_NATS[dtype] or worst > WORST_NATS[dtype]:
            raise FailedPrecondition(
                f"Step {self.completed + 1}: the log-probabilities of sampler and trainer differ by {mean:.3g} nats in "
                f"the mean and by up to {worst:.3g}; {MEAN_NATS[dtype]:g} and {WORST_NATS[dtype]:g} are allowed with "
                f"{str(dtype).removeprefix('torch.')} weights. The answers were not learned; please report this, it is "
                "a fault of the service."
            )


def make_trainer(
    decoder: Decoder,
    adapter: Trainable,
    method: Method,
    loss: Loss,
    examples: TokenizedRows,
    schedule: Schedule,
    given: TuningParameters,
    memory: MemoryPlan,
    ranks: Ranks,
    rollout: Rollout | None,
) -> Trainer:
    """The trainer of a run: one whose rows are sampled if there is a rollout."""
    optimisation = Optimisation(given.weight_decay, given.max_grad_norm, given.seed)
    parts = (decoder, adapter, method, loss, examples, schedule, optimisation, memory, ranks)
    return Trainer(*parts) if rollout is None else SampledTrainer(*parts, rollout=rollout)
