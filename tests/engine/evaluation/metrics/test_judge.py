"""Judges: templates, valid scores, flips, repeated samples, raw output, and failures that cost a sample at most."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.generate import Generate
from sarto.engine.evaluation.metrics.judge import (
    CHOICE_ADVICE,
    Judgement,
    JudgeMetric,
    ScoreScale,
    fill,
    first_place_share,
    judge_rows,
    reply_schema,
)
from sarto.errors import Unavailable
from sarto.schema.evaluation import PairwiseChoice
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse, GenerationConfig
from tests.engine.evaluation.making import asked, make_answers, make_rows, reply, saying

ROWS = make_rows([("Add 1 and 2.", "3"), ("Capital of Italy?", "Rome")])
ANSWERS = make_answers(ROWS, ["3", "Milan"])
BASELINE = make_answers(ROWS, ["it is 3, I think", "Rome"])
POINTWISE = JudgeMetric("quality", "Task: {prompt}\nAnswer: {response}\nWanted: {reference}")
PAIRWISE = JudgeMetric(
    "better",
    "{prompt}\nA: {baseline_model_response}\nB: {response}",
    is_pairwise=True,
    baseline_names=frozenset({"baseline_model_response"}),
)


def judged(metric: JudgeMetric, generate: Generate, answers: list[Answer] = ANSWERS) -> list[Judgement]:
    return asyncio.run(judge_rows(metric, ROWS, answers, BASELINE, generate, pauses=()))


def remembering(answer: Callable[[str], str]) -> tuple[Generate, list[GenerateContentRequest]]:
    seen: list[GenerateContentRequest] = []

    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        seen.append(request)
        return reply(answer(asked(request)))

    return generate, seen


def prefers(wanted: str) -> Callable[[str], str]:
    """A pairwise judge that looks at the answers: chooses the place where `wanted` stands."""

    def choose(prompt: str) -> str:
        first, second = prompt.split("\nA: ")[1].split("\n\n")[0].split("\nB: ")
        choice = "FIRST" if first == wanted else "SECOND" if second == wanted else "TIE"
        return json.dumps({"explanation": f"wants {wanted}", "choice": choice})

    return choose


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{prompt} -> {response}", "P -> {prompt}"),
        ('Write {"score": 1} or {} or { prompt }', 'Write {"score": 1} or {} or { prompt }'),
        ("{{prompt}} and {{{prompt}}}", "{{prompt}} and {{{prompt}}}"),
        ("{unknown} {prompt}", "{unknown} P"),
        ("{1} {a-b} %s $prompt", "{1} {a-b} %s $prompt"),
    ],
)
def test_single_brace_fields_are_filled_once_and_every_other_brace_stays(template: str, expected: str):
    assert fill(template, {"prompt": "P", "response": "{prompt}"}) == expected


def test_the_judge_sees_the_fields_the_scale_and_the_schema():
    generate, seen = remembering(lambda _: '{"explanation": "fine", "score": "4"}')
    metric = JudgeMetric("q", POINTWISE.template, scale=ScoreScale(1, 5, 1), system_instruction="Be strict.", samples=2)
    found = judged(metric, generate)
    assert [judgement.score for judgement in found] == [4.0, 4.0]
    assert found[0].explanation == "fine"
    first = seen[0]
    assert asked(first).startswith("Task: Add 1 and 2.\nAnswer: 3\nWanted: 3\n\n")
    assert "from 1 to 5" in asked(first)
    assert first.system_instruction is not None
    config = first.generation_config
    assert config is not None
    assert config.response_mime_type == "application/json"
    assert config.response_schema == reply_schema(metric)
    assert config.response_schema["properties"]["score"]["enum"] == ["1", "2", "3", "4", "5"]
    seeds = {request.generation_config.seed for request in seen if request.generation_config}
    assert seeds == {0, 1}


def test_scores_are_averaged_over_samples_and_the_samples_kept():
    scores = iter([1, 2, 3, 6] * 2)
    found = judged(POINTWISE, saying(lambda _: json.dumps({"explanation": "", "score": next(scores)})))
    assert [judgement.score for judgement in found] == [3.0, 3.0]
    assert sorted(found[0].samples + found[1].samples) == [1, 1, 2, 2, 3, 3, 6, 6]


@pytest.mark.parametrize(
    ("scale", "given", "expected"),
    [
        (ScoreScale(), -2.5, -2.5),
        (ScoreScale(), "7", 7.0),
        (ScoreScale(0, 1), 0.25, 0.25),
        (ScoreScale(0, 1), 1.5, None),
        (ScoreScale(1, 5, 1), "high", None),
        (ScoreScale(), True, None),
        (ScoreScale(), None, None),
    ],
)
def test_a_score_counts_only_on_its_scale(scale: ScoreScale, given: Any, expected: float | None):
    metric = JudgeMetric("q", "{response}", scale=scale, samples=1)
    found = judged(metric, saying(lambda _: json.dumps({"explanation": "", "score": given})))[0]
    assert found.score == expected
    assert (found.error is None) == (expected is not None)


def test_a_reply_cut_off_before_its_score_is_asked_again_for_the_score_alone():
    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        assert request.generation_config is not None
        schema = request.generation_config.response_schema or {}
        return reply('{"explanation": "and on and' if "explanation" in schema["properties"] else '{"score": 2}')

    assert [judgement.score for judgement in judged(POINTWISE, generate)] == [2.0, 2.0]


def test_pairwise_choices_follow_the_answers_whatever_their_place():
    generate, seen = remembering(prefers("Rome"))
    found = judged(PAIRWISE, generate)
    assert [judgement.choice for judgement in found] == [PairwiseChoice.TIE, PairwiseChoice.BASELINE]
    assert found[1].explanation == "wants Rome"
    swapped = [asked(request) for request in seen if "A: Milan" in asked(request)]
    assert len(swapped) == 2, "half of the four samples"
    assert all(CHOICE_ADVICE in asked(request) for request in seen)


def test_a_judge_that_looks_at_the_place_only_ends_in_ties_and_is_exposed():
    always_first = saying(lambda _: '{"explanation": "", "choice": "FIRST"}')
    found = judged(PAIRWISE, always_first)
    assert {judgement.choice for judgement in found} == {PairwiseChoice.TIE}
    assert first_place_share(found, PAIRWISE) == 1.0


def test_without_flips_every_sample_shows_the_answers_as_written():
    generate, seen = remembering(lambda _: '{"explanation": "", "choice": "FIRST"}')
    metric = JudgeMetric(
        "b", PAIRWISE.template, is_pairwise=True, baseline_names=PAIRWISE.baseline_names, flips=False, samples=3
    )
    found = judged(metric, generate)
    assert {judgement.choice for judgement in found} == {PairwiseChoice.BASELINE}
    assert not any("A: Milan" in asked(request) for request in seen)


def test_one_sample_a_row_still_swaps_half_of_all_samples():
    generate, seen = remembering(prefers("Rome"))
    metric = JudgeMetric("b", PAIRWISE.template, is_pairwise=True, baseline_names=PAIRWISE.baseline_names, samples=1)
    found = judged(metric, generate)
    assert found[1].choice is PairwiseChoice.BASELINE
    assert [judgement.flipped for judgement in found] == [(False,), (True,)]
    assert all(r.generation_config and r.generation_config.temperature == 0.0 for r in seen)


def test_raw_output_is_returned_as_said_and_not_held_to_a_schema():
    generate, seen = remembering(lambda _: "I'd say: seven.")
    metric = JudgeMetric("r", POINTWISE.template, returns_raw=True, samples=2)
    found = judged(metric, generate)
    assert found[0].raw == ("I'd say: seven.",) * 2
    assert found[0].score is None
    assert all(r.generation_config and r.generation_config.response_schema is None for r in seen)


def test_the_users_generation_config_is_kept():
    generate, seen = remembering(lambda _: '{"explanation": "", "score": 1}')
    config = GenerationConfig(temperature=0.3, max_output_tokens=99, seed=10, top_k=5)
    judged(JudgeMetric("q", "{response}", config=config, samples=2), generate)
    got = seen[0].generation_config
    assert got is not None
    assert (got.temperature, got.max_output_tokens, got.top_k) == (0.3, 99, 5)
    assert {r.generation_config.seed for r in seen if r.generation_config} == {10, 11}


def test_failed_samples_are_counted_and_a_row_fails_only_with_all_of_them():
    calls = iter(range(100))

    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        if next(calls) % 4 == 0 or "Italy" in asked(request):
            raise Unavailable("the judge is away")
        return reply('{"explanation": "", "score": 5}')

    found = judged(POINTWISE, generate)
    assert (found[0].score, found[0].error) == (5.0, None)
    assert found[0].failed_samples >= 1
    assert found[1].error is not None
    assert found[1].error["message"] == "the judge is away"


def test_rows_without_an_answer_are_not_judged():
    generate, seen = remembering(lambda _: '{"explanation": "", "score": 5}')
    broken = [Answer(1, error={"code": 14, "message": "gone"}), ANSWERS[1]]
    found = judged(POINTWISE, generate, broken)
    assert found[0].error == {"code": 14, "message": "gone"}
    assert len(seen) == 4


def test_values_in_answers_are_never_read_as_fields():
    generate, seen = remembering(lambda _: '{"explanation": "", "score": 5}')
    judged(POINTWISE, generate, make_answers(ROWS, ["{reference}", '{"prompt": "{prompt}"}']))
    assert "Answer: {reference}\nWanted: 3" in asked(seen[0])


def test_wide_scales_are_numbers_within_limits():
    assert ScoreScale(0, 1000, 1).schema() == {"type": "NUMBER", "minimum": 0, "maximum": 1000}
    assert ScoreScale().schema() == {"type": "NUMBER"}
    assert ScoreScale(0, 1, 0.25).listed() == ["0", "0.25", "0.5", "0.75", "1"]
