"""A reward: scorers, clipping to [-1, 1], and the weighted mean of a composite config.

A score is a number or has failed. An answer with a failed score has no reward and teaches nothing; it is not a wrong
answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sarto.errors import DeadlineExceeded
from sarto.rewards.autorater import Autorater
from sarto.rewards.calls import CloudRun, CodeExecution
from sarto.rewards.failures import LIMIT, NO_NUMBER
from sarto.rewards.scoring import Callers, Outcome, Parsed, Sample, Scored, Scorer, pattern_of
from sarto.rewards.string_match import StringMatch
from sarto.schema.rewards import RewardConfig, SingleReinforcementTuningRewardConfig
from sarto.system.linear_regex import LinearPattern

LOWEST, HIGHEST = -1.0, 1.0


class Reward:
    """Thread-safe as far as its callers are; batches may overlap."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome for each sample, in order. A scorer that fails raises nothing. Raises the errors of callers that
        concern the whole batch: FailedPrecondition, ResourceExhausted."""
        scoring = [asyncio.create_task(part.score(samples)) for part in self._parts]
        try:
            columns = await asyncio.gather(*scoring)
        finally:
            for task in scoring:  # after an error of one the others would go on
                task.cancel()
        return [self._combined(row) for row in zip(*columns, strict=True)]

    def _combined(self, row: Sequence[Scored]) -> Outcome:
        details = {part.name: scored for part, scored in zip(self._parts, row, strict=True)}
        rewards = [scored.reward for scored in row]
        if any(reward is None for reward in rewards):
            return Outcome(None, details)
        total = math.fsum(part.weight * (reward or 0.0) for part, reward in zip(self._parts, rewards, strict=True))
        return Outcome(total / math.fsum(part.weight for part in self._parts), details)


@dataclass(frozen=True)
class _Part:
    name: str
    weight: float
    pattern: LinearPattern | None
    scorer: Scorer
    callers: Callers

    async def score(self, samples: Sequence[Sample]) -> list[Scored]:
        parsed = await self.callers.compute(lambda: [self._parse(sample) for sample in samples])
        good = [one for one in parsed if isinstance(one, Parsed)]
        scored = iter(await self.scorer.score(good))
        return [self._clipped(one, next(scored)) if isinstance(one, Parsed) else one for one in parsed]

    def _parse(self, sample: Sample) -> Parsed | Scored:
        if self.pattern is None:
            return Parsed(sample, sample.text)
        try:
            return Parsed(sample, self.pattern.last(sample.text), is_extract=True)
        except DeadlineExceeded as error:
            return Scored(None, LIMIT, error.message)

    def _clipped(self, parsed: Parsed, scored: Scored) -> Scored:
        scored = replace(scored, invalid_answer=parsed.text is None)
        if scored.reward is None:
            return scored
        if math.isnan(scored.reward):
            return replace(scored, reward=None, failure=NO_NUMBER, message="The reward is NaN.")
        clipped = max(min(scored.reward, HIGHEST), LOWEST)
        return replace(scored, reward=clipped, clipped=clipped != scored.reward)


def build_reward(config: RewardConfig, callers: Callers) -> Reward:
    """The reward of a config without faults."""
    if isinstance(config, SingleReinforcementTuningRewardConfig):
        return Reward([_part(config, 1.0, callers)])
    return Reward([
        _part(one.reward_config, one.weight or 0.0, callers)
        for one in config.weighted_reward_configs
        if one.reward_config is not None
    ])  # fmt: skip


def _part(config: SingleReinforcementTuningRewardConfig, weight: float, callers: Callers) -> _Part:
    return _Part(config.name, weight, pattern_of(config.parse_response_config), _scorer(config, callers), callers)


def _scorer(config: SingleReinforcementTuningRewardConfig, callers: Callers) -> Scorer:
    if config.string_match_reward_scorer is not None:
        return StringMatch(config.string_match_reward_scorer, callers)
    if config.code_execution_reward_scorer is not None:
        return CodeExecution(config.code_execution_reward_scorer, callers)
    if config.autorater_scorer is not None:
        return Autorater(config.autorater_scorer, callers)
    assert config.cloud_run_reward_scorer is not None, "the config has faults"
    return CloudRun(config.cloud_run_reward_scorer, callers)
