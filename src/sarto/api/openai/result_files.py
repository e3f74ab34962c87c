"""The result file of a fine-tuning job: its loss and accuracy by step as CSV, written when it is read.

Its id is `file-result-` and the number of the job.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.responses import Reply
from sarto.api.http.services import in_thread, principal, services
from sarto.api.openai import stored_files
from sarto.api.openai.place import place_of
from sarto.contract.tuning_run import SERIES
from sarto.control.access import authorization
from sarto.control.aip import times
from sarto.control.experiments import fine_tuning
from sarto.control.experiments.fine_tuning import MadeJob
from sarto.control.runs import progress
from sarto.errors import NotFound
from sarto.names import ResourceName
from sarto.schema.tuning_jobs import JobState, spec_row

PURPOSE = "fine-tune-results"
PREFIX = "file-result-"
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_ID = re.compile(r"file-result-[0-9]{19}")
Measured = dict[int, dict[str, float]]
"""By step: the values of these names."""


def is_result(file_id: str) -> bool:
    return _ID.fullmatch(file_id) is not None


def id_of(job: MadeJob) -> str:
    return f"{PREFIX}{job.id}"


def has_result(job: MadeJob) -> bool:
    return JobState(job.resource["state"]) is JobState.JOB_STATE_SUCCEEDED


def listed(request: Request, after: str, limit: int, ascending: bool) -> list[dict[str, Any]]:
    """The result files of the jobs that the caller may list."""
    control, caller, place = services(request).control, principal(request), place_of(request)
    number = fine_tuning.project_of(control, place).number
    if not authorization.allowed(control.database, caller, "aiplatform.tuningJobs.list", number):
        return []
    jobs = fine_tuning.list_jobs(control, caller, place, after[-19:], limit, has_result, ascending=ascending)
    return [_described(request, job) for job in jobs]


def described(request: Request, file_id: str) -> dict[str, Any]:
    """Raises NotFound."""
    return _described(request, _job(request, file_id))


def _described(request: Request, job: MadeJob) -> dict[str, Any]:
    size, ended = len(_csv(request, job)), times.seconds(job.resource["endTime"])
    return stored_files.described(id_of(job), size, ended, "step_metrics.csv", PURPOSE)


async def content(request: Request, file_id: str) -> ASGIApp:
    """The CSV; in base64 for a client that accepts `application/binary`, since that is how the hosted API delivers it
    to `files.content`, and public scripts decode it."""
    job = await in_thread(request, _job, request, file_id)
    text = await in_thread(request, _csv, request, job)
    if "application/binary" in request.headers.get("accept", ""):
        return Reply(base64.b64encode(text), content_type=b"application/octet-stream")
    return Reply(text, content_type=b"text/csv; charset=UTF-8")


def _job(request: Request, file_id: str) -> MadeJob:
    place = place_of(request)
    name = ResourceName(place.project, place.location, "tuningJobs", file_id.removeprefix(PREFIX))
    job = fine_tuning.get(services(request).control, principal(request), name)
    if not has_result(job):
        raise NotFound(f'No such file: "{file_id}"; the job has no result.')
    return job


def _csv(request: Request, job: MadeJob) -> bytes:
    lines = [",".join(COLUMNS)]
    for step, values in sorted(measured(request, job).items()):
        cells = [values.get(name) for name in COLUMNS[1:]]
        lines.append(",".join([str(step), *("" if cell is None else f"{cell:.5f}" for cell in cells)]))
    return ("\n".join(lines) + "\n").encode()


def measured(request: Request, job: MadeJob) -> Measured:
    """Losses and accuracies of a job by step, under the names of the columns."""
    method = spec_row(job.resource)
    if method is None:
        return {}
    series = SERIES[method.method]
    columns = _columns(series.steps, COLUMNS[1], COLUMNS[2]) | _columns(series.evaluations, COLUMNS[3], COLUMNS[4])
    points = progress.points(services(request).database, job.project.number, job.id, tuple(columns))
    by_step: Measured = {}
    for name, rows in points.items():
        for step, value, time in rows:
            by_step.setdefault(step, {})[columns[name]] = value
            by_step[step]["time"] = max(time, by_step[step].get("time", 0.0))
    return by_step


def _columns(series: dict[str, str], loss: str, accuracy: str) -> dict[str, str]:
    names = {"loss": loss, "accuracy": accuracy}
    return {name: names[field] for name, field in series.items() if field in names}
