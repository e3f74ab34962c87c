"""validateReinforcementTuningReward: the reward of one answer, by the scorers of a job."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from sarto.api.http.requests import parent, read_message, until_gone
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import LOCATION, Route
from sarto.api.http.services import in_control
from sarto.control.jobs import rewards
from sarto.errors import Unimplemented
from sarto.rewards.reward import build_reward
from sarto.rewards.scoring import Outcome, Sample, Scored
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.schema.rewards import RewardInfo, ValidateRewardRequest, ValidateRewardResponse


async def validate_reward(request: Request) -> Reply:
    body = await read_message(request, ValidateRewardRequest)
    _, config = await in_control(request, rewards.check, parent(request), body)
    assert body.example is not None and body.sample_response is not None
    sample = Sample(body.example.to_json(), body.sample_response.to_json())
    [outcome] = await until_gone(request, build_reward(config, _Callers()).score([sample]))
    return reply(_response(outcome))


@dataclass(frozen=True)
class _Callers:
    async def ask(self, model: str, request: GenerateContentRequest) -> GenerateContentResponse:
        raise Unimplemented("Autoraters are not supported yet.")


def _response(outcome: Outcome) -> ValidateRewardResponse:
    failed = {name: scored for name, scored in outcome.details.items() if scored.reward is None}
    return ValidateRewardResponse(
        overall_reward=outcome.reward,
        error="; ".join(f"{name}: {scored.message}" for name, scored in failed.items()),
        reward_info_details={name: _info(scored) for name, scored in outcome.details.items()},
    )


def _info(scored: Scored) -> RewardInfo:
    status = {"code": 3, "message": scored.message} if scored.reward is None else None
    return RewardInfo(reward=scored.reward, user_requested_aux_info=scored.aux, error_status=status)


ROUTES = [
    Route(
        "POST", f"{LOCATION}/tuningJobs:validateReinforcementTuningReward", validate_reward, rewards.CREATE,
        "Score an answer with the reward of a reinforcement tuning job", ValidateRewardRequest, ValidateRewardResponse,
    )
]  # fmt: skip
