"""The events of a job as they happen (`Accept: text/event-stream`): each with its cursor as `id`, comments between.

A client that comes back with `Last-Event-ID` goes on behind it. The stream ends with an `end` event when the job has
ended, and after some minutes in any case, so that a right that was taken away ends too; a client that comes back to an
ended job with nothing new is answered 204, which tells browsers to stop. With `withJob=true` the job as it stands is
sent too, as `job` events without a cursor, whenever it has changed: so a client watches losses without asking.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http import Reply, flag, in_control
from sarto.api.streams import Stream
from sarto.control import events, tuning_jobs
from sarto.errors import InvalidArgument
from sarto.names import ResourceName
from sarto.schema.tuning_jobs import JobState

LOOK_SECONDS = 0.3
HEARTBEAT_SECONDS = 10.0
MOST_SECONDS = 600.0


def is_wanted(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


async def stream_events(request: Request, job: ResourceName, after: int) -> ASGIApp:
    """Raises NotFound, PermissionDenied, InvalidArgument before anything is sent."""
    last = request.headers.get("last-event-id", "")
    if last:
        if not (last.isascii() and last.isdigit() and len(last) < 19):
            raise InvalidArgument(f'Last-Event-ID "{last[:40]}" is not one this stream gave.')
        after = int(last)
    rows, cursor, found = await _look(request, job, after)
    if last and not rows and JobState(found["state"]).is_final:
        return Reply(status=204)
    return Stream(_pieces(request, job, rows, cursor, found))


async def _pieces(
    request: Request, job: ResourceName, rows: list[dict[str, Any]], cursor: int, found: dict[str, Any]
) -> AsyncGenerator[bytes]:
    began = spoke = time.monotonic()
    with_job, shown = flag(request, "with_job"), ""
    while True:
        for row in rows:
            yield _piece(row["kind"], row["sequence"], row)
            spoke = time.monotonic()
        if with_job and found["updateTime"] != shown:
            yield _piece("job", "", found)
            spoke, shown = time.monotonic(), found["updateTime"]
        if JobState(found["state"]).is_final and not rows:
            yield _piece("end", str(cursor), {"state": found["state"]})
            return
        if time.monotonic() - began > MOST_SECONDS:
            return
        if time.monotonic() - spoke > HEARTBEAT_SECONDS:
            yield b": still here\n\n"
            spoke = time.monotonic()
        if not rows:
            await asyncio.sleep(LOOK_SECONDS)
        rows, cursor, found = await _look(request, job, cursor)


async def _look(request: Request, job: ResourceName, after: int) -> tuple[list[dict[str, Any]], int, dict[str, Any]]:
    """The job first: what follows it holds every event of an ended job."""
    found = await in_control(request, tuning_jobs.get, job)
    rows, cursor = await in_control(request, events.list_, job, after)
    return rows, cursor, found


def _piece(kind: str, cursor: str, value: dict[str, Any]) -> bytes:
    head = f"id: {cursor}\n" if cursor else ""
    return f"{head}event: {kind}\ndata: ".encode() + orjson.dumps(value) + b"\n\n"
