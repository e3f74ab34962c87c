"""Copies a run's progress into its job, about twice a second.

Reads whole lines of `progress.jsonl`; writes the job's resource, time series and events, always under the lease.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from sarto.contract.tuning_run import (
    SERIES,
    Assessment,
    CheckpointRecord,
    ChosenParameters,
    DataStats,
    Distribution,
    EvalMetrics,
    Progress,
    StepMetrics,
)
from sarto.control.jobs import events
from sarto.control.jobs.job_row import job_of
from sarto.control.jobs.states import amend
from sarto.control.scheduling import leases
from sarto.control.scheduling.leases import Lease
from sarto.schema.tuning_jobs import SpecRow, TuningJobMetadata, TuningMode
from sarto.storage.database.database import Database
from sarto.storage.database.tables import metric_point

SCORES = ("exact_match", "chrf", "rougeL", "json_valid", "json_field_accuracy")
"""Metrics of the standard report, by checkpoint."""
_FIRST, *_LATER = ((*each.steps, *each.evaluations) for each in SERIES.values())
METRIC_NAMES = tuple(dict.fromkeys([*_FIRST, *(f"/eval_{name}" for name in SCORES), *chain(*_LATER)]))
"""The documented names of the first method, then ours, then those of other methods; their order decides the ids of the
time series."""


@dataclass
class PendingProgress:
    """Progress that is not written yet. `warnings`, `chosen` and `step` stay, since later values refer to them."""

    method: SpecRow
    changes: dict[str, Any] = field(default_factory=dict)
    points: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    """(metric, step) → (value, seconds since 1970)."""
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    """Kind, message and data of events."""
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    assessments: list[Assessment] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    chosen: ChosenParameters | None = None
    step: StepMetrics | None = None
    is_changed: bool = False

    def add(self, line: Progress) -> None:
        self.is_changed = True
        if line.phase is not None:
            self.changes["tuningJobState"] = f"TUNING_JOB_STATE_{line.phase}"
        if line.kind in ("note", "warning"):
            self.events.append((line.kind, line.message, {}))
        if line.kind == "warning":
            self.warnings.append(line.message)
        if line.data is not None:
            self.changes["tuningDataStats"] = {self.method.data_stats_key: data_stats(line.data, self.method)}
            self.events.append(("data", _about_data(line.data), {}))
        if line.parameters is not None:
            self.chosen = line.parameters
            self.events.append(
                ("parameters", _about_parameters(line.parameters), line.parameters.model_dump(mode="json"))
            )
        if line.step is not None:
            self.step = line.step
            self._metrics(SERIES[self.method.method].steps, line.step, line.time)
        if line.evaluation is not None:
            self._metrics(SERIES[self.method.method].evaluations, line.evaluation, line.time)
        if line.checkpoint is not None:
            self.checkpoints.append(line.checkpoint)
        if line.assessment is not None:
            self.assessments.append(line.assessment)
            for name, mean in line.assessment.scores.items():
                self.points[f"/eval_{name}", line.assessment.step] = (mean, line.time)

    def _metrics(self, series: dict[str, str], measured: StepMetrics | EvalMetrics, time: float) -> None:
        for name, field_name in series.items():
            if (value := getattr(measured, field_name)) is not None:
                self.points[name, measured.step] = (float(value), time)

    def metadata(self, known: TuningJobMetadata | None) -> dict[str, Any] | None:
        """The job's present `tuningJobMetadata`."""
        if self.chosen is None:
            return None
        written: dict[str, Any] = {
            **({"datasets": [each.to_json() for each in known.datasets]} if known and known.datasets else {}),
            **({"warnings": self.warnings} if self.warnings else {}),
            "totalStepCount": str(self.chosen.total_steps),
            "effectiveParameters": effective(self.chosen),
        }
        if self.step is not None:
            epochs = self.step.step * self.chosen.epoch_count // max(self.chosen.total_steps, 1)
            written["completedStepCount"] = str(self.step.step)
            reward = self.step.reward
            if reward is None:
                written["completedEpochCount"] = str(epochs)
            written["throughput"] = {
                **({"loss": round(self.step.loss, 4)} if reward is None else {"reward": round(reward, 4)}),
                "tokensPerSecond": round(self.step.tokens_per_second, 1),
                "secondsLeft": round(self.step.seconds_left, 1),
                **({} if self.step.margin is None else {"rewardAccuracy": round(self.step.accuracy, 4)}),
            }
        return written


def write(database: Database, lease: Lease, gathered: PendingProgress) -> None:
    """Write and clear the pending progress. Raises Fenced."""
    if not gathered.is_changed:
        return
    with database.transaction() as connection:
        row = leases.hold(connection, lease)
        now = database.now(connection)
        metadata = gathered.metadata(job_of(row).tuning_job_metadata)
        amend(connection, row, now, {**gathered.changes, **({"tuningJobMetadata": metadata} if metadata else {})})
        _write_points(connection, database.is_sqlite, lease, gathered.points)
        for kind, message, data in gathered.events:
            events.record(connection, lease.project, lease.job, lease.epoch, now, kind, message, data)
    gathered.changes, gathered.points, gathered.events = {}, {}, []
    gathered.is_changed = False


def effective(chosen: ChosenParameters) -> dict[str, Any]:
    """The parameters of the run, with the reason for each value that the user did not set, in the API's spelling."""
    values = chosen.model_dump(mode="json", exclude_none=True, exclude=set() if chosen.rank else {"rank", "alpha"})
    written: dict[str, Any] = {to_camel(name): value for name, value in values.items()}
    if not chosen.rank:
        written["tuningMode"] = str(TuningMode.TUNING_MODE_FULL)
    return {**written, "reasons": {to_camel(name): reason for name, reason in chosen.reasons.items()}}


def data_stats(stats: DataStats, method: SpecRow) -> dict[str, Any]:
    """The API's statistics of a dataset; token counts are those of one pass over the data."""
    if stats.scores is not None:
        return _pair_stats(stats, stats.scores)
    if stats.is_prompts:
        if method.data_stats == "distillation_data_stats":
            return {"trainingDatasetStats": _prompt_stats(stats) | {"userDatasetExamples": stats.sample_contents}}
        examples = {"userDatasetExamples": stats.sample_prompts}
        return _prompt_stats(stats) | {"reinforcementTuningUserDatasetExamples": examples}
    written: dict[str, Any] = {
        "tuningDatasetExampleCount": str(stats.example_count),
        "totalTuningCharacterCount": str(stats.character_count),
        "totalBillableTokenCount": str(stats.token_count),
        "tuningStepCount": str(stats.step_count),
        "userInputTokenDistribution": _distribution(stats.input_tokens),
        "userOutputTokenDistribution": _distribution(stats.output_tokens),
        "userMessagePerExampleDistribution": _distribution(stats.messages),
        "userDatasetExamples": stats.sample_contents,
    }
    if stats.dropped_count:
        written["totalTruncatedExampleCount"] = str(stats.dropped_count)
        written["truncatedExampleIndices"] = [str(index) for index in stats.dropped_indices]
        written["droppedExampleReasons"] = stats.dropped_reasons
    return written


def _pair_stats(stats: DataStats, scores: Distribution) -> dict[str, Any]:
    """Input is counted by row, output and scores by completion. Of the scores 1 and 0 the variance is a quarter."""
    count, variance = stats.example_count, 0.25
    same = dict.fromkeys(("min", "max", "mean", "median", "p5", "p95"), variance)
    written: dict[str, Any] = {
        "tuningDatasetExampleCount": str(count),
        "totalBillableTokenCount": str(stats.token_count),
        "tuningStepCount": str(stats.step_count),
        "userInputTokenDistribution": _plain_distribution(stats.input_tokens),
        "userOutputTokenDistribution": _plain_distribution(stats.output_tokens),
        "scoresDistribution": _plain_distribution(scores),
        "scoreVariancePerExampleDistribution": {
            "sum": variance * count, **same, "buckets": [{"count": str(count), "left": 0.0, "right": 1.0}],
        },
        "userDatasetExamples": stats.sample_pairs,
    }  # fmt: skip
    if stats.dropped_count:
        written["droppedExampleIndices"] = [str(index) for index in stats.dropped_indices]
        written["droppedExampleReasons"] = stats.dropped_reasons
    return written


def _prompt_stats(stats: DataStats) -> dict[str, Any]:
    """Answers come later, so there is no distribution of their tokens; only prompts are billed."""
    written: dict[str, Any] = {
        "tuningDatasetExampleCount": str(stats.example_count),
        "totalTuningCharacterCount": str(stats.character_count),
        "totalBillableTokenCount": str(stats.token_count),
        "tuningStepCount": str(stats.step_count),
        "userInputTokenDistribution": _plain_distribution(stats.input_tokens),
        "userMessagePerExampleDistribution": _plain_distribution(stats.messages),
    }
    if stats.dropped_count:
        written["droppedExampleIndices"] = [str(index) for index in stats.dropped_indices]
        written["droppedExampleReasons"] = stats.dropped_reasons
    return written


def _plain_distribution(of: Distribution) -> dict[str, Any]:
    return {
        "sum": float(of.sum),
        **{name: getattr(of, name) for name in ("min", "max", "mean", "median", "p5", "p95")},
        "buckets": [{"count": str(count), "left": left, "right": right} for count, left, right in of.buckets],
    }


def _distribution(of: Distribution) -> dict[str, Any]:
    return {
        "sum": str(of.sum),
        "billableSum": str(of.sum),
        **{name: getattr(of, name) for name in ("min", "max", "mean", "median", "p5", "p95")},
        "buckets": [{"count": float(count), "left": left, "right": right} for count, left, right in of.buckets],
    }


def _write_points(
    connection: Connection, is_sqlite: bool, lease: Lease, points: dict[tuple[str, int], tuple[float, float]]
) -> None:
    """Write metric points; a step that a later attempt repeats replaces those of the lost one."""
    if not points:
        return
    insert = sqlite.insert(metric_point) if is_sqlite else postgresql.insert(metric_point)
    statement = insert.on_conflict_do_update(
        index_elements=["project", "job", "name", "step"],
        set_={"value": insert.excluded.value, "time": insert.excluded.time},
    )
    connection.execute(
        statement,
        [
            {"project": lease.project, "job": lease.job, "name": name, "step": step, "value": value, "time": time}
            for (name, step), (value, time) in points.items()
        ],
    )


def _about_data(stats: DataStats) -> str:
    dropped = f", {stats.dropped_count} dropped" if stats.dropped_count else ""
    return f"The data was read: {stats.example_count} examples, {stats.token_count} tokens{dropped}."


def _about_parameters(chosen: ChosenParameters) -> str:
    trained = f"rank {chosen.rank}" if chosen.rank else "all weights"
    answers = ""
    if chosen.samples_per_prompt is not None:
        answers = f" x {chosen.samples_per_prompt} answers of up to {chosen.max_output_tokens} tokens"
    return (
        f"Tuning takes {chosen.total_steps} steps: {chosen.epoch_count} epochs, "
        f"batches of {chosen.batch_size}{answers}, learning rate {chosen.learning_rate:g}, {trained}"
        f"{'' if chosen.beta is None else f', beta {chosen.beta:g}'}"
        f"{f', at {chosen.distillation_level} level from {chosen.teacher}' if chosen.teacher else ''}."
    )


def points(database: Database, project: str, job: str, names: tuple[str, ...] = METRIC_NAMES) -> dict[str, list[Any]]:
    """The time series of a job by metric name, each a list of (step, value, time) in the order of steps."""
    query = (
        sa.select(metric_point)
        .where(metric_point.c.project == project, metric_point.c.job == job, metric_point.c.name.in_(names))
        .order_by(metric_point.c.name, metric_point.c.step)
    )
    series: dict[str, list[Any]] = {}
    with database.reading() as connection:
        for row in connection.execute(query):
            series.setdefault(row.name, []).append((row.step, row.value, row.time))
    return series
