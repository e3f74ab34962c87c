"""One evaluation outside a tuning job, from a folder with `spec.json` to `out/` and, written last, `result.json`.

`python -m sarto.engine.programs.evaluate FOLDER/spec.json PLACE=FOLDER…`. Models and judges are called through the
relay (`relayed_model.py`), so no weights are loaded here. Knows no HTTP, users or database.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from sarto.contract.evaluation_run import EvaluationResult, EvaluationSpec
from sarto.contract.run_folder import EVALUATION_REPORT_FOLDER, OUTPUT_FOLDER
from sarto.conversations.examples import RowFault, read_row
from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.evaluate_dataset import evaluate_dataset
from sarto.engine.evaluation.generate import answer_rows
from sarto.engine.evaluation.report.files import write_report
from sarto.engine.evaluation.report.report import System, build_report
from sarto.engine.evaluation.rows import EvaluationRow, default_generation_config, read_evaluation_row, read_rows
from sarto.engine.programs.operation_folder import begin, tell, write_result
from sarto.engine.programs.relayed_model import RelayedModels
from sarto.errors import FailedPrecondition, SartoError, fault_of
from sarto.plurals import row_count
from sarto.schema.evaluation import PLACEHOLDER as FIELD
from sarto.schema.evaluation import (
    EvaluateDatasetRun,
    EvaluationConfig,
    Metric,
    baseline_fields,
    judge_names,
    metric_template,
    response_fields,
)

logger = logging.getLogger(__name__)
CONCURRENCY = 32
RESPONSES, BASELINE = "responses", "baseline"
"""Names in the report for answers from the rows."""


@dataclass(frozen=True)
class AnsweredRows:
    """Usable rows, with the answers of each system by name."""

    rows: list[EvaluationRow]
    faults: list[RowFault]
    systems: dict[str, list[Answer]]


def main(arguments: list[str]) -> int:
    spec = begin(EvaluationSpec, arguments)
    try:
        result = asyncio.run(evaluate(spec))
    except Exception as error:  # any fault is the operation's error
        if not isinstance(error, SartoError):
            logger.exception("evaluation failed")
        result = EvaluationResult(error=fault_of(error).to_status())
    write_result(Path(spec.folder), result)
    return 0


async def evaluate(spec: EvaluationSpec) -> EvaluationResult:
    """Generate answers, compute metrics, write the report. Raises SartoError if no row can be scored."""
    folder, config = Path(spec.folder), EvaluationConfig.read(spec.config)
    outside = RelayedModels(folder)
    answered = await _ask(spec, config, outside) if spec.models else read_answered(spec, config.metrics)
    if not answered.rows:
        first = f"; the first fault: {answered.faults[0]}" if answered.faults else ""
        raise FailedPrecondition(f"{spec.dataset_uri} has no row that can be evaluated{first}")
    tell(folder, 70, "Scoring the answers.")
    runs = {}
    for name, metrics in _scored(spec, config.metrics, answered):
        run = await _score(spec, config.model_copy(update={"metrics": metrics}), answered, name, outside)
        runs[name] = run.to_json()
    tell(folder, 90, "Writing the report.")
    notes = (
        [f"{row_count(len(answered.faults))} could not be read; the first: {answered.faults[0]}"]
        if answered.faults
        else []
    )
    systems = [System(name or RESPONSES, answers) for name, answers in answered.systems.items()]
    report = build_report(answered.rows, systems, title=spec.title, dataset=spec.dataset_uri, notes=notes)
    write_report(folder / OUTPUT_FOLDER / EVALUATION_REPORT_FOLDER, report, answered.rows, systems)
    return EvaluationResult(rows=len(answered.rows), left_out=len(answered.faults), runs=runs, has_report=True)


async def _ask(spec: EvaluationSpec, config: EvaluationConfig, outside: RelayedModels) -> AnsweredRows:
    rows, faults = read_rows(Path(spec.rows), limit=spec.max_rows)
    default = default_generation_config(rows)
    generation_config = config.inference_generation_config
    if generation_config is not None:
        most = generation_config.max_output_tokens or default.max_output_tokens
        default = generation_config.model_copy(update={"max_output_tokens": most})
    systems: dict[str, list[Answer]] = {}
    for number, name in enumerate(spec.models):
        tell(Path(spec.folder), 70 * number // len(spec.models), f"Asking {name}: {row_count(len(rows))}.")
        systems[name] = await answer_rows(rows, outside.asking(name), config=default, concurrency=CONCURRENCY)
    failed = [replies for replies in systems.values() if replies and all(answer.error for answer in replies)]
    if failed and len(failed) == len(systems):
        raise FailedPrecondition(
            f"No model answered any row; the first failure: {(failed[0][0].error or {})['message']}"
        )
    return AnsweredRows(rows, faults, systems)


def read_answered(spec: EvaluationSpec, metrics: Sequence[Metric]) -> AnsweredRows:
    """Rows that have the answers to score, and perhaps those of another system for comparison, under the field names of
    the metrics' templates."""
    ours = sorted(frozenset().union(*(response_fields(metric) for metric in metrics)))
    theirs = sorted(frozenset().union(*(baseline_fields(metric) for metric in metrics)))
    rows: list[EvaluationRow] = []
    faults: list[RowFault] = []
    answers: list[Answer] = []
    baseline: list[Answer] = []
    with Path(spec.rows).open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            if len(rows) >= spec.max_rows:
                break
            if not raw.strip():
                continue
            try:
                fields = read_row(raw, number)
                values = [fields.pop(name) for name in ours if fields.get(name) is not None]
                other = [fields.pop(name) for name in theirs if fields.get(name) is not None]
                if not values:
                    raise RowFault(ours[0], "nothing", "the answer to score", "add it, or name the models to ask")
                row = read_evaluation_row(orjson.dumps(fields), number)
            except RowFault as fault:
                fault.line = number
                faults.append(fault)
                continue
            rows.append(row)
            answers.append(Answer(number, _text(values[0])))
            baseline += [Answer(number, _text(other[0]))] if other else []
    systems = {BASELINE: baseline, "": answers} if rows and len(baseline) == len(rows) else {"": answers}
    return AnsweredRows(rows, faults, systems)


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _scored(spec: EvaluationSpec, metrics: list[Metric], answered: AnsweredRows) -> list[tuple[str, list[Metric]]]:
    """Each system to score, with its metrics. With several models the others are compared with the first, which has no
    comparisons itself."""
    if not spec.models:
        return [("", metrics)]
    alone = [metric for metric in metrics if not baseline_fields(metric) & set(FIELD.findall(metric_template(metric)))]
    chosen = [(name, metrics if number else alone) for number, name in enumerate(answered.systems)]
    return [(name, scores) for name, scores in chosen if scores]


async def _score(
    spec: EvaluationSpec, config: EvaluationConfig, answered: AnsweredRows, name: str, outside: RelayedModels
) -> EvaluateDatasetRun:
    first = next(iter(answered.systems))
    part = f"model-{spec.models.index(name) + 1}" if len(spec.models) > 1 else ""
    return await evaluate_dataset(
        config,
        answered.rows,
        answered.systems[name],
        folder=Path(spec.folder) / OUTPUT_FOLDER / part,
        baseline=answered.systems[first] if first != name else None,
        judges={judge: outside.asking(judge) for judge in {"", *(judge for _, judge in judge_names(config, ""))}},
        dataset_uri=spec.dataset_uri,
        output_uri=f"{spec.output_uri}/{part}".rstrip("/"),
        concurrency=CONCURRENCY,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
