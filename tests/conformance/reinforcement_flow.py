"""Reinforcement tuning through google-genai, as a program of its own: `reinforcement_flow.py BASE PROMPTS EXAMPLES`.

Run by every version of the SDK we hold; signs in by GOOGLE_APPLICATION_CREDENTIALS. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

from google import genai
from google.genai import errors, types

BASE_MODEL = "gemini-2.5-flash"
ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"}
SECONDS = 120


def reward(name: str, expression: str) -> types.SingleReinforcementTuningRewardConfig:
    """1 for an answer that contains the expression."""
    return types.SingleReinforcementTuningRewardConfig(
        reward_name=name,
        string_match_reward_scorer=types.ReinforcementTuningStringMatchRewardScorer(
            correct_answer_reward=1.0,
            wrong_answer_reward=-1.0,
            string_match_expression=types.ReinforcementTuningStringMatchRewardScorerStringMatchExpression(
                match_operation="REGEX_CONTAINS", expression=expression
            ),
        ),
    )


def main(base_url: str, prompts: str, examples: str) -> dict[str, Any]:
    with genai.Client(
        vertexai=True, project="demo", location="us-central1", http_options=types.HttpOptions(base_url=base_url)
    ) as client:

        def tune(dataset: str, base_model: str = BASE_MODEL, **settings: Any) -> Any:
            config = types.CreateTuningJobConfig(**settings)
            data = types.TuningDataset(gcs_uri=dataset)
            return client.tunings.tune(base_model=base_model, training_dataset=data, config=config)

        def rewarded(dataset: str, base_model: str = BASE_MODEL, **settings: Any) -> Any:
            numbers = {"batch_size": 4, "samples_per_prompt": 4, "max_output_tokens": 4, "epoch_count": 1} | settings
            return tune(dataset, base_model, method="reinforcement_tuning", **numbers)

        first = rewarded(
            prompts,
            reward_config=reward("letter", "[a-z]"),
            adapter_size=types.AdapterSize.ADAPTER_SIZE_TWO,
            learning_rate_multiplier=2.0,
            evaluate_interval=2,
            checkpoint_interval=4,
            validation_dataset=types.TuningValidationDataset(gcs_uri=prompts),
        )
        job = awaited(client, first)
        taught = awaited(client, tune(examples, epoch_count=1))
        weighted = types.CompositeReinforcementTuningRewardConfigWeightedRewardConfig
        composite = types.CompositeReinforcementTuningRewardConfig(
            weighted_reward_configs=[
                weighted(reward_config=reward("letter", "[a-m]"), weight=1.0),
                weighted(reward_config=reward("digit", "[0-9]"), weight=0.5),
            ]
        )
        model = taught.tuned_model.model
        then = awaited(client, rewarded(prompts, model, composite_reward_config=composite))
        config = types.GenerateContentConfig(temperature=0, max_output_tokens=4)
        one = reward("one", "x")
        return {
            "version": genai.__version__,
            "made": dumped(first),
            "job": dumped(job),
            "text": client.models.generate_content(
                model=job.tuned_model.checkpoints[0].endpoint, contents="q1", config=config
            ).text,
            "chain": [dumped(each) for each in (taught, then)],
            "errors": [
                caught(lambda: tune(prompts, samples_per_prompt=4)),
                caught(lambda: rewarded(prompts, reward_config=one, samples_per_prompt=3)),
                caught(lambda: rewarded(prompts, reward_config=one, evaluate_interval=2, checkpoint_interval=3)),
                caught(lambda: rewarded(prompts)),
                caught(lambda: rewarded(examples, reward_config=one)),
                caught(lambda: rewarded(prompts, reward_config=reward("bad", "("))),
                caught(lambda: rewarded(prompts, reward_config=one, thinking_level="HIGH")),
            ],
        }


def dumped(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = job.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"})
    return found


def caught(call: Any) -> list[Any]:
    try:
        call()
    except errors.APIError as error:
        return [error.code, error.status, error.message]
    return []


def awaited(client: genai.Client, job: Any) -> Any:
    deadline = time.monotonic() + SECONDS
    while job.state.name not in ENDED:
        if time.monotonic() > deadline:
            raise SystemExit(f"still {job.state}")
        time.sleep(0.2)
        job = client.tunings.get(name=job.name)
    if job.state.name != "JOB_STATE_SUCCEEDED":
        raise SystemExit(f"{job.state}: {job.error}")
    return job


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(*sys.argv[1:])))
