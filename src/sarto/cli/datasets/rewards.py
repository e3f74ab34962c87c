"""`sarto reward …`: the reward of an answer, before a reinforcement tuning job computes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sarto.cli import output
from sarto.cli.options import AsJson, client
from sarto.errors import FailedPrecondition, InvalidArgument

app = typer.Typer(help="Rewards of reinforcement tuning.", no_args_is_help=True)


@app.callback()
def rewards() -> None:
    """Rewards of reinforcement tuning."""


@app.command("try")
def try_reward(
    context: typer.Context,
    config: Annotated[
        Path, typer.Option(help="JSON of a singleRewardConfig or a compositeRewardConfig.", exists=True, metavar="FILE")
    ],
    example: Annotated[
        Path, typer.Option(help="JSON lines; the first is the row of the answer.", exists=True, metavar="FILE")
    ],
    response: Annotated[str, typer.Option(help="The answer to score.", metavar="TEXT")],
    as_json: AsJson = False,
) -> None:
    """Score one answer as a reinforcement tuning job would.

    Exit status 1 if a score failed."""
    reward = _json_object(config.read_text(encoding="utf-8"), str(config))
    row = _json_object(example.read_text(encoding="utf-8").partition("\n")[0], f"The first line of {example}")
    is_composite = {"weightedRewardConfigs", "weighted_reward_configs"} & reward.keys()
    body = {
        "compositeRewardConfig" if is_composite else "singleRewardConfig": reward,
        "example": row,
        "sampleResponse": {"role": "model", "parts": [{"text": response}]},
    }
    with client(context) as api:
        seen = api.post(f"/v1/{api.parent}/tuningJobs:validateReinforcementTuningReward", body)
    if as_json:
        output.print_json(seen)
    else:
        facts = {name: _words(info) for name, info in seen["rewardInfoDetails"].items()}
        output.print_facts({**facts, "Reward": str(seen.get("overallReward", "failed"))})
    if seen.get("error"):
        raise FailedPrecondition(f"The answer has no reward: {seen['error']}")


def _words(info: Mapping[str, Any]) -> str:
    if "errorStatus" in info:
        return str(info["errorStatus"]["message"])
    aux = info.get("userRequestedAuxInfo", "")
    return f"{info['reward']} ({aux})" if aux else str(info["reward"])


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{what} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{what} must be a JSON object.")
    return found
