"""The reward of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sarto.errors import Unimplemented
from sarto.rewards.reward import Reward, build_reward
from sarto.rewards.scoring import Call, Scored
from sarto.rewards.validation import references_of
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.schema.rewards import (
    CompositeReinforcementTuningRewardConfig,
    RewardConfig,
    SingleReinforcementTuningRewardConfig,
)

T = TypeVar("T")


def read_reward(config: dict[str, object]) -> tuple[Reward, frozenset[str]]:
    """The reward of a spec, and the references that every row must have."""
    message = _config(config)
    return build_reward(message, _RunCallers()), references_of(message)


def _config(reward: dict[str, object]) -> RewardConfig:
    """The config of a spec: its field with its message."""
    ((field, message),) = reward.items()
    if field == "compositeRewardConfig":
        return CompositeReinforcementTuningRewardConfig.read(message, field)
    return SingleReinforcementTuningRewardConfig.read(message, field)


class _RunCallers:
    """A run has no network and starts no programs; the service refuses jobs whose scorers need them."""

    async def ask(self, model: str, request: GenerateContentRequest) -> GenerateContentResponse:
        raise Unimplemented(f"A run cannot call the autorater {model} yet.")

    async def post(self, url: str, body: bytes, seconds: float) -> Any:
        raise Unimplemented(f"A run cannot call {url} yet.")

    async def execute(self, snippet: str, calls: Sequence[Call]) -> list[Scored]:
        raise Unimplemented("A run cannot execute code yet.")

    async def compute(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)
