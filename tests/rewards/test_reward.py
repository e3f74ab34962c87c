"""String match, extraction, clipping and composites."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from sarto.errors import ResourceExhausted
from sarto.rewards.failures import LIMIT, UNUSABLE
from sarto.rewards.reward import build_reward
from sarto.rewards.scoring import Call, Outcome, Sample, Scored
from sarto.rewards.validation import config_faults, references_of
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.schema.rewards import CompositeReinforcementTuningRewardConfig, SingleReinforcementTuningRewardConfig

T = TypeVar("T")


class Nobody:
    async def ask(self, model: str, request: GenerateContentRequest) -> GenerateContentResponse:
        raise AssertionError("no model is called here")

    async def post(self, url: str, body: bytes, seconds: float) -> Any:
        raise AssertionError("no URL is called here")

    async def execute(self, snippet: str, calls: Sequence[Call]) -> list[Scored]:
        raise AssertionError("no code is run here")

    async def compute(self, work: Callable[[], T]) -> T:
        return work()


def answer(text: str, references: dict[str, str] | None = None) -> Sample:
    example = {"contents": [{"role": "user", "parts": [{"text": "6 times 7?"}]}], "references": references or {}}
    thought = {"text": "hm 42", "thought": True}
    return Sample(example, {"role": "model", "parts": [thought, {"text": text}]})


def single(**fields: Any) -> SingleReinforcementTuningRewardConfig:
    return SingleReinforcementTuningRewardConfig.read(fields)


def matching(operation: str, expression: str, **more: Any) -> SingleReinforcementTuningRewardConfig:
    scorer = {"correctAnswerReward": 1, "wrongAnswerReward": -1}
    scorer |= {"stringMatchExpression": {"matchOperation": operation, "expression": expression}}
    return single(stringMatchRewardScorer=scorer, **more)


def scored(config: Any, *samples: Sample) -> list[Outcome]:
    if isinstance(config, CompositeReinforcementTuningRewardConfig):
        assert list(config_faults(None, config, "")) == []
    else:
        assert list(config_faults(config, None, "")) == []
    return asyncio.run(build_reward(config, Nobody()).score(samples))


@pytest.mark.parametrize(
    ("operation", "expression", "text", "reward"),
    [
        ("EXACT_MATCH", "{{references.answer}}", "42", 1),
        ("EXACT_MATCH", "{{ references.answer }}", "42", 1),
        ("EXACT_MATCH", "{{references.answer}}", "42 ", -1),
        ("EXACT_MATCH", "yes", "Yes", -1),
        ("PARTIAL_MATCH", "is {{references.answer}}", "It is 42.", 1),
        ("PARTIAL_MATCH", "is 4.", "It is 42.", -1),
        ("REGEX_CONTAINS", r"is {{references.answer}}\.$", "It is 42.", 1),
        ("REGEX_CONTAINS", "^is", "It is 42.", -1),
        ("REGEX_CONTAINS", "^4{{{references.two}}}$", "44", 1),
        ("REGEX_CONTAINS", "^{{references.pattern}}$", "abc", 1),
    ],
)
def test_string_match(operation: str, expression: str, text: str, reward: float) -> None:
    [outcome] = scored(
        matching(operation, expression), answer(text, {"answer": "42", "two": "2", "pattern": "[a-c]{3}"})
    )
    assert outcome.reward == reward
    assert outcome.details["reward"].reward == reward and not outcome.details["reward"].clipped


@pytest.mark.parametrize(
    ("text", "reward"),
    [('{"n": 42}', 1), ('{"n": "42"}', 1), ('{"n": {"n": 42}}', -1), ('{"m": 42}', -1), ("42", -1), ("{", -1)],
)
def test_the_value_of_a_first_level_key(text: str, reward: float) -> None:
    value = {"matchOperation": "EXACT_MATCH", "expression": "42"}
    scorer = {"correctAnswerReward": 1, "wrongAnswerReward": -1}
    scorer |= {"jsonMatchExpression": {"keyName": "n", "valueStringMatchExpression": value}}
    assert scored(single(stringMatchRewardScorer=scorer), answer(text))[0].reward == reward


def test_the_extract_is_scored_and_an_answer_without_one_is_wrong_and_counted() -> None:
    parse = {"parse_type": "REGEX_EXTRACT", "regex_extract_expression": "<a>(.*?)</a>"}
    config = matching("EXACT_MATCH", "42", rewardName="exact", parseResponseConfig=parse)
    right, wrong = scored(config, answer("<a>1</a><a>42</a>"), answer("42"))
    assert (right.reward, right.details["exact"].invalid_answer) == (1, False)
    assert (wrong.reward, wrong.details["exact"].invalid_answer) == (-1, True)


def test_a_composite_clips_first_and_then_takes_the_weighted_mean() -> None:
    """1, -1 and 0.2 with weights 1, 0.5, 0.5 are 0.3."""

    def part(name: str, reward: float, weight: float) -> dict[str, Any]:
        scorer = {"correctAnswerReward": reward}
        scorer |= {"stringMatchExpression": {"matchOperation": "PARTIAL_MATCH", "expression": "42"}}
        return {"rewardConfig": {"rewardName": name, "stringMatchRewardScorer": scorer}, "weight": weight}

    config = CompositeReinforcementTuningRewardConfig.read(
        {"weightedRewardConfigs": [part("a", 7.0, 1.0), part("b", -3.0, 0.5), part("c", 0.2, 0.5), part("d", 1, 0.0)]}
    )
    [outcome] = scored(config, answer("42"))
    assert outcome.reward == pytest.approx(0.3, abs=1e-12)
    assert {name: (one.reward, one.clipped) for name, one in outcome.details.items()} == {
        "a": (1.0, True), "b": (-1.0, True), "c": (0.2, False), "d": (1.0, False),
    }  # fmt: skip


def test_a_failed_part_fails_the_whole_and_not_the_other_answers() -> None:
    config = matching("REGEX_CONTAINS", "{{references.pattern}}")
    bad, good, long = scored(
        config, answer("a", {"pattern": "("}), answer("a", {"pattern": "a"}), answer("b" * 300_000, {"pattern": "a"})
    )
    assert (bad.reward, bad.details["reward"].failure) == (None, UNUSABLE)
    assert good.reward == 1
    assert (long.reward, long.details["reward"].failure) == (None, LIMIT)


def test_the_references_that_rows_must_have() -> None:
    assert references_of(matching("EXACT_MATCH", "{{references.a}} {{ references.b }} {{ {x} }}")) == {"a", "b"}


RIGHT = {"matchOperation": "EXACT_MATCH", "expression": "42"}


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({}, "", "No scorer is set"),
        ({"rewardName": "a/b", "stringMatchRewardScorer": {"correctAnswerReward": 1, "stringMatchExpression": RIGHT}},
         ".reward_name", "without a slash"),
        ({"stringMatchRewardScorer": {"stringMatchExpression": RIGHT}},
         ".string_match_reward_scorer.correct_answer_reward", "the same reward, 0 "),
        ({"stringMatchRewardScorer": {
            "correctAnswerReward": 5, "wrongAnswerReward": 2, "stringMatchExpression": RIGHT}},
         ".string_match_reward_scorer.correct_answer_reward", "the same reward, 1 "),
        ({"stringMatchRewardScorer": {"correctAnswerReward": "NaN", "stringMatchExpression": RIGHT}},
         ".string_match_reward_scorer.correct_answer_reward", "finite"),
        ({"stringMatchRewardScorer": {"correctAnswerReward": 1, "stringMatchExpression": {"expression": "4"}}},
         ".string_match_reward_scorer.string_match_expression.match_operation", "REGEX_CONTAINS"),
        ({"stringMatchRewardScorer": {"correctAnswerReward": 1}},
         ".string_match_reward_scorer.string_match_expression", "not set"),
        ({"stringMatchRewardScorer": {"correctAnswerReward": 1, "stringMatchExpression": {
            "matchOperation": "REGEX_CONTAINS", "expression": "(?=x){{references.a}}"}}},
         ".string_match_reward_scorer.string_match_expression.expression", "RE2"),
        ({"stringMatchRewardScorer": {"correctAnswerReward": 1, "stringMatchExpression": {
            "matchOperation": "EXACT_MATCH", "expression": "{{reference.a}}"}}},
         ".string_match_reward_scorer.string_match_expression.expression", "{{references.KEY}}"),
        ({"stringMatchRewardScorer": {"correctAnswerReward": 1, "jsonMatchExpression": {
            "valueStringMatchExpression": RIGHT}}},
         ".string_match_reward_scorer.json_match_expression.key_name", "not set"),
        ({"stringMatchRewardScorer": {"correctAnswerReward": 1, "stringMatchExpression": RIGHT},
          "parseResponseConfig": {"parseType": "REGEX_EXTRACT", "regexExtractExpression": "(a"}},
         ".parse_response_config.regex_extract_expression", "missing )"),
        ({"stringMatchRewardScorer": {"correctAnswerReward": 1, "stringMatchExpression": RIGHT},
          "parseResponseConfig": {"regexExtractExpression": "a"}},
         ".parse_response_config.regex_extract_expression", "no effect"),
    ],
)  # fmt: skip
def test_faults_of_a_single_reward(fields: dict[str, Any], path: str, words: str) -> None:
    [fault] = config_faults(single(**fields), None, "spec")
    assert fault.field == f"spec.single_reward_config{path}" and words in fault.description


def test_faults_of_a_composite() -> None:
    good = matching("EXACT_MATCH", "42").to_json()
    parts = [{"rewardConfig": good, "weight": 1.0}, {"rewardConfig": good, "weight": -1.0}, {"weight": 1}, {}]
    config = CompositeReinforcementTuningRewardConfig.read({"weightedRewardConfigs": parts})
    where = "composite_reward_config.weighted_reward_configs"
    assert sorted(fault.field for fault in config_faults(None, config, "")) == [
        f"{where}[0].reward_config.reward_name", f"{where}[1].reward_config.reward_name", f"{where}[1].weight",
        f"{where}[2].reward_config", f"{where}[3].reward_config", f"{where}[3].weight",
    ]  # fmt: skip
    zero = CompositeReinforcementTuningRewardConfig.read(
        {"weightedRewardConfigs": [{"rewardConfig": good, "weight": 0}]}
    )
    assert ["All weights are 0" in fault.description for fault in config_faults(None, zero, "")] == [True]
    many = CompositeReinforcementTuningRewardConfig.read({"weightedRewardConfigs": [parts[0]] * 17})
    assert [fault.field for fault in config_faults(None, many, "")] == [where]
    assert [fault.field for fault in config_faults(None, None, "spec")] == ["spec.single_reward_config"]


class Busy(Nobody):
    """Refuses one snippet, and never answers another."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def execute(self, snippet: str, calls: Sequence[Call]) -> list[Scored]:
        if "refused" in snippet:
            raise ResourceExhausted("too many")
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(snippet)
        return []


def test_an_error_of_the_whole_batch_ends_the_other_parts() -> None:
    snippets = ("evaluate", "evaluate, refused")
    parts = [
        {"rewardConfig": {"rewardName": name, "codeExecutionRewardScorer": {"pythonCodeSnippet": name}}, "weight": 1}
        for name in snippets
    ]
    config = CompositeReinforcementTuningRewardConfig.read({"weightedRewardConfigs": parts})
    busy = Busy()

    async def refused() -> list[str]:
        with pytest.raises(ResourceExhausted):
            await build_reward(config, busy).score([answer("42")])
        await asyncio.sleep(0)
        return list(busy.ended)

    assert asyncio.run(refused()) == ["evaluate"]
