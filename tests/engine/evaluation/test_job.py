"""A job's evaluation: the base once, every checkpoint, the report so far; nothing asked twice, not after a restart."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.generate import Generate
from sarto.engine.evaluation.job_evaluation import CheckpointMeasures, JobEvaluation, evaluate_checkpoint, report_job
from sarto.errors import Unavailable
from sarto.schema.evaluation import EvaluationConfig
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from tests.engine.evaluation.making import asked, make_rows, reply, saying

ROWS = make_rows([(f"Q{n}", f"answer number {n}") for n in range(1, 13)])
RIGHT = {f"Q{n}": f"answer number {n}" for n in range(1, 13)}
FIRST, SECOND = CheckpointMeasures("1", 10, 1, 0.9, 0.7), CheckpointMeasures("2", 20, 2, 0.5, 0.8)
CONFIG = EvaluationConfig.read({"metrics": [{"exactMatchSpec": {}, "aggregationMetrics": ["AVERAGE"]}]})


def counting(answer: Generate, calls: Counter[str], name: str) -> Generate:
    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        calls[name] += 1
        return await answer(request)

    return generate


def test_a_job_with_two_checkpoints_asks_each_system_once_and_reports(tmp_path: Path):
    calls: Counter[str] = Counter()
    heard: list[tuple[str, Answer]] = []
    job = JobEvaluation(
        "Job 7",
        tmp_path,
        ROWS,
        counting(saying(lambda _: "who knows"), calls, "base"),
        config=CONFIG,
        output_uri="gs://b/eval",
        on_answer=lambda name, answer: heard.append((name, answer)),
    )
    half = counting(saying(lambda q: RIGHT[q] if q > "Q2" else "no"), calls, "1")
    whole = counting(saying(RIGHT.__getitem__), calls, "2")

    async def run() -> None:
        first = await evaluate_checkpoint(job, FIRST, half)
        second = await evaluate_checkpoint(job, SECOND, whole)
        assert first is not None
        assert second is not None
        assert second.to_json()["evaluateDatasetResponse"]["outputInfo"] == {
            "gcsOutputDirectory": "gs://b/eval/checkpoint-2"
        }
        report = await report_job(job, [SECOND, FIRST, CheckpointMeasures("3", 30, 3)])
        assert report is not None
        assert [system.name for system in report.systems] == ["base", "checkpoint 1", "checkpoint 2"]
        assert report.best is not None
        assert report.best.name == "checkpoint 2"
        again = await evaluate_checkpoint(job, SECOND, whole)
        assert again == second

    asyncio.run(run())
    assert calls == {"base": 12, "1": 12, "2": 12}
    assert Counter(name for name, _ in heard) == {"base": 12, "checkpoint-1": 12, "checkpoint-2": 12}
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert found == {
        "answers/base.jsonl", "answers/checkpoint-1.jsonl", "answers/checkpoint-2.jsonl",
        "checkpoint-1/row_results.jsonl", "checkpoint-1/aggregation_results.json",
        "checkpoint-2/row_results.jsonl", "checkpoint-2/aggregation_results.json",
        "report/report.json", "report/report.jsonl", "report/report.html",
    }  # fmt: skip


def test_after_a_restart_only_rows_without_an_answer_are_asked(tmp_path: Path):
    calls: Counter[str] = Counter()
    failing = True

    async def flaky(request: GenerateContentRequest) -> GenerateContentResponse:
        if failing and asked(request) in ("Q3", "Q4"):
            raise Unavailable("restarting")
        return reply(RIGHT[asked(request)])

    job = JobEvaluation("Job 7", tmp_path, ROWS, saying(lambda _: "?"), pauses=())
    generate = counting(flaky, calls, "tuned")
    assert asyncio.run(evaluate_checkpoint(job, FIRST, generate)) is None
    report = asyncio.run(report_job(job, [FIRST]))
    assert report is not None
    assert report.systems[1].failed == 2
    failing = False
    asyncio.run(evaluate_checkpoint(replace(job), FIRST, generate))
    assert calls["tuned"] == 14
    report = asyncio.run(report_job(job, [FIRST]))
    assert report is not None
    assert report.systems[1].failed == 0
    assert json.loads((tmp_path / "report" / "report.json").read_bytes())["systems"][1]["answered"] == 12


def test_without_an_evaluated_checkpoint_there_is_no_report(tmp_path: Path):
    job = JobEvaluation("Job 7", tmp_path, ROWS, saying(lambda _: "?"))
    assert asyncio.run(report_job(job, [FIRST])) is None
