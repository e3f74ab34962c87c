"""tuningJobs: one short handler per verb."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.requests import named, page, parent, query, read_message, resource_name
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import JOB, LIST, LOCATION, PAGE, Route
from sarto.api.http.services import in_control
from sarto.api.vertex import event_stream, rewards
from sarto.api.vertex.operations import CancelRequest, WaitRequest, answer, read_timeout, waited
from sarto.control.evaluation import job_report
from sarto.control.jobs import events, tuning_jobs
from sarto.control.jobs import rebase as rebase_
from sarto.errors import InvalidArgument
from sarto.names import parse_resource
from sarto.schema.tuning_jobs import JobState, ListTuningJobsResponse, RebaseTunedModelRequest, TuningJob

JOBS = "tuningJobs"


async def create(request: Request) -> Reply:
    job = await read_message(request, TuningJob, "tuning_job")
    request_id = query(request).get("request_id", "")
    return reply(await in_control(request, tuning_jobs.create, parent(request), job, request_id))


async def get(request: Request) -> Reply:
    return reply(await in_control(request, tuning_jobs.get, named(request, JOBS)))


async def list_jobs(request: Request) -> Reply:
    location, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(JOBS, await in_control(request, tuning_jobs.list_jobs, location, *page(request), chosen))


async def cancel(request: Request) -> Reply:
    await read_message(request, CancelRequest)
    await in_control(request, tuning_jobs.cancel, named(request, JOBS))
    return reply({})


async def wait(request: Request) -> Reply:
    """The job once it has ended, or its state after `timeout` ("30s") of the body, at most five minutes."""
    seconds = read_timeout((await read_message(request, WaitRequest)).timeout)

    async def look() -> dict[str, Any]:
        return await in_control(request, tuning_jobs.get, named(request, JOBS))

    return reply(await waited(request, look, lambda job: JobState(job["state"]).is_final, seconds))


async def evaluation(request: Request) -> Reply:
    """The standard report: JSON, or with `alt=html` a self-contained page."""
    name = parse_resource(resource_name(request).removesuffix("/evaluation"), JOBS)
    form = query(request).get("alt", "json")
    if form == "html":
        page = await in_control(request, job_report.page, name)
        return Reply(page, content_type=b"text/html; charset=utf-8")
    if form != "json":
        raise InvalidArgument.field("alt", f'"{form}" is not a form of the report; use json or html.')
    return reply(await in_control(request, job_report.report, name))


async def delete(request: Request) -> Reply:
    await in_control(request, tuning_jobs.delete, named(request, JOBS))
    return reply({})


async def rebase(request: Request) -> Reply:
    """Tune again on another base model; returns a finished operation with the new job."""
    body = await read_message(request, RebaseTunedModelRequest)
    return answer(request, await in_control(request, rebase_.rebase, parent(request), body))


async def list_events(request: Request) -> ASGIApp:
    """The events of a job, oldest first. The token continues after the page, also if there is nothing new yet. A client
    that requests `text/event-stream` gets events as they occur."""
    size, token = page(request)
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidArgument.field("page_token", "The page token is not one of this list.")
    job = parse_resource(resource_name(request).removesuffix("/events"), JOBS)
    if event_stream.is_wanted(request):
        return await event_stream.stream_events(request, job, int(token or 0))
    rows, cursor = await in_control(request, events.list_events, job, int(token or 0), size or events.MOST)
    return reply({"events": rows, "nextPageToken": str(cursor)})


ROUTES = [
    Route(
        "POST", f"{LOCATION}/tuningJobs", create, "aiplatform.tuningJobs.create",
        "Create a tuning job; it starts at once", TuningJob, TuningJob, ("request_id",),
    ),
    Route(
        "GET", f"{LOCATION}/tuningJobs", list_jobs, "aiplatform.tuningJobs.list",
        "List tuning jobs, newest first; location - lists all", response=ListTuningJobsResponse, query=LIST,
    ),
    Route("GET", JOB, get, "aiplatform.tuningJobs.get", "Get a tuning job", response=TuningJob),
    Route("DELETE", JOB, delete, "aiplatform.tuningJobs.delete", "Delete the record of an ended job"),
    Route(
        "POST", f"{JOB}:cancel", cancel, "aiplatform.tuningJobs.cancel",
        "Cancel a tuning job; no change when it has ended", {"type": "object"},
    ),
    Route(
        "POST", f"{JOB}:wait", wait, "aiplatform.tuningJobs.get",
        "Wait until a tuning job has ended, five minutes at most", {"type": "object"}, TuningJob,
    ),
    Route(
        "POST", f"{LOCATION}/tuningJobs:rebaseTunedModel", rebase, "aiplatform.tuningJobs.create",
        "Tune again on another base model, with the recorded data", RebaseTunedModelRequest,
    ),
    Route(
        "GET", f"{JOB}/evaluation", evaluation, "aiplatform.tuningJobs.get",
        "The evaluation report of a job; alt=html gives a page", query=("alt",),
    ),
    Route(
        "GET", f"{JOB}/events", list_events, "aiplatform.tuningJobs.get",
        "List the events of a job, oldest first; as server-sent events for a client that accepts those",
        query=(*PAGE, "with_job"),
    ),
    *rewards.ROUTES,
]  # fmt: skip
