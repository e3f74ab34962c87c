"""validate_reward through google-genai, as a program of its own: `reward_flow.py BASE URL`.

Run by every version of the SDK we hold; signs in by GOOGLE_APPLICATION_CREDENTIALS. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

from google import genai
from google.genai import errors, types

PARENT = "projects/demo/locations/us-central1"
EXACT = types.ReinforcementTuningStringMatchRewardScorer(
    correct_answer_reward=1.0,
    wrong_answer_reward=-1.0,
    string_match_expression=types.ReinforcementTuningStringMatchRewardScorerStringMatchExpression(
        match_operation="EXACT_MATCH", expression="{{references.answer}}"
    ),
)
EXTRACT = types.ReinforcementTuningParseResponseConfig(
    parse_type="REGEX_EXTRACT", regex_extract_expression="<a>(.*?)</a>"
)
CODE = "def evaluate(example, response):\n  return float(response['parts'][0]['text']) / 100"
Single = types.SingleReinforcementTuningRewardConfig


def autorater(model: str, **scorer: Any) -> types.SingleReinforcementTuningRewardConfig:
    return Single(
        reward_name="judge",
        autorater_scorer=types.ReinforcementTuningAutoraterScorer(
            autorater_config=types.AutoraterConfig(autorater_model=model, sampling_count=2),
            autorater_prompt="Score {{response}} to {{prompt}} against {{references.answer}}.",
            **scorer,
        ),
    )


def main(base_url: str, url: str) -> dict[str, Any]:
    with genai.Client(
        vertexai=True, project="demo", location="us-central1", http_options=types.HttpOptions(base_url=base_url)
    ) as client:

        def seen(text: str = "<a>4</a> <a>42</a>", **config: Any) -> Any:
            try:
                found = client.tunings.validate_reward(
                    parent=PARENT,
                    sample_response=types.Content(role="model", parts=[types.Part(text=text)]),
                    example=types.ReinforcementTuningExample(
                        contents=[types.Content(role="user", parts=[types.Part(text="6 times 7?")])],
                        references={"answer": "42"},
                    ),
                    **config,
                )
            except errors.APIError as error:
                return [error.code, error.status, error.message]
            return found.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"})

        exact = Single(reward_name="exact", parse_response_config=EXTRACT, string_match_reward_scorer=EXACT)
        code = Single(
            reward_name="code",
            parse_response_config=EXTRACT,
            code_execution_reward_scorer=types.ReinforcementTuningCodeExecutionRewardScorer(python_code_snippet=CODE),
        )
        called = Single(
            reward_name="url",
            cloud_run_reward_scorer=types.ReinforcementTuningCloudRunRewardScorer(cloud_run_uri=url),
        )
        number = types.ReinforcementTuningParseResponseConfig(
            parse_type="REGEX_EXTRACT", regex_extract_expression=r'"score": (\d+)'
        )
        asis = types.ReinforcementTuningAutoraterScorerParsedResponseConversionScorer()
        liked = types.ReinforcementTuningAutoraterScorerExactMatchScorer(
            correct_answer_reward=0.5, wrong_answer_reward=0.0, expression="I like it."
        )
        Weighted = types.CompositeReinforcementTuningRewardConfigWeightedRewardConfig
        parts = [Weighted(reward_config=exact, weight=1.0), Weighted(reward_config=code, weight=3.0)]
        composite = types.CompositeReinforcementTuningRewardConfig(weighted_reward_configs=parts)
        broken = types.ReinforcementTuningCodeExecutionRewardScorer(
            python_code_snippet="def evaluate(example, response):\n  return {}['x']"
        )
        return {
            "version": genai.__version__,
            "exact": seen(single_reward_config=exact),
            "wrong": seen("42", single_reward_config=exact),
            "composite": seen(composite_reward_config=composite),
            "url": seen(single_reward_config=called),
            "number": seen(
                single_reward_config=autorater(
                    "outside/fair", autorater_response_parse_config=number, parsed_response_conversion_scorer=asis
                )
            ),
            "liked": seen(single_reward_config=autorater("outside/wordy", exact_match_scorer=liked)),
            "wordy": seen(single_reward_config=autorater("outside/wordy", parsed_response_conversion_scorer=asis)),
            "own": seen(single_reward_config=autorater("gemini-2.0-flash-001", exact_match_scorer=liked)),
            "broken": seen(single_reward_config=Single(code_execution_reward_scorer=broken)),
            "unknown": seen(single_reward_config=autorater("nobody", exact_match_scorer=liked)),
            "faulty": seen(single_reward_config=Single(reward_name="x")),
            "nothing": seen(),
        }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(*sys.argv[1:])))
