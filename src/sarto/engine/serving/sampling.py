"""Sample tokens from the logits of one step: penalties, constraints, temperature, top-k, top-p, and log probabilities.

Each candidate has its own generator, so a seeded one samples the same tokens in any batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sarto.engine.serving.request import Sampling


class Constraint(Protocol):
    """The tokens that may come next. `allow` sets the logits (V,) of all others to -inf, in place."""

    @property
    def is_complete(self) -> bool: ...

    def allow(self, logits: Tensor) -> None: ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True)
class SampledToken:
    """A token, its log probability (nats) under the model alone, and the most probable (id, log probability)."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


class Sampler:
    """Samples the tokens of one candidate. `number` distinguishes the candidates of one request."""

    def __init__(self, sampling: Sampling, number: int = 0, constraint: Constraint | None = None) -> None:
        self.sampling = sampling
        self._constraint = constraint
        self._counts: Counter[int] = Counter()
        seed = None if sampling.seed is None else [sampling.seed & 0xFFFFFFFF, number]
        self._chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    @property
    def is_plain_greedy(self) -> bool:
        return self.sampling.is_plain_greedy and self._constraint is None

    @property
    def is_complete(self) -> bool:
        """Whether the constraint is satisfied and only the end may follow."""
        return self._constraint is not None and self._constraint.is_complete

    def draw(self, logits: Tensor) -> int:
        """A token for logits (V,) float32, which this may overwrite."""
        sampling = self.sampling
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            seen = torch.tensor(list(self._counts), device=logits.device)
            times = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
            logits[seen] -= sampling.presence_penalty + sampling.frequency_penalty * times
        if self._constraint is not None:
            self._constraint.allow(logits)
        return int(logits.argmax()) if sampling.temperature == 0 else self._chosen(logits)

    def note(self, token: int) -> None:
        """Record a token for the penalties and the constraint."""
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            self._counts[token] += 1
        if self._constraint is not None:
            self._constraint.accept(token)

    def _chosen(self, logits: Tensor) -> int:
        sampling = self.sampling
        if not sampling.top_k and sampling.top_p >= 1:  # the whole distribution: no order of the tokens is needed
            scaled = logits.double() / sampling.temperature
            sums = np.cumsum(np.exp((scaled - scaled.max()).cpu().numpy()))
            return min(int(np.searchsorted(sums, self._chance.random() * sums[-1], side="right")), len(sums) - 1)
        top = min(sampling.top_k or len(logits), len(logits))
        values, ids = torch.topk(logits, top) if top < len(logits) else torch.sort(logits, descending=True, stable=True)
        scaled = values.double() / sampling.temperature
        likely = np.exp((scaled - scaled[0]).cpu().numpy())
        sums = np.cumsum(likely)
        # The nucleus: the likeliest tokens up to and with the one that reaches top_p.
        count = int(np.searchsorted(sums, sampling.top_p * sums[-1])) + 1
        count = min(count, len(sums))
        position = int(np.searchsorted(sums[:count], self._chance.random() * sums[count - 1], side="right"))
        return int(ids[min(position, count - 1)])


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[SampledToken]:
    """One token for each row of logits (R, V) float32."""
    likeliest = logits.argmax(-1).tolist()
    logs = torch.log_softmax(logits, -1)  # each row by one thread: logsumexp splits a row that is alone among them
    tokens = [
        likeliest[row] if sampler.is_plain_greedy else sampler.draw(logits[row].clone())
        for row, sampler in enumerate(samplers)
    ]
    index = torch.tensor(tokens, device=logits.device)[:, None]
    chosen = logs.gather(1, index)[:, 0].tolist()
    picks = []
    for row, sampler in enumerate(samplers):
        sampler.note(tokens[row])
        picks.append(SampledToken(tokens[row], chosen[row], _top(logs[row], sampler.sampling.logprobs or 0)))
    return picks


def _top(logs: Tensor, count: int) -> list[tuple[int, float]]:
    if not count:
        return []
    values, ids = torch.topk(logs, count)
    return list(zip(ids.tolist(), values.tolist(), strict=True))
