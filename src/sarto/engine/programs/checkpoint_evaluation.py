"""The evaluation of a run. After every checkpoint the serving engine answers the rows and the answers are scored; at
the end comes the standard report. It connects tuning, serving and evaluation, which do not import one another.

A fault of a row or a metric is recorded in its place, and the tuning continues.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sarto.contract.run_folder import EVALUATION_FOLDER
from sarto.contract.tuning_run import Assessment, CheckpointRecord, EvalMetrics, RunSpec
from sarto.engine.evaluation.generate import Generate
from sarto.engine.evaluation.job_evaluation import (
    CheckpointMeasures,
    JobEvaluation,
    base_measures,
    best_by,
    evaluate_checkpoint,
    report_job,
)
from sarto.engine.evaluation.report.report import TITLES, Report
from sarto.engine.evaluation.rows import EvaluationRow, read_rows
from sarto.engine.models.decoder import Decoder
from sarto.engine.programs.local_model import asking
from sarto.engine.programs.relayed_model import RelayedModels
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.errors import DeadlineExceeded, SartoError, fault_of
from sarto.plurals import row_count
from sarto.schema.evaluation import EvaluateDatasetRun, EvaluationConfig

logger = logging.getLogger(__name__)
STANDARD_ROWS = 40
"""Rows of the standard report, evenly spread over the file; with an evaluationConfig all rows are answered."""
CONCURRENCY = 32
LONGER, MORE_TOKENS, MOST_TOKENS = 1.25, 8, 1024
"""An answer may have a quarter and eight tokens more than the longest reference."""


class CheckpointEvaluation:
    """`after` evaluates a checkpoint; `finish` returns the report. `say` is called with progress messages."""

    def __init__(
        self,
        spec: RunSpec,
        base_losses: Callable[[], tuple[float, float] | None],
        decoder: Decoder,
        outside: RelayedModels,
        say: Callable[[str], None],
    ) -> None:
        """`decoder` is training's base. It generates while training waits, so that the weights are in memory once.
        `outside`: models elsewhere."""
        assert spec.evaluation is not None
        self.spec, self.plan, self.say = spec, spec.evaluation, say
        self.folder = Path(spec.resume_folder or spec.run_folder) / EVALUATION_FOLDER
        self._base_losses, self._decoder = base_losses, decoder
        self._notes: list[str] = []
        self._job: JobEvaluation | None = None
        self._engine: Engine | None = None
        self._outside = outside

    def after(self, record: CheckpointRecord) -> Assessment:
        """Answers and scores of one checkpoint. Answers of an earlier attempt are used again."""
        checkpoint = measures(record)
        report: Report | None = None
        folder = Path(self.spec.run_folder) / record.folder
        served, key = self.spec.base, None
        if self.spec.parameters.is_full:
            served = self.spec.base.fully_tuned(str(folder), checkpoint.digest)
        else:
            key = AdapterKey(checkpoint.digest, str(folder))
        try:
            job = self._open()
            self.say(f"Evaluation of checkpoint {record.checkpoint_id} on {row_count(len(job.rows))} began.")
            assert self._engine is not None
            judged = replace(job, judges=self._judges(self._engine))
            if not self.spec.parameters.is_full:
                self._engine.lend(self.spec.base, self._decoder)
            try:
                evaluation = evaluate_checkpoint(judged, checkpoint, asking(self._engine, served, key))
                run = asyncio.run(asyncio.wait_for(evaluation, self.plan.max_seconds or None))
            finally:
                self._engine.give_back(self.spec.base)
            report = asyncio.run(report_job(job, [checkpoint]))
        except TimeoutError:
            limit = f"{self.plan.max_seconds:g} seconds that the evaluation of a checkpoint may take on this server"
            fault = DeadlineExceeded(f"It took longer than the {limit} (max_evaluation_seconds).")
            run = self._failed(record, fault)
        except Exception as error:  # any fault is the evaluation's; the tuning continues
            run = self._failed(record, _as_sarto_error(error))
        else:
            self.say(_about(record.checkpoint_id, report))
        return Assessment(
            checkpoint_id=record.checkpoint_id,
            folder=checkpoint.folder_name,
            run=run.to_json() if run else None,
            step=record.step,
            scores={metric.metric: metric.mean for metric in report.systems[-1].metrics} if report else {},
        )

    def _failed(self, record: CheckpointRecord, fault: SartoError) -> EvaluateDatasetRun | None:
        self.say(f"Evaluation of checkpoint {record.checkpoint_id} failed: {fault.message}")
        if self.plan.config is None:
            return None
        return EvaluateDatasetRun(checkpoint_id=record.checkpoint_id, error=fault.to_status())

    def finish(self, checkpoints: Sequence[CheckpointRecord]) -> Report | None:
        """The report over all checkpoints; None if none was evaluated."""
        try:
            if self._job is None and not checkpoints:
                return None
            job = self._job or self._open()
            return asyncio.run(report_job(job, [measures(record) for record in checkpoints], self._notes))
        except Exception as error:  # as above
            self.say(f"The evaluation report failed: {_as_sarto_error(error).message}")
            return None
        finally:
            if self._engine is not None:
                self._engine.close()

    def _open(self) -> JobEvaluation:
        """Rows, engine and judges; created with the first checkpoint."""
        if self._job is not None:
            return self._job
        spec, dataset = self.spec, self.spec.validation_dataset
        assert dataset is not None
        rows, faults = read_rows(Path(dataset.path), data_format=spec.data_format)
        config = EvaluationConfig.read(self.plan.config) if self.plan.config is not None else None
        if faults:
            self._notes.append(f"{row_count(len(faults))} of the validation data could not be read.")
        chosen = rows if config is not None else spread_rows(rows, STANDARD_ROWS)
        if len(chosen) < len(rows):
            self._notes.append(
                f"{len(chosen)} of {len(rows)} validation rows were answered, evenly spread over the file."
            )
        dtype = "int8" if spec.serve_int8 else spec.dtype
        self._engine = Engine(EngineOptions(threads=spec.threads, device=spec.device, dtype=dtype))
        if self.plan.outside_judges:
            names = ", ".join(self.plan.outside_judges)
            self.say(f"Judges elsewhere are used ({names}): the fields of their templates are sent to them.")
        self._job = JobEvaluation(
            f"Evaluation of {spec.job}",
            self.folder,
            chosen,
            asking(self._engine, spec.base),
            config=config,
            dataset_uri=dataset.uri,
            output_uri=self.plan.output_uri,
            concurrency=CONCURRENCY,
            max_output_tokens=answer_tokens(chosen, self._engine.tokenizer(spec.base)),
            base_measures=self.measure_base(),
        )
        return self._job

    def measure_base(self) -> tuple[float | None, float | None]:
        """Loss and accuracy of the base, measured once for all attempts."""
        return base_measures(self.folder, self._base_losses)

    def _judges(self, engine: Engine) -> dict[str, Generate]:
        """The model of each autorater. A judge that was unreachable at the last checkpoint is called again."""
        generators = {"": asking(engine, self.spec.base)}
        generators |= {name: self._outside.asking(name) for name in self.plan.outside_judges}
        for name, judge in self.plan.judges.items():
            key = AdapterKey(judge.adapter_digest, judge.adapter_folder) if judge.adapter_folder else None
            generators[name] = asking(engine, judge.base, key)
        return generators


def measures(record: CheckpointRecord) -> CheckpointMeasures:
    evaluation = record.evaluation
    files = "".join(f"{name}:{digest}\n" for name, digest in sorted(record.files.items()))
    return CheckpointMeasures(
        record.checkpoint_id,
        record.step,
        record.epoch,
        evaluation.loss if evaluation else None,
        evaluation.accuracy if evaluation and evaluation.margin is None else None,
        record.training_loss,
        _pairs(evaluation) if evaluation and evaluation.margin is not None else None,
        hashlib.sha256(files.encode()).hexdigest(),
    )


def best_of(report: Report | None, records: Sequence[CheckpointRecord]) -> tuple[str | None, str]:
    """The id of the best checkpoint and the evidence for it; the last one if nothing was measured."""
    choice = best_by(report, [measures(record) for record in records])
    if choice is None:
        words = "the last checkpoint: there was no validation data to compare them by"
        return (records[-1].checkpoint_id, words) if records else (None, "")
    best = next(record for record in records if measures(record).name == choice.name)
    return best.checkpoint_id, f"{choice.evidence}. Rule: {choice.rule}"


def _pairs(metrics: EvalMetrics) -> tuple[int, int]:
    return round(metrics.accuracy * metrics.supervised_tokens), metrics.supervised_tokens


def spread_rows(rows: Sequence[EvaluationRow], most: int) -> list[EvaluationRow]:
    """`most` rows at even distances; all rows if there are not more."""
    if len(rows) <= most:
        return list(rows)
    return [rows[index * len(rows) // most] for index in range(most)]


def answer_tokens(rows: Sequence[EvaluationRow], tokenizer: ChatTokenizer) -> int:
    """Most tokens of an answer, by the longest reference; 0 without references."""
    longest = max((len(tokenizer.encode(row.reference)) for row in rows if row.reference), default=0)
    return min(MOST_TOKENS, int(longest * LONGER) + MORE_TOKENS) if longest else 0


def _as_sarto_error(error: Exception) -> SartoError:
    """The fault; an unexpected one is logged with its traceback."""
    if not isinstance(error, SartoError):
        logger.error("evaluation failed", exc_info=error)
    return fault_of(error)


def _about(checkpoint_id: str, report: Report | None) -> str:
    """The primary metric of base and checkpoint in one sentence."""
    words = f"Checkpoint {checkpoint_id} was evaluated"
    if report is None or not report.primary_metric:
        return f"{words}."
    values = [
        (system.name, metric.mean)
        for system in report.systems
        for metric in system.metrics
        if metric.metric == report.primary_metric
    ]
    title = TITLES.get(report.primary_metric, report.primary_metric)
    listed = ", ".join(f"{name} {mean:.3f}" for name, mean in values)
    return f"{words} on {row_count(report.rows)}. {title}: {listed}."
