"""validateReinforcementTuningReward: the reward of one answer, by the scorers of a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from sarto.api.http.requests import parent, read_message, until_gone
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import LOCATION, Route
from sarto.api.http.services import Services, in_control, services
from sarto.api.vertex.evaluations import judge
from sarto.control.jobs import rewards
from sarto.control.runs import reward_url
from sarto.rewards.reward import build_reward
from sarto.rewards.scoring import Call, Outcome, Sample, Scored
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.schema.rewards import RewardInfo, ValidateRewardRequest, ValidateRewardResponse
from sarto.serving.evaluator import Generate

T = TypeVar("T")
INVALID_ARGUMENT = 3


async def validate_reward(request: Request) -> Reply:
    body = await read_message(request, ValidateRewardRequest)
    project, autoraters = await in_control(request, rewards.check, parent(request), body)
    assert body.config is not None and body.example is not None and body.sample_response is not None
    judges = {name: judge(request, project, name, deployed) for name, deployed in autoraters.items()}
    reward = build_reward(body.config, _Callers(services(request), project, judges))
    sample = Sample(body.example.to_json(), body.sample_response.to_json())
    [outcome] = await until_gone(request, reward.score([sample]))
    return reply(_response(outcome))


@dataclass(frozen=True)
class _Callers:
    """What the scorers call, for this project."""

    services: Services
    project: str
    judges: Mapping[str, Generate]

    async def ask(self, model: str, request: GenerateContentRequest) -> GenerateContentResponse:
        return await self.judges[model](request)

    async def post(self, url: str, body: bytes, seconds: float) -> Any:
        allow_private = self.services.control.limits.reward_private_addresses
        return await self.services.outside.call(
            self.project, partial(reward_url.post, url, body, seconds, allow_private)
        )

    async def execute(self, snippet: str, calls: Sequence[Call]) -> list[Scored]:
        return await self.services.reward_code.execute(self.project, snippet, calls)

    async def compute(self, work: Callable[[], T]) -> T:
        return await self.services.threads.compute(self.project, work)


def _response(outcome: Outcome) -> ValidateRewardResponse:
    failed = {name: scored for name, scored in outcome.details.items() if scored.reward is None}
    return ValidateRewardResponse(
        overall_reward=outcome.reward,
        error="; ".join(f"{name}: {scored.message}" for name, scored in failed.items()),
        reward_info_details={name: _info(scored) for name, scored in outcome.details.items()},
    )


def _info(scored: Scored) -> RewardInfo:
    status = {"code": INVALID_ARGUMENT, "message": scored.message} if scored.reward is None else None
    return RewardInfo(reward=scored.reward, user_requested_aux_info=scored.aux, error_status=status)


ROUTES = [
    Route(
        "POST", f"{LOCATION}/tuningJobs:validateReinforcementTuningReward", validate_reward, rewards.CREATE,
        "Score an answer with the reward of a reinforcement tuning job", ValidateRewardRequest, ValidateRewardResponse,
    )
]  # fmt: skip
