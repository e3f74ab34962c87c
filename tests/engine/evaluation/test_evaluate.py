"""The documented evaluation end to end: config in, run and files out, failures where they belong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from google.cloud import aiplatform_v1beta1
from google.protobuf import json_format

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.evaluate_dataset import (
    AGGREGATION_FILE,
    ROW_FILE,
    compute_rows,
    evaluate_dataset,
    score_rows,
)
from sarto.engine.evaluation.generate import answer_rows
from sarto.engine.evaluation.metrics.judge import JudgeMetric, ScoreScale, judge_rows
from sarto.engine.evaluation.metrics.plan import judge_models, plan_metrics
from sarto.engine.evaluation.rows import default_generation_config, rows_from
from sarto.errors import InvalidArgument, ResourceExhausted, Unavailable
from sarto.schema.evaluation import JUDGED_METRICS, EvaluateDatasetRun, EvaluationConfig
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from tests.engine.evaluation.making import asked, make_answers, make_rows, reply, saying
from tests.serving.making import running_engine, text_of
from tests.tiny import make_tiny_base

PAIRS = [(f"Say {word}.", f"the word is {word}") for word in ("one", "two", "three", "four")]
ROWS = make_rows(PAIRS)
TEXTS = ["the word is one", "the word is too", "", "four"]
CONFIG = {
    "metrics": [
        {"exactMatchSpec": {}, "aggregationMetrics": ["AVERAGE", "MODE", "MAXIMUM"]},
        {"bleu_spec": {"use_effective_order": True}, "aggregation_metrics": ["AVERAGE"]},
        {"rouge_spec": {"rouge_type": "rougelsum"}, "aggregation_metrics": ["AVERAGE", "STANDARD_DEVIATION"]},
        {
            "pointwise_metric_spec": {"metric_prompt_template": "{prompt} / {prediction} / {reference} {{keep}}"},
            "aggregation_metrics": ["AVERAGE", "PERCENTILE_P90"],
        },
        {
            "pairwiseMetricSpec": {
                "metricPromptTemplate": "{prompt}\nA: {old}\nB: {new}\n",
                "candidateResponseFieldName": "new",
                "baselineResponseFieldName": "old",
            },
            "aggregationMetrics": ["MODE"],
        },
        {"predefinedMetricSpec": {"metricSpecName": "CHRF"}},
    ],
    "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://b/eval"}},
    "autoraterConfig": {"samplingCount": 2},
}


def judge(prompt: str) -> str:
    if "A: " in prompt:
        first = prompt.split("A: ")[1].split("\nB: ")[0]
        return json.dumps({"explanation": "longer", "choice": "FIRST" if len(first) > 16 else "SECOND"})
    return json.dumps({"explanation": "so", "score": len(prompt.split(" / ")[1])})


def run(config: dict[str, Any], folder: Path, **more: Any) -> EvaluateDatasetRun:
    given = {"judges": {"": saying(judge)}, "pauses": (), "baseline": make_answers(ROWS, ["a longer base answer"] * 4)}
    return asyncio.run(
        evaluate_dataset(
            EvaluationConfig.read(config), ROWS, more.pop("answers", make_answers(ROWS, TEXTS)), folder=folder,
            checkpoint_id="2", dataset_uri="gs://b/v.jsonl", output_uri="gs://b/eval/2", **{**given, **more},
        )
    )  # fmt: skip


def read_rows_file(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ROW_FILE).read_text(encoding="utf-8").splitlines()]


def test_a_config_becomes_a_run_in_the_documented_shape_with_its_files(tmp_path: Path):
    found = run(CONFIG, tmp_path).to_json()
    assert "error" not in found
    assert found["checkpointId"] == "2"
    response = found["evaluateDatasetResponse"]
    assert response["outputInfo"] == {"gcsOutputDirectory": "gs://b/eval/2"}
    assert response["aggregationOutput"]["dataset"] == {"gcsSource": {"uris": ["gs://b/v.jsonl"]}}
    results = response["aggregationOutput"]["aggregationResults"]
    assert [(r["aggregationMetric"], next(k for k in r if k != "aggregationMetric")) for r in results] == [
        ("AVERAGE", "exactMatchMetricValue"), ("MODE", "exactMatchMetricValue"), ("MAXIMUM", "exactMatchMetricValue"),
        ("AVERAGE", "bleuMetricValue"), ("AVERAGE", "rougeMetricValue"), ("STANDARD_DEVIATION", "rougeMetricValue"),
        ("AVERAGE", "pointwiseMetricResult"), ("PERCENTILE_P90", "pointwiseMetricResult"),
        ("MODE", "pairwiseMetricResult"), ("AVERAGE", "pointwiseMetricResult"),
        ("STANDARD_DEVIATION", "pointwiseMetricResult"),
    ]  # fmt: skip
    assert results[0]["exactMatchMetricValue"] == {"score": 0.25}
    assert results[6]["pointwiseMetricResult"] == {"score": pytest.approx((15 + 15 + 0 + 4) / 4)}
    assert results[8]["pairwiseMetricResult"] == {"pairwiseChoice": "BASELINE"}
    json_format.ParseDict(found, aiplatform_v1beta1.EvaluateDatasetRun.pb()())


def test_row_results_hold_what_was_asked_answered_and_scored(tmp_path: Path):
    run(CONFIG, tmp_path)
    rows = read_rows_file(tmp_path)
    assert [row["line"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["prompt"] == "Say one."
    assert rows[0]["baselineModelResponse"] == "a longer base answer"
    assert rows[0]["results"]["exact_match"] == {"score": 1.0}
    assert rows[2]["results"]["rougeLsum"] == {"score": 0.0}
    assert rows[0]["results"]["pointwise"] == {
        "score": 15.0, "explanation": "so", "samples": [15.0, 15.0], "agreement": 1.0,
    }  # fmt: skip
    assert rows[0]["results"]["pairwise"]["pairwiseChoice"] == "BASELINE"


def test_the_aggregate_file_says_how_far_the_judge_can_be_trusted(tmp_path: Path):
    run(CONFIG, tmp_path)
    summary = json.loads((tmp_path / AGGREGATION_FILE).read_bytes())
    assert (summary["rows"], summary["answered"]) == (4, 4)
    pairwise = next(metric for metric in summary["metrics"] if metric["metric"] == "pairwise")
    assert pairwise["choices"] == {"CANDIDATE": 0, "BASELINE": 4, "TIE": 0}
    assert pairwise["firstPlaceShare"] == 0.5
    assert pairwise["agreement"] == 1.0
    assert "small judge is weak" in pairwise["note"]


def test_a_rows_error_costs_that_row_only(tmp_path: Path):
    answers = make_answers(ROWS, TEXTS)
    answers[0] = Answer(1, error={"code": 14, "message": "the model was away"})
    found = run(CONFIG, tmp_path, answers=answers)
    assert found.error is None
    rows = read_rows_file(tmp_path)
    assert rows[0]["error"]["message"] == "the model was away"
    assert rows[0]["results"]["exact_match"]["error"]["code"] == 14
    summary = json.loads((tmp_path / AGGREGATION_FILE).read_bytes())
    assert {(m["scored"], m["failed"]) for m in summary["metrics"]} == {(3, 1)}


def test_an_unreachable_judge_is_in_the_runs_error_and_the_computed_metrics_still_count(tmp_path: Path):
    async def away(_: GenerateContentRequest) -> GenerateContentResponse:
        raise Unavailable("nothing listens at the judge's address")

    found = run(CONFIG, tmp_path, judges={"": away})
    assert found.error is not None
    assert found.error["code"] == 14
    assert "pointwise: no row could be scored" in found.error["message"]
    assert "nothing listens" in found.error["message"]
    assert found.evaluate_dataset_response is not None
    output = found.evaluate_dataset_response.aggregation_output
    assert output is not None
    assert len(output.aggregation_results) == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"judges": {}}, "There is no model for the autorater"),
        ({"baseline": None}, "needs the base model's answer"),
        (
            {"answers": [Answer(line, error={"code": 8, "message": "full"}) for line in range(1, 5)]},
            "no row;",
        ),
    ],
)
def test_what_makes_every_row_fail_is_said_once_and_before(tmp_path: Path, more: dict[str, Any], message: str):
    found = run(CONFIG, tmp_path, **more)
    assert found.error is not None
    assert message in found.error["message"]
    assert found.evaluate_dataset_response is None
    assert not list(tmp_path.iterdir())


def test_raw_output_is_in_the_rows_and_has_no_aggregate(tmp_path: Path):
    spec = {"metricPromptTemplate": "{response}", "customOutputFormatConfig": {"returnRawOutput": True}}
    config = {**CONFIG, "metrics": [{"pointwiseMetricSpec": spec, "aggregationMetrics": ["AVERAGE"]}]}
    found = run(config, tmp_path, judges={"": saying(lambda _: "as you like it")})
    assert found.error is None
    assert found.evaluate_dataset_response is not None
    assert (
        found.evaluate_dataset_response.aggregation_output
        == EvaluateDatasetRun.read(
            {"evaluateDatasetResponse": {"aggregationOutput": {"dataset": {"gcsSource": {"uris": ["gs://b/v.jsonl"]}}}}}
        ).evaluate_dataset_response.aggregation_output
    )  # type: ignore[union-attr]
    raw = read_rows_file(tmp_path)[0]["results"]["pointwise"]["customOutput"]
    assert raw == {"rawOutputs": {"rawOutput": ["as you like it"] * 2}}


@pytest.mark.parametrize(
    ("metric", "field", "words"),
    [
        ({}, "metrics[0]", "One metric spec"),
        ({"pointwiseMetricSpec": {"metricPromptTemplate": "{prompt}"}}, "metric_prompt_template", "{response}"),
        ({"pointwiseMetricSpec": {"metricPromptTemplate": "{response} {tone}"}}, "metric_prompt_template", '"tone"'),
        ({"pairwiseMetricSpec": {"metricPromptTemplate": "{response}"}}, "metric_prompt_template", "{baseline_model_"),
        ({"predefinedMetricSpec": {"metricSpecName": "vibes_v1"}}, "metric_spec_name", "text_quality"),
        (
            {"predefinedMetricSpec": {"metricSpecName": "bleu", "metricSpecParameters": {"n": 4}}},
            "metric_spec_parameters.n",
            "use_effective_order",
        ),
        ({"computationBasedMetricSpec": {}}, "type", "EXACT_MATCH"),
        ({"computationBasedMetricSpec": {"type": "ROUGE", "parameters": {"rouge_type": "r"}}}, "rouge_type", "rougeL"),
        ({"rougeSpec": {"rougeType": "rouge0"}}, "rouge_type", "rouge1"),
        ({"customCodeExecutionSpec": {}}, "custom_code_execution_spec", "not supported"),
        ({"llmBasedMetricSpec": {"metricPromptTemplate": "{response}", "rubricGroupKey": "k"}}, "rubric", "rubrics"),
        (
            {"pairwiseMetricSpec": {"metricPromptTemplate": "{response}{baseline_model_response}"},
             "aggregationMetrics": ["AVERAGE"]},
            "aggregation_metrics",
            "MODE only",
        ),
        ({"exactMatchSpec": {}, "metadata": {"scoreRange": {"min": 2, "max": 1}}}, "score_range", "min below max"),
    ],
)  # fmt: skip
def test_bad_metrics_are_refused_by_field(metric: dict[str, Any], field: str, words: str):
    config = EvaluationConfig.read({"metrics": [metric]})
    with pytest.raises(InvalidArgument) as caught:
        plan_metrics(config.metrics)
    assert any(field in v.field and words in v.description for v in caught.value.violations), caught.value.message


def test_a_template_of_any_length_is_refused_by_its_length():
    spec = {"pointwiseMetricSpec": {"metricPromptTemplate": "{response}" * 10_001}}
    with pytest.raises(InvalidArgument, match="100,000 characters; this has 100,010"):
        plan_metrics(EvaluationConfig.read({"metrics": [spec]}).metrics)


def test_zero_metrics_are_refused():
    with pytest.raises(InvalidArgument, match="At least one metric"):
        plan_metrics([])


def test_every_documented_name_is_planned_with_its_parameters():
    specs: list[dict[str, Any]] = [{"predefinedMetricSpec": {"metricSpecName": f"{n}_v2"}} for n in JUDGED_METRICS]
    specs += [
        {"predefinedMetricSpec": {"metricSpecName": "rouge_l_sum", "metricSpecParameters": {"useStemmer": True}}},
        {"computationBasedMetricSpec": {"type": "ROUGE", "parameters": {"rouge_type": "rouge2"}}},
        {"computationBasedMetricSpec": {"type": "EXACT_MATCH"}},
        {"computationBasedMetricSpec": {"type": "BLEU", "parameters": {"use_effective_order": True}}},
        {"exactMatchSpec": {}, "metadata": {"title": "Same"}},
        {
            "llmBasedMetricSpec": {
                "metricPromptTemplate": "{response}",
                "judgeAutoraterConfig": {"autoraterModel": "big", "samplingCount": 1},
            }
        },
    ]
    planned = plan_metrics(EvaluationConfig.read({"metrics": specs}).metrics)
    assert {item.key for item in planned} >= {*JUDGED_METRICS, "rougeLsum", "rouge2", "exact_match", "exact_match_2"}
    assert judge_models(planned) == {"", "big"}
    assert next(item.title for item in planned if item.key == "exact_match_2") == "Same"
    stemmed = next(item.score for item in planned if item.key == "rougeLsum")
    assert stemmed is not None
    assert stemmed("running cats", "runs cat") == 1.0


def test_metrics_that_compare_are_refused_where_rows_have_no_reference():
    metrics = EvaluationConfig.read({"metrics": [{"bleuSpec": {}}]}).metrics
    with pytest.raises(InvalidArgument, match="no reference"):
        plan_metrics(metrics, row_fields=frozenset({"prompt"}))


def test_answers_come_in_order_within_the_limit_and_failures_cost_their_row():
    active, most = 0, 0

    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0)
        active -= 1
        if "two" in asked(request):
            raise RuntimeError("unexpected")
        return reply(asked(request).upper())

    heard: list[int] = []
    found = asyncio.run(
        answer_rows(ROWS, generate, concurrency=2, pauses=(), on_answer=lambda answer: heard.append(answer.line))
    )
    assert [answer.text for answer in found] == ["SAY ONE.", "", "SAY THREE.", "SAY FOUR."]
    assert found[1].error == {"code": 13, "message": "The model call failed: RuntimeError"}
    assert found[0].finish_reason == "STOP"
    assert most == 2
    assert sorted(heard) == [1, 2, 3, 4]


def test_a_busy_model_is_asked_again():
    tries: list[str] = []

    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        tries.append(asked(request))
        if len(tries) < 3:
            raise ResourceExhausted("queue full")
        return reply("at last")

    found = asyncio.run(answer_rows(ROWS[:1], generate, pauses=(0.0, 0.0)))
    assert (found[0].text, len(tries)) == ("at last", 3)


def test_cancelling_an_evaluation_stops_it():
    started = asyncio.Event()

    async def generate(_: GenerateContentRequest) -> GenerateContentResponse:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def check() -> None:
        task = asyncio.create_task(answer_rows(ROWS, generate))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(check())


def test_rows_come_from_every_training_format_and_keep_fields_of_their_own():
    call = {"functionCall": {"name": "f", "args": {"b": 1, "a": 2}}}
    lines: list[dict[str, Any]] = [
        {"contents": [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [{"text": "A"}]}]},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
                      {"role": "assistant", "content": "first"}, {"role": "user", "content": "again"},
                      {"role": "assistant", "content": "A"}]},
        {"prompt": "Q", "reference": "A", "tone": "dry", "tags": ["x"]},
        {"contents": [{"role": "user", "parts": [{"text": "Q"}]}]},
        {"contents": [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [call]}],
         "tools": [{"functionDeclarations": [{"name": "f", "description": "d", "parameters": {"type": "OBJECT"}}]}]},
        {"prompt": "Q", "response": "theirs"},
        {"prompt": 3},
    ]  # fmt: skip
    rows, faults = rows_from([*(json.dumps(line).encode() for line in lines[:3]), b"\n",
                              *(json.dumps(line).encode() for line in lines[3:])])  # fmt: skip
    assert [row.line for row in rows] == [1, 2, 3, 5, 6]
    assert [row.reference for row in rows] == ["A", "A", "A", None, '{"args":{"a":2,"b":1},"name":"f"}']
    assert rows[1].prompt == "User: Q\nModel: first\nUser: again"
    assert rows[1].fields["system_instruction"] == "S"
    assert rows[2].fields["tone"] == "dry"
    assert rows[2].fields["tags"] == '["x"]'
    assert rows[4].request.tools[0].function_declarations[0].name == "f"
    assert [fault.line for fault in faults] == [7, 8]
    assert "rename the field" in faults[0].fix


def test_the_default_for_answers_is_greedy_and_bounded_by_the_references():
    config = default_generation_config(ROWS)
    assert config.temperature == 0.0
    assert 64 < (config.max_output_tokens or 0) < 100


def test_a_judge_with_random_weights_gives_valid_scores_by_constrained_decoding(tmp_path: Path):
    base = make_tiny_base(tmp_path / "base")
    rows = ROWS[:1]
    metrics = [
        JudgeMetric("q", "{response}", scale=ScoreScale(1, 5, 1), samples=1),
        JudgeMetric("n", "{response}", scale=ScoreScale(0, 1), samples=1),
        JudgeMetric("p", "{response}{old}", is_pairwise=True, baseline_names=frozenset({"old"}), samples=1),
    ]
    with running_engine() as asker:

        async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
            chunks = await asyncio.to_thread(asker.ask, base, request)
            return reply(text_of(chunks))

        for metric in metrics:
            found = asyncio.run(
                judge_rows(metric, rows, make_answers(rows, ["a"]), make_answers(rows, ["c"]), generate,
                           concurrency=1, pauses=())
            )  # fmt: skip
            for judgement in found:
                assert judgement.error is None
                assert judgement.failed_samples == 0
                assert (judgement.choice is not None) == metric.is_pairwise
                if judgement.score is not None:
                    assert metric.scale.low <= judgement.score <= metric.scale.high


def test_what_a_library_cannot_take_costs_the_row_and_what_breaks_a_metric_that_metric():
    def picky(prediction: str, reference: str) -> float:
        return 1.0 if prediction else 1 / 0

    results = compute_rows(picky, ROWS, make_answers(ROWS, TEXTS))
    assert [result.error and result.error["message"].partition(";")[0] for result in results] == [
        None, None, "ZeroDivisionError", None,
    ]  # fmt: skip
    [planned] = plan_metrics(EvaluationConfig.read({"metrics": [CONFIG["metrics"][3]]}).metrics)
    dead = asyncio.run(score_rows(planned, ROWS, make_answers(ROWS, TEXTS), judges={}))
    assert [result.error and result.error["code"] for result in dead.results] == [13] * 4
