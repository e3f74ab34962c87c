"""OpenAI's fine-tuning jobs: the tuning jobs of the same project and location, in another form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.responses import reply
from sarto.api.http.routing import Route
from sarto.api.http.services import in_control, in_thread, principal, services
from sarto.api.openai import create_job, job_events
from sarto.api.openai.errors import ERRORS, in_openai_form, refusal
from sarto.api.openai.job_view import job_id, job_json
from sarto.api.openai.place import ROOTS, place_of
from sarto.api.openai.reading import page_of
from sarto.control.experiments import fine_tuning
from sarto.control.experiments.fine_tuning import MadeJob
from sarto.control.jobs import tuning_jobs
from sarto.control.models import model_bucket
from sarto.errors import FailedPrecondition, InvalidArgument
from sarto.names import ResourceName
from sarto.schema.tuning_jobs import FINAL_STATES

MOST_JOBS, MOST_EVENTS = 1000, 1000
GET, LIST, CANCEL = (f"aiplatform.tuningJobs.{verb}" for verb in ("get", "list", "cancel"))
_METADATA = re.compile(r"metadata\[(.{1,64})\]")


@in_openai_form
async def list_jobs(request: Request) -> ASGIApp:
    page = page_of(request, 20, MOST_JOBS)
    after = job_id(page.after, "after") if page.after else ""
    keep = _filter(page.more)
    jobs = await in_thread(
        request, fine_tuning.list_jobs, services(request).control, principal(request), place_of(request), after,
        page.limit + 1, keep,
    )  # fmt: skip
    return reply(page.cut(await in_thread(request, _written, request, jobs), with_ends=False))


def _filter(query: Mapping[str, str]) -> Callable[[MadeJob], bool]:
    """The filter of `metadata[key]=value` and `metadata=null`. Raises InvalidArgument."""
    wanted: dict[str, str] = {}
    for name, value in query.items():
        match = _METADATA.fullmatch(name)
        if match is not None:
            wanted[match[1]] = value
        elif name != "metadata" or value != "null":
            raise InvalidArgument.field("metadata", "Write metadata[KEY]=VALUE, or metadata=null for jobs without any.")
    if "metadata" in query:
        return lambda job: not job.extras.get("metadata")
    return lambda job: wanted.items() <= job.extras.get("metadata", {}).items()


@in_openai_form
async def create(request: Request) -> ASGIApp:
    made = await create_job.create(request)
    return reply((await in_thread(request, _written, request, [made]))[0])


@in_openai_form
async def get(request: Request) -> ASGIApp:
    return reply((await in_thread(request, _written, request, [await _found(request)]))[0])


@in_openai_form
async def cancel(request: Request) -> ASGIApp:
    """A job that has ended is refused with 400: clients repeat a 409."""
    before = await in_control(request, tuning_jobs.cancel, _name(request))
    if before in FINAL_STATES:
        raise FailedPrecondition(f"The job has ended ({before}) and cannot be cancelled.")
    return await get(request)


@in_openai_form
async def list_events(request: Request) -> ASGIApp:
    page = page_of(request, 20, MOST_EVENTS)
    rows = await in_thread(request, job_events.listed_events, request, await _found(request))
    return reply(page.of(rows, with_ends=False))


@in_openai_form
async def list_checkpoints(request: Request) -> ASGIApp:
    page = page_of(request, 10, MOST_EVENTS)
    return reply(page.of(await in_thread(request, job_events.listed_checkpoints, request, await _found(request))))


def _name(request: Request) -> ResourceName:
    place = place_of(request)
    number = job_id(request.path_params["job"], "fine_tuning_job_id")
    return ResourceName(place.project, place.location, "tuningJobs", number)


async def _found(request: Request) -> MadeJob:
    return await in_control(request, fine_tuning.get, _name(request))


def _written(request: Request, jobs: list[MadeJob]) -> list[dict[str, Any]]:
    if not jobs:
        return []
    bucket = model_bucket.find_file_bucket(services(request).control, jobs[0].project.number)
    return [job_json(job, bucket) for job in jobs]


JOBS = "/fine_tuning/jobs"
JOB = f"{JOBS}/{{job}}"
ROUTES = [
    Route(method, f"{root}{path}", handler, permission, summary, body, query=None, errors=ERRORS, refusal=refusal)
    for root in ROOTS
    for method, path, handler, permission, summary, body in (
        ("POST", JOBS, create, create_job.CREATE, "Create a fine-tuning job, in OpenAI's form", {"type": "object"}),
        ("GET", JOBS, list_jobs, LIST, "List tuning jobs, in OpenAI's form", None),
        ("GET", JOB, get, GET, "A tuning job, in OpenAI's form", None),
        ("POST", f"{JOB}/cancel", cancel, CANCEL, "Cancel a tuning job, in OpenAI's form", None),
        ("GET", f"{JOB}/events", list_events, GET, "Events of a tuning job, in OpenAI's form", None),
        ("GET", f"{JOB}/checkpoints", list_checkpoints, GET, "Checkpoints of a tuning job, in OpenAI's form", None),
    )
]
