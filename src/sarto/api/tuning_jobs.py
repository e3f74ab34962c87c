"""tuningJobs: one short handler per verb."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api import event_stream
from sarto.api.http import (
    Reply,
    in_control,
    listing,
    named,
    page,
    parent,
    query,
    read_message,
    reply,
    resource_name,
    until_gone,
)
from sarto.api.operations import CancelRequest, WaitRequest, answer, read_timeout
from sarto.control import evaluations, events, tuning_jobs
from sarto.control import rebase as rebase_
from sarto.errors import InvalidArgument
from sarto.names import parse_resource
from sarto.schema.tuning_jobs import JobState, RebaseTunedModelRequest, TuningJob

JOBS = "tuningJobs"
MOST_WAIT_SECONDS = 300.0
LOOK_SECONDS = 0.3


async def create(request: Request) -> Reply:
    job = await read_message(request, TuningJob, "tuning_job")
    request_id = query(request).get("request_id", "")
    return reply(await in_control(request, tuning_jobs.create, parent(request), job, request_id))


async def get(request: Request) -> Reply:
    return reply(await in_control(request, tuning_jobs.get, named(request, JOBS)))


async def list_(request: Request) -> Reply:
    place, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(JOBS, await in_control(request, tuning_jobs.list_, place, *page(request), chosen))


async def cancel(request: Request) -> Reply:
    await read_message(request, CancelRequest)
    await in_control(request, tuning_jobs.cancel, named(request, JOBS))
    return reply({})


async def wait(request: Request) -> Reply:
    """The job once it has ended, or as it is after `timeout` ("30s") of the body, at most five minutes."""
    seconds = read_timeout((await read_message(request, WaitRequest)).timeout) or MOST_WAIT_SECONDS
    return reply(await until_gone(request, _ended(request, time.monotonic() + min(seconds, MOST_WAIT_SECONDS))))


async def _ended(request: Request, until: float) -> dict[str, Any]:
    """Looks at the job now and again; a thread is taken for each look only."""
    while True:
        job: dict[str, Any] = await in_control(request, tuning_jobs.get, named(request, JOBS))
        left = until - time.monotonic()
        if JobState(job["state"]).is_final or left <= 0:
            return job
        await asyncio.sleep(min(LOOK_SECONDS, left))


async def evaluation(request: Request) -> Reply:
    """The standard report: JSON, or with `alt=html` a page that needs nothing else."""
    name = parse_resource(resource_name(request).removesuffix("/evaluation"), JOBS)
    form = query(request).get("alt", "json")
    if form == "html":
        page = await in_control(request, evaluations.page, name)
        return Reply(page, content_type=b"text/html; charset=utf-8")
    if form != "json":
        raise InvalidArgument.field("alt", f'"{form}" is not a form of the report; use json or html')
    return reply(await in_control(request, evaluations.report, name))


async def delete(request: Request) -> Reply:
    await in_control(request, tuning_jobs.delete, named(request, JOBS))
    return reply({})


async def rebase(request: Request) -> Reply:
    """Tunes once more, on another base model; answers an operation that is done and holds the new job."""
    asked = await read_message(request, RebaseTunedModelRequest)
    return answer(request, await in_control(request, rebase_.rebase, parent(request), asked))


async def list_events(request: Request) -> ASGIApp:
    """What happened to a job, oldest first. The token goes on where the page ended, also when nothing new is there.
    A client that asks for `text/event-stream` is told what happens as it does."""
    size, token = page(request)
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidArgument.field("page_token", "The page token is not one this list gave.")
    job = parse_resource(resource_name(request).removesuffix("/events"), JOBS)
    if event_stream.is_wanted(request):
        return await event_stream.stream_events(request, job, int(token or 0))
    rows, cursor = await in_control(request, events.list_, job, int(token or 0), size or events.MOST)
    return reply({"events": rows, "nextPageToken": str(cursor)})
