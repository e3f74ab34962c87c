"""Events and checkpoints of a tuning job in OpenAI's form, newest first. A step of training is an event of its own."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sarto.api.http.services import principal, services
from sarto.api.openai import result_files
from sarto.api.openai.job_view import PREFIX, fine_tuned_model, model_name
from sarto.api.openai.result_files import COLUMNS
from sarto.control.aip import times
from sarto.control.experiments.fine_tuning import MadeJob
from sarto.control.jobs import events
from sarto.names import parse_resource

LEVELS = {"failed": "error", "warning": "warn", "lost": "warn", "waiting": "warn", "paused": "warn"}
NAMES = dict(zip(COLUMNS[1:], ("train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy"),
                 strict=True))  # fmt: skip
FULL = {"valid_loss": "full_valid_loss", "valid_mean_token_accuracy": "full_valid_mean_token_accuracy"}
"""Validation reads the whole file, so both names have one value."""
Row = dict[str, Any]


def listed_events(request: Request, job: MadeJob) -> list[Row]:
    control, caller = services(request).control, principal(request)
    name = parse_resource(job.resource["name"], "tuningJobs")
    rows: list[tuple[float, int, Row]] = []
    cursor = 0
    while True:
        records, cursor = events.list_events(control, caller, name, cursor)
        for record in records:
            for index, message in enumerate(_messages(job, record)):
                level, time = LEVELS.get(record["kind"], "info"), times.seconds(record["time"])
                identifier = f"ftevent-{record['sequence']}-{index}" if index else f"ftevent-{record['sequence']}"
                row = _event(identifier, time, level, "message", message, {})
                rows.append((time, int(record["sequence"]) * 10 + index, row))
        if len(records) < events.MOST:
            break
    rows += [(time, 0, row) for time, row in _steps(request, job)]
    return [row for _, _, row in sorted(rows, key=lambda one: one[:2], reverse=True)]


def _messages(job: MadeJob, record: Row) -> list[str]:
    """The messages of one event of ours. Those that clients look for have the hosted API's words."""
    kind, message = record["kind"], record["message"]
    if kind == "created":
        wandb = [f"Nothing is sent to {one['type']}: this service calls no other." for one in _integrations(job)]
        return [f"Created fine-tuning job: {PREFIX}{job.id}", *wandb]
    if kind == "started":
        return ["Fine-tuning job started", message]
    if kind == "data":
        return ["Files validated, moving job to queued state", message]
    if kind == "checkpoint":
        return [f"Checkpoint created at step {record['data'].get('step', '')}".rstrip(), message]
    if kind == "succeeded":
        created = f"New fine-tuned model created: {fine_tuned_model(job)}"
        return [created, message, "The job has successfully completed"]
    return [message]


def _integrations(job: MadeJob) -> list[Row]:
    integrations: list[Row] = job.extras.get("integrations", [])
    return integrations


def _steps(request: Request, job: MadeJob) -> list[tuple[float, Row]]:
    total = int(job.resource.get("tuningJobMetadata", {}).get("totalStepCount", "0"))
    rows = []
    for step, values in result_files.measured(request, job).items():
        if "train_loss" not in values:
            continue
        message = f"Step {step}/{total}: training loss={values['train_loss']:.2f}"
        if "valid_loss" in values:
            message += f", validation loss={values['valid_loss']:.2f}, full validation loss={values['valid_loss']:.2f}"
        data = {"step": step, "total_steps": total, **_metrics(values)}
        row = _event(f"ftevent-step-{job.id}-{step}", values["time"], "info", "metrics", message, data)
        rows.append((values["time"], row))
    return rows


def _metrics(values: dict[str, float]) -> Row:
    metrics = {theirs: values[ours] for ours, theirs in NAMES.items() if ours in values}
    return metrics | {full: metrics[name] for name, full in FULL.items() if name in metrics}


def _event(identifier: str, time: float, level: str, kind: str, message: str, data: Row) -> Row:
    return {
        "id": identifier,
        "object": "fine_tuning.job.event",
        "created_at": int(time),
        "level": level,
        "message": message,
        "type": kind,
        "data": data,
    }


def listed_checkpoints(request: Request, job: MadeJob) -> list[Row]:
    by_step = result_files.measured(request, job)
    rows = []
    for one in job.resource.get("tunedModel", {}).get("checkpoints", ()):
        step = int(one.get("step", "0"))
        endpoint_id = one["endpoint"].rpartition("/")[2]
        rows.append(
            {
                "id": f"ftckpt-{endpoint_id}",
                "object": "fine_tuning.job.checkpoint",
                "created_at": int(endpoint_id[:16]) // 1_000_000,
                "fine_tuned_model_checkpoint": model_name(job, one["endpoint"], step),
                "fine_tuning_job_id": f"{PREFIX}{job.id}",
                "step_number": step,
                "metrics": {"step": step, **_metrics(by_step.get(step, {}))},
            }
        )
    return rows[::-1]
