"""Logits of one step into tokens: penalties, constraints, temperature, top-k, top-p, and what was thought of the rest.

Each candidate has its own source of chance, so a seeded one draws the same tokens whatever else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest. `logprobs`: alternatives to report, None: no report."""

    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    seed: int | None = None

    @property
    def is_plain_greedy(self) -> bool:
        return self.temperature == 0 and not self.presence_penalty and not self.frequency_penalty


class Constraint(Protocol):
    """What may come next. `allow` sets the logits (V,) of everything else to -inf, in place."""

    @property
    def is_complete(self) -> bool: ...

    def allow(self, logits: Tensor) -> None: ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True)
class Pick:
    """A token, its log probability (nats) under the model alone, and the likeliest (id, log probability)."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


class Sampler:
    """Draws the tokens of one candidate. `number` tells the candidates of one request apart."""

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
        """Whether the constraint has all it wanted, so that nothing may follow."""
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
        """Take a token into account for what comes next."""
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            self._counts[token] += 1
        if self._constraint is not None:
            self._constraint.accept(token)

    def _chosen(self, logits: Tensor) -> int:
        sampling = self.sampling
        top = min(sampling.top_k or len(logits), len(logits))
        values, ids = torch.topk(logits, top) if top < len(logits) else torch.sort(logits, descending=True, stable=True)
        scaled = values.double() / sampling.temperature
        likely = np.exp((scaled - scaled[0]).cpu().numpy())
        sums = np.cumsum(likely)
        # The nucleus: the likeliest tokens up to and with the one that reaches top_p.
        kept = int(np.searchsorted(sums, sampling.top_p * sums[-1])) + 1
        kept = min(kept, len(sums))
        place = int(np.searchsorted(sums[:kept], self._chance.random() * sums[kept - 1], side="right"))
        return int(ids[min(place, kept - 1)])


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[Pick]:
    """One token for each row of logits (R, V) float32."""
    likeliest = logits.argmax(-1).tolist()
    totals = torch.logsumexp(logits, -1)
    tokens = [
        likeliest[row] if sampler.is_plain_greedy else sampler.draw(logits[row].clone())
        for row, sampler in enumerate(samplers)
    ]
    index = torch.tensor(tokens, device=logits.device)[:, None]
    chosen = (logits.gather(1, index)[:, 0] - totals).tolist()
    picks = []
    for row, sampler in enumerate(samplers):
        sampler.note(tokens[row])
        picks.append(Pick(tokens[row], chosen[row], _top(logits[row], totals[row], sampler.sampling.logprobs or 0)))
    return picks


def _top(logits: Tensor, total: Tensor, count: int) -> list[tuple[int, float]]:
    if not count:
        return []
    values, ids = torch.topk(logits - total, count)
    return list(zip(ids.tolist(), values.tolist(), strict=True))
