"""A tuning job in the form of OpenAI's fine-tuning job. Pure functions."""

from __future__ import annotations

from typing import Any

from sarto.api.openai import result_files, stored_files
from sarto.api.openai.job_request import AUTO, DEFAULT_METHOD
from sarto.control.aip import times
from sarto.control.experiments.fine_tuning import MadeJob
from sarto.control.models.tuned_names import name_of
from sarto.errors import InvalidArgument
from sarto.schema.tuning_jobs import FINAL_STATES, JobState, dataset_of, spec_of, spec_row

PREFIX = "ftjob-"
STATUSES = {
    JobState.JOB_STATE_PAUSED: "paused",
    JobState.JOB_STATE_SUCCEEDED: "succeeded",
    JobState.JOB_STATE_FAILED: "failed",
    JobState.JOB_STATE_EXPIRED: "failed",
    JobState.JOB_STATE_CANCELLED: "cancelled",
}
BY_PHASE = {"PROCESSING_DATASET": "validating_files", "WAITING_FOR_QUOTA": "queued", "WAITING_FOR_CAPACITY": "queued"}
TOO_FEW = ("has no rows", "is empty", "only blank lines")
Job = dict[str, Any]


def job_json(job: MadeJob, bucket: str) -> Job:
    """`bucket` is the project's bucket of files."""
    resource, extras = job.resource, job.extras
    spec = spec_of(resource)
    method, hyperparameters = _method(job)
    state = JobState(resource["state"])
    stats: dict[str, Any] = next(iter(resource.get("tuningDataStats", {}).values()), {})
    has_ended = state in FINAL_STATES
    return {
        "id": f"{PREFIX}{job.id}",
        "object": "fine_tuning.job",
        "created_at": int(times.seconds(resource["createTime"])),
        "finished_at": int(times.seconds(resource["endTime"])) if has_ended else None,
        "model": extras.get("model") or job.base_model,
        "fine_tuned_model": fine_tuned_model(job),
        "organization_id": job.project.id,
        "status": status(resource),
        "training_file": stored_files.id_of_uri(dataset_of(spec), bucket),
        "validation_file": stored_files.id_of_uri(spec.get("validationDatasetUri", ""), bucket) or None,
        "result_files": [result_files.id_of(job)] if result_files.has_result(job) else [],
        "trained_tokens": _trained_tokens(resource, stats) if result_files.has_result(job) else None,
        "seed": extras.get("seed", 0),
        "estimated_finish": None if has_ended else _estimated_finish(resource),
        "integrations": extras.get("integrations", []),
        "metadata": extras.get("metadata"),
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        "hyperparameters": hyperparameters,
        "error": _error(resource, spec),
        "user_provided_suffix": extras.get("suffix"),
    }


def status(resource: dict[str, Any]) -> str:
    state = JobState(resource["state"])
    if state in STATUSES:
        return STATUSES[state]
    phase = str(resource.get("tuningJobState", "")).removeprefix("TUNING_JOB_STATE_")
    if state is JobState.JOB_STATE_PENDING:
        return BY_PHASE.get(phase, "validating_files")
    return BY_PHASE.get(phase, "running")


def fine_tuned_model(job: MadeJob) -> str | None:
    tuned = job.resource.get("tunedModel", {})
    if job.resource["state"] != str(JobState.JOB_STATE_SUCCEEDED) or "endpoint" not in tuned:
        return None
    return model_name(job, tuned["endpoint"]) or None


def model_name(job: MadeJob, endpoint: str, step: int | None = None) -> str:
    """The name of an endpoint of the job's."""
    endpoint_id = endpoint.rpartition("/")[2]
    return name_of(job.base_model, job.project.id, job.extras.get("suffix", ""), endpoint_id, step)


def job_id(text: str, parameter: str) -> str:
    """The number of a job, from `ftjob-NUMBER`. Raises InvalidArgument on the parameter."""
    number = text.removeprefix(PREFIX)
    if not (number.isascii() and number.isdigit() and len(number) == 19):
        raise InvalidArgument.field(parameter, f'"{text[:100]}" is not the id of a job, such as {PREFIX}….')
    return number


def _method(job: MadeJob) -> tuple[str, dict[str, Any]]:
    """The method's name and its hyperparameters, each "auto" until the service has chosen it."""
    row = spec_row(job.resource)
    method = (row.openai_name or row.method) if row else DEFAULT_METHOD
    given = spec_of(job.resource).get("hyperParameters", {})
    chosen = job.resource.get("tuningJobMetadata", {}).get("effectiveParameters", {})
    values: dict[str, Any] = {
        "n_epochs": _number(chosen.get("epochCount", given.get("epochCount"))),
        "batch_size": _number(chosen.get("batchSize", job.extras.get("batch_size"))),
        "learning_rate_multiplier": given.get("learningRateMultiplier", AUTO),
    }
    if row is not None and row.default_beta is not None:
        values["beta"] = chosen.get("beta", given.get("beta", AUTO))
    return method, values


def _number(value: Any) -> int | str:
    return AUTO if value is None else int(value)


def _trained_tokens(resource: dict[str, Any], stats: dict[str, Any]) -> int:
    """Tokens of one pass over the data times the passes."""
    passes = int(resource.get("tuningJobMetadata", {}).get("completedEpochCount", "1"))
    return int(stats.get("totalBillableTokenCount", "0")) * passes


def _estimated_finish(resource: dict[str, Any]) -> int | None:
    left = resource.get("tuningJobMetadata", {}).get("throughput", {}).get("secondsLeft")
    return None if left is None else int(times.seconds(resource["updateTime"]) + left)


def _error(resource: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """An object of nulls for a job without an error, as the hosted API has it."""
    error = resource.get("error")
    if error is None or resource["state"] != str(JobState.JOB_STATE_FAILED):
        return {"code": None, "message": None, "param": None}
    message = str(error.get("message", ""))
    if error.get("code") != InvalidArgument.code:
        return {"code": "server_error" if error.get("code") == 13 else "job_failed", "message": message, "param": None}
    name = spec.get("validationDatasetUri", "").rpartition("/")[2]
    is_validation = bool(name) and message.startswith(name) and not dataset_of(spec).endswith(f"/{name}")
    code = "invalid_n_examples" if any(words in message for words in TOO_FEW) else "invalid_file_format"
    return {"code": code, "message": message, "param": "validation_file" if is_validation else "training_file"}
