"""The event stream of a job (`Accept: text/event-stream`). Each event has its cursor as `id`; comments keep it alive.

A client that reconnects with `Last-Event-ID` gets the events after it. The stream ends with an `end` event when the job
has ended. It also ends after some minutes, so that a revoked right takes effect. A client that reconnects to an ended
job without new events gets 204, which stops browsers from reconnecting. With `withJob=true` the job is sent too, as
`job` events without a cursor, after each change. So a client follows losses without polling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.requests import flag
from sarto.api.http.responses import Reply
from sarto.api.http.services import in_control, principal, services
from sarto.api.http.streams import Stream
from sarto.control.jobs import events, tuning_jobs
from sarto.errors import InvalidArgument
from sarto.names import ResourceName
from sarto.schema.tuning_jobs import JobState

LOOK_SECONDS = 0.3
HEARTBEAT_SECONDS = 10.0
MOST_SECONDS = 600.0


def is_wanted(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


async def stream_events(request: Request, job: ResourceName, after: int) -> ASGIApp:
    """Stream the events. Raises NotFound, PermissionDenied, InvalidArgument before the first byte."""
    last = request.headers.get("last-event-id", "")
    if last:
        if not (last.isascii() and last.isdigit() and len(last) < 19):
            raise InvalidArgument(f'Last-Event-ID "{last[:40]}" is not an id of this stream.')
        after = int(last)
    rows, cursor, resource = await _look(request, job, after)
    if last and not rows and JobState(resource["state"]).is_final:
        return Reply(status=204)
    stack = ExitStack()
    stack.enter_context(services(request).long_polls.place(principal(request).member))
    return Stream(_pieces(request, job, rows, cursor, resource), on_end=stack.close)


async def _pieces(
    request: Request, job: ResourceName, rows: list[dict[str, Any]], cursor: int, resource: dict[str, Any]
) -> AsyncGenerator[bytes]:
    began = spoke = time.monotonic()
    with_job, shown = flag(request, "with_job"), ""
    while True:
        for row in rows:
            yield _piece(row["kind"], row["sequence"], row)
            spoke = time.monotonic()
        if with_job and resource["updateTime"] != shown:
            yield _piece("job", "", resource)
            spoke, shown = time.monotonic(), resource["updateTime"]
        if JobState(resource["state"]).is_final and not rows:
            yield _piece("end", str(cursor), {"state": resource["state"]})
            return
        if time.monotonic() - began > MOST_SECONDS:
            return
        if time.monotonic() - spoke > HEARTBEAT_SECONDS:
            yield b": still here\n\n"
            spoke = time.monotonic()
        if not rows:
            await asyncio.sleep(services(request).long_polls.seconds(LOOK_SECONDS))
        rows, cursor, resource = await _look(request, job, cursor)


async def _look(request: Request, job: ResourceName, after: int) -> tuple[list[dict[str, Any]], int, dict[str, Any]]:
    """The job is read first, so that the events after it are complete for an ended job."""
    resource = await in_control(request, tuning_jobs.get, job)
    rows, cursor = await in_control(request, events.list_events, job, after)
    return rows, cursor, resource


def _piece(kind: str, cursor: str, value: dict[str, Any]) -> bytes:
    head = f"id: {cursor}\n" if cursor else ""
    return f"{head}event: {kind}\ndata: ".encode() + orjson.dumps(value) + b"\n\n"
