"""Autoraters and URLs: what they are sent, how their replies become rewards, and what is tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from sarto.errors import FailedPrecondition, ResourceExhausted, SartoError, Unavailable
from sarto.rewards import autorater, calls
from sarto.rewards.calls import CloudRun
from sarto.rewards.failures import NO_NUMBER, RPC_ERROR
from sarto.rewards.reward import build_reward
from sarto.rewards.scoring import Call, Outcome, Parsed, Sample, Scored
from sarto.rewards.validation import config_faults, judges_of, references_of
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.schema.rewards import SingleReinforcementTuningRewardConfig

T = TypeVar("T")
URL = "https://r.example/x"
SAMPLE = Sample(
    {
        "contents": [{"role": "user", "parts": [{"text": "6 times 7? {{response}}"}]}],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "references": {"answer": "42"},
    },
    {"role": "model", "parts": [{"text": "It is 42."}]},
    step=7,
    job="1234567890123456789",
)


class Outside:
    """Answers with the next of these; keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.asked: list[Any] = []

    def _next(self, asked: Any) -> Any:
        self.asked.append(asked)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, SartoError):
            raise answer
        return answer

    async def ask(self, model: str, request: GenerateContentRequest) -> GenerateContentResponse:
        content = {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": self._next((model, request))}]}
        return GenerateContentResponse.read({"candidates": [{"content": content}]})

    async def post(self, url: str, body: bytes, seconds: float) -> Any:
        return self._next((url, json.loads(body), seconds))

    async def execute(self, snippet: str, calls: Sequence[Call]) -> list[Scored]:
        raise AssertionError("no code is run here")

    async def compute(self, work: Callable[[], T]) -> T:
        return work()


def judging(count: int = 1, prompt: str = "{{response}}", **scorer: Any) -> SingleReinforcementTuningRewardConfig:
    config = {"autoraterModel": "judge", "samplingCount": count}
    return SingleReinforcementTuningRewardConfig.read(
        {"autoraterScorer": {"autoraterConfig": config, "autoraterPrompt": prompt, **scorer}}
    )


def scored(config: SingleReinforcementTuningRewardConfig, outside: Outside) -> Outcome:
    assert list(config_faults(config, None, "")) == []
    [outcome] = asyncio.run(build_reward(config, outside).score([SAMPLE]))
    return outcome


NUMBER: dict[str, Any] = {"parsedResponseConversionScorer": {}}


def test_the_prompt_is_filled_once_and_the_request_is_greedy() -> None:
    outside = Outside("0.5")
    prompt = "{{prompt}}|{{ response }}|{{system_instruction}}|{{references.answer}}|{ {x} }"
    assert scored(judging(1, prompt, **NUMBER), outside).reward == 0.5
    [(model, request)] = outside.asked
    assert model == "judge"
    assert request.contents[0].parts[0].text == "6 times 7? {{response}}|It is 42.|Be brief.|42|{ {x} }"
    assert (request.generation_config.temperature, request.generation_config.seed) == (0.0, 0)


def test_samples_are_averaged_and_differ_by_seed() -> None:
    outside = Outside("1", "0", "no number", "0.5")
    assert scored(judging(4, **NUMBER), outside).reward == 0.5
    assert sorted(request.generation_config.seed for _, request in outside.asked) == [0, 1, 2, 3]
    assert {request.generation_config.temperature for _, request in outside.asked} == {1.0}


@pytest.mark.parametrize(
    ("reply", "scorer", "reward", "failure"),
    [
        ("Score: 2, no: 0.25", {"autoraterResponseParseConfig": {
            "parseType": "REGEX_EXTRACT", "regexExtractExpression": r": ([\d.]+)"}, **NUMBER}, 0.25, None),
        ("none", {"autoraterResponseParseConfig": {
            "parseType": "REGEX_EXTRACT", "regexExtractExpression": r"(\d)"}, **NUMBER}, None, NO_NUMBER),
        ("nan", NUMBER, None, NO_NUMBER),
        ("-7", NUMBER, -1.0, None),
        ("42", {"exactMatchScorer": {"correctAnswerReward": 0.5, "expression": "{{references.answer}}"}}, 0.5, None),
        ("42.", {"exactMatchScorer": {"correctAnswerReward": 0.5, "expression": "{{references.answer}}"}}, 0.0, None),
        (FailedPrecondition("gone"), NUMBER, None, RPC_ERROR),
    ],
)  # fmt: skip
def test_what_a_reply_is_worth(reply: Any, scorer: Any, reward: float | None, failure: str | None) -> None:
    outcome = scored(judging(1, **scorer), Outside(reply))
    assert (outcome.reward, outcome.details["reward"].failure) == (reward, failure)


def test_a_busy_autorater_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autorater, "PAUSES_SECONDS", (0.0, 0.0, 0.0))
    assert scored(judging(1, **NUMBER), Outside(ResourceExhausted("busy"), Unavailable("away"), "1")).reward == 1.0
    outcome = scored(judging(1, **NUMBER), Outside(Unavailable("away")))
    assert (outcome.reward, outcome.details["reward"].message) == (None, "away")


def test_names_and_references_of_an_autorater() -> None:
    exact = {"exactMatchScorer": {"correctAnswerReward": 1, "expression": "{{references.b}}"}}
    config = judging(1, "{{response}} {{references.a}}", **exact)
    assert references_of(config) == {"a", "b"}
    where = "single_reward_config.autorater_scorer.autorater_config.autorater_model"
    assert list(judges_of(config, "single_reward_config")) == [(where, "judge")]


@pytest.mark.parametrize(
    ("config", "path", "words"),
    [
        (judging(33, **NUMBER), "autorater_scorer.autorater_config.sampling_count", "1 to 32"),
        (judging(1, "{{prompt}}", **NUMBER), "autorater_scorer.autorater_prompt", "{{response}}"),
        (judging(1, "{{response}} {{x}}", **NUMBER), "autorater_scorer.autorater_prompt", "{{system_instruction}}"),
        (judging(1), "autorater_scorer", "parsedResponseConversionScorer"),
        (judging(1, exactMatchScorer={"expression": "x"}), "autorater_scorer.exact_match_scorer.correct_answer_reward",
         "same reward"),
    ],
)  # fmt: skip
def test_faults_of_an_autorater(config: SingleReinforcementTuningRewardConfig, path: str, words: str) -> None:
    [fault] = config_faults(config, None, "")
    assert fault.field == f"single_reward_config.{path}" and words in fault.description


@pytest.mark.parametrize(
    ("url", "words"),
    [("", "not set"), ("http://8.8.8.8/", "https URL"), ("https://x@y/", "user name"), ("https://y:22/", "port 22")],
)
def test_faults_of_a_url(url: str, words: str) -> None:
    config = SingleReinforcementTuningRewardConfig.read({"cloudRunRewardScorer": {"cloudRunUri": url}})
    [fault] = config_faults(config, None, "")
    assert fault.field.endswith("cloud_run_reward_scorer.cloud_run_uri") and words in fault.description


def calling(outside: Outside, pauses: tuple[float, ...] = (0.0, 0.0)) -> Scored:
    config = SingleReinforcementTuningRewardConfig.read({"cloudRunRewardScorer": {"cloudRunUri": URL}})
    assert list(config_faults(config, None, "")) == []
    assert config.cloud_run_reward_scorer is not None
    scorer = CloudRun(config.cloud_run_reward_scorer, outside, pauses)
    [found] = asyncio.run(scorer.score([Parsed(SAMPLE, "42", is_extract=True)]))
    return found


def test_a_url_gets_the_row_the_extract_and_the_job() -> None:
    outside = Outside({"reward": 0.5, "user_requested_aux_info": "half"})
    found = calling(outside)
    assert (found.reward, found.aux) == (0.5, "half")
    [(url, body, seconds)] = outside.asked
    assert url == URL and 0 < seconds <= calls.URL_SECONDS
    assert body == {
        "example": SAMPLE.example,
        "response": {"role": "model", "parts": [{"text": "42"}]},
        "metadata": {"step": 7, "tuning_job_id": 1234567890123456789, "tuning_job": "1234567890123456789"},
    }


@pytest.mark.parametrize("reply", [{}, {"reward": None}, {"reward": "0.5"}, {"reward": True}, [1], None])
def test_an_answer_without_a_number_has_failed(reply: Any) -> None:
    assert (calling(Outside(reply)).reward, calling(Outside(reply)).failure) == (None, NO_NUMBER)


def test_a_url_that_is_away_is_tried_again_and_one_that_refuses_is_not() -> None:
    assert calling(Outside(Unavailable("away"), ResourceExhausted("busy"), {"reward": 1})).reward == 1.0
    away, refusing = Outside(Unavailable("away")), Outside(FailedPrecondition("HTTP 404"))
    assert (calling(away).failure, len(away.asked)) == (RPC_ERROR, 3)
    assert (calling(refusing).failure, len(refusing.asked)) == (RPC_ERROR, 1)
