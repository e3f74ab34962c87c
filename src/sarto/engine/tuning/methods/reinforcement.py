"""Reinforcement tuning: one clipped on-policy step for each batch of sampled answers (GRPO, arXiv 2402.03300).

The loss is averaged over the tokens of the batch (DAPO, arXiv 2503.14476), with a small distance to the initial model.
A row is a prompt with one sampled answer: `reference` is the advantage of the answer, `values` are the
log-probabilities with which its tokens were sampled.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sarto.contract.tuning_run import SERIES
from sarto.engine.dataset.statistics import data_stats
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.trainable import Trainable
from sarto.engine.tuning.methods.method import Loss, Method, Start
from sarto.engine.tuning.methods.target_losses import target_losses
from sarto.engine.tuning.packing import (
    Batch,
    MemoryPlan,
    TokenizedExample,
    TokenizedRows,
    plan,
    supervised_count,
)
from sarto.errors import InvalidArgument

DEVIATION = 1e-4
"""Added to the standard deviation of a group's rewards, as in TRL."""
CLIP = 0.2


@dataclass(frozen=True)
class Answer:
    """A sampled answer. Numbers are those of the sampler."""

    tokens: list[int]
    """With the token that ends it, unless it was cut at the limit of its length."""
    logprobs: list[float]
    """Log-probability of each token in nats."""
    is_cut: bool
    reward: float | None
    """None if the reward could not be computed."""


@dataclass(frozen=True)
class Sampled:
    """The answers of one step, a group for each of its prompts."""

    groups: list[list[Answer]]
    measured: dict[str, float]
    """Fields of StepMetrics."""


class Rollout(Protocol):
    """Answers of the present weights to prompts, with their rewards."""

    def sample(self, number: int, prompts: Sequence[TokenizedExample]) -> Sampled:
        """The answers of step `number`: those of an earlier attempt if they were stored."""
        ...

    def evaluate(self, number: int, prompts: Sequence[TokenizedExample]) -> dict[str, float]:
        """Fields of EvalMetrics after step `number`: one greedy answer to each prompt."""
        ...

    def forget(self, completed: int) -> None:
        """A resume point has these steps, so their answers are not needed any more."""
        ...


def advantages(rewards: Sequence[float | None]) -> list[float]:
    """Advantage of each answer of a group: (reward - mean) / (sample standard deviation + DEVIATION). Answers without a
    reward have 0 and do not count."""
    known = [reward for reward in rewards if reward is not None and math.isfinite(reward)]
    if len(known) < 2:
        return [0.0] * len(rewards)
    mean, scale = statistics.fmean(known), statistics.stdev(known) + DEVIATION
    return [0.0 if reward is None or not math.isfinite(reward) else (reward - mean) / scale for reward in rewards]


def rows_of_groups(prompts: Sequence[TokenizedExample], groups: Iterable[Sequence[Answer]]) -> list[TokenizedExample]:
    """A row for each answer with a reward."""
    rows = []
    for prompt, answers in zip(prompts, groups, strict=True):
        weights = advantages([answer.reward for answer in answers])
        for answer, weight in zip(answers, weights, strict=True):
            if answer.reward is None:
                continue
            tokens = np.concatenate([prompt.tokens, np.array(answer.tokens, np.uint32)])
            mask = np.arange(len(tokens)) >= len(prompt.tokens)
            rows.append(TokenizedExample(tokens, mask, prompt.line, weight, np.array(answer.logprobs)))
    return rows


def token_losses(
    logprobs: Tensor, old: Tensor, references: Tensor, weights: Tensor, *, clip: float, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """Loss of each token and its distance to the reference in nats, all (P,).

    With the ratio r = exp(logprob - old), the loss is -min(r A, clip(r, 1 - c, 1 + c) A) + w r (e^d - d - 1), where
    d = reference - logprob. The ratio is a factor of the distance too: without it the gradient of an estimate from
    samples is biased."""
    ratio = (logprobs - old).exp()
    surrogate = -torch.minimum(ratio * weights, ratio.clamp(1 - clip, 1 + clip) * weights)
    difference = references - logprobs
    distance = difference.exp() - difference - 1
    return surrogate + kl_weight * ratio * distance, distance.detach()


class PolicyLoss:
    """The loss of a batch of answers. `worst` is the largest difference of a log-probability from that of the sampler
    since it was last set to 0."""

    def __init__(self, decoder: Decoder, adapter: Trainable, kl_weight: float) -> None:
        self.decoder, self.adapter, self.kl_weight = decoder, adapter, kl_weight
        self.initial = adapter.values.detach().clone()
        """The values at the start of the job."""
        self.worst = 0.0

    def __call__(self, batch: Batch, memory: MemoryPlan) -> tuple[Tensor, Tensor]:
        """Summed loss over the tokens of the answers, and the sums of REINFORCEMENT.measures."""
        references = self._references(batch, memory)
        losses, _ = target_losses(self.decoder, self.adapter, batch, memory)
        logprobs = -losses  # (P,) float32
        counts = torch.tensor(batch.counts, device=logprobs.device)
        weights = torch.empty_like(batch.references)
        weights[batch.order] = batch.references
        # The step is on-policy, so the old values are those of this pass: the ratio is 1, and only its gradient counts.
        each, distance = token_losses(
            logprobs, logprobs.detach(), references, weights.float().repeat_interleave(counts),
            clip=CLIP, kl_weight=self.kl_weight,
        )  # fmt: skip
        apart = (logprobs.detach().double() - batch.values).abs()
        self.worst = max(self.worst, float(apart.max()))
        return each.sum(), torch.stack([distance.double().sum(), apart.sum()])

    @torch.no_grad()
    def _references(self, batch: Batch, memory: MemoryPlan) -> Tensor:
        """Log-probabilities under the initial model. It is called before the pass with gradients, whose backward pass
        needs the present values in the borders of the matrices."""
        present = self.adapter.values.detach().clone()
        self.adapter.values.copy_(self.initial)
        self.adapter.refresh()
        try:
            return -target_losses(self.decoder, self.adapter, batch, memory)[0]
        finally:
            self.adapter.values.copy_(present)
            self.adapter.refresh()


def _begin(start: Start) -> tuple[Loss, tuple[TokenizedRows, ...]]:
    given = start.spec.parameters.reinforcement
    if given is None:
        raise InvalidArgument("a run that learns from rewards needs a reward")
    return PolicyLoss(start.decoder, start.adapter, given.kl_weight), start.examples


def _units(rows: Sequence[TokenizedExample]) -> int:
    """The number of tokens of answers."""
    return sum(supervised_count(row.loss_mask) for row in rows)


REINFORCEMENT = Method(
    data_formats=("reinforcement",),
    rows_per_example=1,
    begin=_begin,
    plan=plan,
    units=_units,
    is_relative=True,
    measures=("kl", "mismatch"),
    series=SERIES["reinforcement"],
    statistics=data_stats,
)
