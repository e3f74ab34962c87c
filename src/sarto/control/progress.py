"""What a run says while it works, written into its job about twice a second.

Reads whole lines of `progress.jsonl`; writes the job's resource, time series and events, always under the lease.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from sarto.control import events, leases
from sarto.control.leases import Lease
from sarto.control.tuning_jobs import amend
from sarto.schema.runs import (
    Assessment,
    CheckpointRecord,
    ChosenParameters,
    DataStats,
    Distribution,
    EvalMetrics,
    Progress,
    StepMetrics,
)
from sarto.storage.database import Database
from sarto.storage.growing import GrowingFile
from sarto.storage.tables import metric_point

PROGRESS_FILE = "progress.jsonl"
LOSS, ACCURACY, PREDICTIONS = "total_loss", "fraction_of_correct_next_step_preds", "num_predictions"
SCORES = ("exact_match", "chrf", "rougeL", "json_valid", "json_field_accuracy")
"""Metrics of the standard report, by checkpoint."""
METRIC_NAMES = (
    *(f"/{part}_{name}" for part in ("train", "eval") for name in (LOSS, ACCURACY, PREDICTIONS)),
    *(f"/eval_{name}" for name in SCORES),
)
"""The documented names of supervised tuning, then ours; their order gives the time series their ids."""


class ProgressFile:
    def __init__(self, run_folder: Path) -> None:
        self._file = GrowingFile(run_folder / PROGRESS_FILE)

    def read(self) -> list[Progress]:
        """What was said since the last call."""
        return [Progress.model_validate_json(line) for line in self._file.lines()]


@dataclass
class Gathered:
    """What was said and is not written yet. `chosen` and `step` stay, since later values refer to them."""

    changes: dict[str, Any] = field(default_factory=dict)
    points: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    """(metric, step) → (value, seconds since 1970)."""
    told: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    """Kind, message and data of events."""
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    assessments: list[Assessment] = field(default_factory=list)
    chosen: ChosenParameters | None = None
    step: StepMetrics | None = None
    is_changed: bool = False

    def add(self, said: Progress) -> None:
        self.is_changed = True
        if said.phase is not None:
            self.changes["tuningJobState"] = f"TUNING_JOB_STATE_{said.phase}"
        if said.kind == "note":
            self.told.append(("note", said.message, {}))
        if said.data is not None:
            self.changes["tuningDataStats"] = {"supervisedTuningDataStats": data_stats(said.data)}
            self.told.append(("data", _about_data(said.data), {}))
        if said.parameters is not None:
            self.chosen = said.parameters
            self.told.append(
                ("parameters", _about_parameters(said.parameters), said.parameters.model_dump(mode="json"))
            )
        if said.step is not None:
            self.step = said.step
            self._metrics("train", said.step, said.time)
        if said.evaluation is not None:
            self._metrics("eval", said.evaluation, said.time)
        if said.checkpoint is not None:
            self.checkpoints.append(said.checkpoint)
        if said.assessment is not None:
            self.assessments.append(said.assessment)
            for name, mean in said.assessment.scores.items():
                self.points[f"/eval_{name}", said.assessment.step] = (mean, said.time)

    def _metrics(self, part: str, measured: StepMetrics | EvalMetrics, time: float) -> None:
        for name, value in (
            (LOSS, measured.loss),
            (ACCURACY, measured.accuracy),
            (PREDICTIONS, float(measured.supervised_tokens)),
        ):
            self.points[f"/{part}_{name}", measured.step] = (value, time)

    def metadata(self, resource: dict[str, Any]) -> dict[str, Any] | None:
        """The job's `tuningJobMetadata` as it stands."""
        if self.chosen is None:
            return None
        written: dict[str, Any] = {
            "totalStepCount": str(self.chosen.total_steps),
            "effectiveParameters": effective(self.chosen),
        }
        if self.step is not None:
            epochs = self.step.step * self.chosen.epoch_count // max(self.chosen.total_steps, 1)
            written["completedStepCount"] = str(self.step.step)
            written["completedEpochCount"] = str(epochs)
            written["throughput"] = {
                "loss": round(self.step.loss, 4),
                "tokensPerSecond": round(self.step.tokens_per_second, 1),
                "secondsLeft": round(self.step.seconds_left, 1),
            }
        return written


def write(database: Database, lease: Lease, gathered: Gathered) -> None:
    """Write and forget what was gathered. Raises Fenced."""
    if not gathered.is_changed:
        return
    with database.transaction() as connection:
        row = leases.hold(connection, lease)
        now = database.now(connection)
        metadata = gathered.metadata(orjson.loads(row.resource))
        amend(connection, row, now, {**gathered.changes, **({"tuningJobMetadata": metadata} if metadata else {})})
        _write_points(connection, database.is_sqlite, lease, gathered.points)
        for kind, message, data in gathered.told:
            events.record(connection, lease.project, lease.job, lease.epoch, now, kind, message, data)
    gathered.changes, gathered.points, gathered.told = {}, {}, []
    gathered.is_changed = False


def effective(chosen: ChosenParameters) -> dict[str, Any]:
    """What the run really uses, and why where its user did not say, in the API's spelling."""
    written: dict[str, Any] = {to_camel(name): value for name, value in chosen.model_dump(mode="json").items()}
    return {**written, "reasons": {to_camel(name): reason for name, reason in chosen.reasons.items()}}


def data_stats(stats: DataStats) -> dict[str, Any]:
    """The API's `supervisedTuningDataStats`; token counts are those of one pass over the data."""
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
    """A step that a later attempt repeats replaces what the lost one wrote."""
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
    return (
        f"Tuning takes {chosen.total_steps} steps: {chosen.epoch_count} epochs, batches of {chosen.batch_size}, "
        f"learning rate {chosen.learning_rate:g}, rank {chosen.rank}."
    )


def points(database: Database, project: str, job: str, names: tuple[str, ...] = METRIC_NAMES) -> dict[str, list[Any]]:
    """The time series of a job by metric name, each a list of (step, value, time) in the order of steps."""
    query = (
        sa.select(metric_point)
        .where(metric_point.c.project == project, metric_point.c.job == job, metric_point.c.name.in_(names))
        .order_by(metric_point.c.name, metric_point.c.step)
    )
    found: dict[str, list[Any]] = {}
    with database.reading() as connection:
        for row in connection.execute(query):
            found.setdefault(row.name, []).append((row.step, row.value, row.time))
    return found
