"""The documented evaluation: the metrics of an EvaluationConfig over the answers of one system.

Writes `row_results.jsonl` and `aggregation_results.json` into a folder and returns the EvaluateDatasetRun that a job
shows. A failed row affects no other row. Knows no buckets and no database; the caller moves the files.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.generate import PAUSES_SECONDS, Generate
from sarto.engine.evaluation.metrics.aggregate import aggregate, choice_mode
from sarto.engine.evaluation.metrics.computed import Score
from sarto.engine.evaluation.metrics.judge import Judgement, first_place_share, judge_rows, needs_baseline
from sarto.engine.evaluation.metrics.plan import PlannedMetric, judge_models, plan_metrics
from sarto.engine.evaluation.report.statistics import agreement, krippendorff_alpha
from sarto.engine.evaluation.rows import EvaluationRow, shared_fields
from sarto.errors import FailedPrecondition, Internal, SartoError, fault_of, from_status
from sarto.schema.evaluation import (
    AggregationMetric,
    AggregationOutput,
    AggregationResult,
    EvaluateDatasetResponse,
    EvaluateDatasetRun,
    EvaluationConfig,
    EvaluationDataset,
    GcsSource,
    OutputInfo,
    PairwiseChoice,
    PairwiseMetricResult,
    PointwiseMetricResult,
)
from sarto.schema.evaluation import Score as ScoreValue

logger = logging.getLogger(__name__)

ROW_FILE = "row_results.jsonl"
AGGREGATION_FILE = "aggregation_results.json"
JUDGE_NOTE = (
    "Scores of a model are its opinion. A small judge is weak: do not conclude from it where its repeated samples "
    "disagree (alpha below 0.667)."
)


Compute = Callable[[PlannedMetric], Awaitable[list[Judgement]]]
"""Computes the results of a computed metric for all rows."""


@dataclass(frozen=True)
class MetricRows:
    """A metric with its result for every row, in order."""

    metric: PlannedMetric
    results: list[Judgement]

    @property
    def scored(self) -> list[Judgement]:
        return [result for result in self.results if result.error is None]


async def evaluate_dataset(
    config: EvaluationConfig,
    rows: Sequence[EvaluationRow],
    answers: Sequence[Answer],
    *,
    folder: Path,
    baseline: Sequence[Answer] | None = None,
    judges: Mapping[str, Generate] | None = None,
    checkpoint_id: str = "",
    dataset_uri: str = "",
    output_uri: str = "",
    concurrency: int = 8,
    pauses: tuple[float, ...] = PAUSES_SECONDS,
) -> EvaluateDatasetRun:
    """One run of the config's metrics over `answers` (of `rows`, in order), with its files in `folder`. `baseline` has
    the base model's answers. `judges` has the model of each autorater name in the config, "" for the default.

    Faults of the user are in the run's `error`, not raised, since the job succeeds with them."""
    run = EvaluateDatasetRun(checkpoint_id=checkpoint_id)
    try:
        planned = plan_metrics(config.metrics, config.autorater_config, row_fields=shared_fields(rows))
        _check(planned, rows, answers, baseline, judges or {})
        results = [
            await score_rows(item, rows, answers, baseline, judges or {}, concurrency=concurrency, pauses=pauses)
            for item in planned
        ]
        dataset = EvaluationDataset(gcs_source=GcsSource(uris=[dataset_uri])) if dataset_uri else None
        output = AggregationOutput(dataset=dataset, aggregation_results=aggregation_results(results))
        await asyncio.to_thread(write_results, folder, rows, answers, baseline, results, output)
    except SartoError as error:
        run.error = error.to_status()
        return run
    run.evaluate_dataset_response = EvaluateDatasetResponse(
        aggregation_output=output, output_info=OutputInfo(gcs_output_directory=output_uri) if output_uri else None
    )
    run.error = _first_dead_metric(results)
    return run


async def score_rows(
    planned: PlannedMetric,
    rows: Sequence[EvaluationRow],
    answers: Sequence[Answer],
    baseline: Sequence[Answer] | None = None,
    judges: Mapping[str, Generate] | None = None,
    *,
    concurrency: int = 8,
    pauses: tuple[float, ...] = PAUSES_SECONDS,
    compute: Compute | None = None,
) -> MetricRows:
    """Score all rows by one metric. A computed metric runs in `compute`, outside the event loop. A metric that fails
    affects no other metric."""
    try:
        if planned.judge is not None:
            generate = (judges or {})[planned.judge.model]
            judged = await judge_rows(
                planned.judge, rows, answers, baseline, generate, concurrency=concurrency, pauses=pauses
            )
            return MetricRows(planned, judged)
        if compute is not None:
            return MetricRows(planned, await compute(planned))
        assert planned.score is not None
        return MetricRows(planned, await asyncio.to_thread(compute_rows, planned.score, rows, answers))
    except Exception as error:
        logger.exception("metric failed", extra={"metric": planned.key})
        return MetricRows(planned, [Judgement(error=fault_of(error).to_status()) for _ in rows])


def compute_rows(score: Score, rows: Sequence[EvaluationRow], answers: Sequence[Answer]) -> list[Judgement]:
    """A computed metric over all rows. A row without an answer, or that the metric cannot score, has an error."""
    return [_compute(score, row, answer) for row, answer in zip(rows, answers, strict=True)]


def aggregation_results(results: Sequence[MetricRows]) -> list[AggregationResult]:
    """Every aggregation of every metric, in the API's form. Metrics without a scored row have none."""
    values = []
    for item in results:
        for kind in item.metric.aggregations:
            result = _aggregate(item, kind)
            if result is not None:
                values.append(result)
    return values


def write_results(
    folder: Path,
    rows: Sequence[EvaluationRow],
    answers: Sequence[Answer],
    baseline: Sequence[Answer] | None,
    results: Sequence[MetricRows],
    output: AggregationOutput,
) -> None:
    """Write both files, the aggregate last: if it exists, the rows are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ROW_FILE).open("wb") as file:
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            line = row_json(row, answer, baseline[index] if baseline else None)
            line["results"] = {item.metric.key: judgement_json(item.results[index]) for item in results}
            file.write(orjson.dumps(line) + b"\n")
    summary = {
        "dataset": output.dataset.to_json() if output.dataset else {},
        "rows": len(rows),
        "answered": sum(answer.error is None for answer in answers),
        "metrics": [metric_json(item) for item in results],
        "aggregationResults": [result.to_json() for result in output.aggregation_results],
    }
    (folder / AGGREGATION_FILE).write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))


def row_json(row: EvaluationRow, answer: Answer, baseline: Answer | None = None) -> dict[str, Any]:
    """The prompt and the answers of a row, without empty fields."""
    line: dict[str, Any] = {"line": row.line, "prompt": row.prompt, "response": answer.text}
    if row.fields.get("system_instruction"):
        line["systemInstruction"] = row.fields["system_instruction"]
    if row.reference is not None:
        line["reference"] = row.reference
    if baseline is not None:
        line["baselineModelResponse"] = baseline.text
    if answer.finish_reason:
        line["finishReason"] = answer.finish_reason
    if answer.error:
        line["error"] = answer.error
    return line


def judgement_json(judgement: Judgement) -> dict[str, Any]:
    """The result of one metric for a row, without empty fields; raw replies are in a CustomOutput."""
    if judgement.error:
        return {"error": judgement.error}
    raw = {"rawOutputs": {"rawOutput": list(judgement.raw)}} if judgement.raw else None
    repeated = judgement.samples if len(judgement.samples) > 1 else ()
    content = {
        "score": judgement.score,
        "pairwiseChoice": judgement.choice,
        "explanation": judgement.explanation,
        "samples": list(repeated),
        "agreement": agreement([repeated]),
        "customOutput": raw,
        "failedSamples": judgement.failed_samples,
    }
    return {
        name: value
        for name, value in content.items()
        if value not in (None, "", []) and (name, value) != ("failedSamples", 0)
    }


def metric_json(item: MetricRows) -> dict[str, Any]:
    """The numbers behind a metric: rows scored and failed; for a judge also the agreement of its samples."""
    value: dict[str, Any] = {
        "metric": item.metric.key,
        "title": item.metric.title,
        "scored": len(item.scored),
        "failed": len(item.results) - len(item.scored),
    }
    judge = item.metric.judge
    if judge is None:
        return value
    samples = [result.samples for result in item.scored]
    value |= {
        "judge": judge.model,
        "samplesPerRow": judge.samples,
        "failedSamples": sum(result.failed_samples for result in item.results),
        "agreement": agreement(samples),
        "krippendorffAlpha": krippendorff_alpha(samples),
        "note": JUDGE_NOTE,
    }
    if judge.is_pairwise:
        choices = Counter(result.choice for result in item.scored)
        value["choices"] = {choice.value: choices[choice] for choice in _CHOICES}
        value["firstPlaceShare"] = first_place_share(item.scored, judge)
    return value


_CHOICES = (PairwiseChoice.CANDIDATE, PairwiseChoice.BASELINE, PairwiseChoice.TIE)


def _check(
    planned: Sequence[PlannedMetric],
    rows: Sequence[EvaluationRow],
    answers: Sequence[Answer],
    baseline: Sequence[Answer] | None,
    judges: Mapping[str, Generate],
) -> None:
    """Raise a fault of every row once, before any judge is called."""
    if not rows:
        raise FailedPrecondition("The evaluation dataset has no usable row.")
    if len(answers) != len(rows) or (baseline is not None and len(baseline) != len(rows)):
        raise Internal("The numbers of answers and rows differ.")
    if all(answer.error for answer in answers):
        first = from_status(answers[0].error or {})
        raise type(first)(f"The model answered no row; the first failure: {first.message}", first.details)
    missing = sorted(judge_models(planned) - judges.keys())
    if missing:
        raise FailedPrecondition(f"There is no model for the autorater {', '.join(missing) or 'of the service'}.")
    if baseline is None and any(item.judge and needs_baseline(item.judge) for item in planned):
        raise FailedPrecondition("A template needs the base model's answer, which this evaluation does not have.")


def _compute(score: Score, row: EvaluationRow, answer: Answer) -> Judgement:
    if answer.error:
        return Judgement(error=answer.error)
    try:
        return Judgement(score=score(answer.text, row.reference or ""))
    except Exception as error:  # a text that a library refuses fails this row only
        return Judgement(error=fault_of(error).to_status())


def _aggregate(item: MetricRows, kind: AggregationMetric) -> AggregationResult | None:
    result = AggregationResult(aggregation_metric=kind)
    field = item.metric.result_field
    if field == "pairwise_metric_result":
        choices = [judged.choice for judged in item.scored if judged.choice is not None]
        if not choices:
            return None
        result.pairwise_metric_result = PairwiseMetricResult(pairwise_choice=choice_mode(choices))
        return result
    value = aggregate(kind, [judged.score for judged in item.scored if judged.score is not None])
    if value is None:
        return None
    if field == "exact_match_metric_value":
        result.exact_match_metric_value = ScoreValue(score=value)
    elif field == "bleu_metric_value":
        result.bleu_metric_value = ScoreValue(score=value)
    elif field == "rouge_metric_value":
        result.rouge_metric_value = ScoreValue(score=value)
    else:
        result.pointwise_metric_result = PointwiseMetricResult(score=value)
    return result


def _first_dead_metric(results: Sequence[MetricRows]) -> dict[str, Any] | None:
    """The error of the first metric without a scored row, such as an unreachable judge. The other metrics still
    count."""
    for item in results:
        if not item.scored:
            first = from_status(item.results[0].error or {})
            message = f"{item.metric.key}: no row could be scored; the first failure: {first.message}"
            return type(first)(message, first.details).to_status()
    return None
