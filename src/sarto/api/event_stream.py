"""The events of a job as they happen (`Accept: text/event-stream`): each with its cursor as `id`, comments between.

A client that comes back with `Last-Event-ID` goes on behind it. The stream ends with an `end` event when the job has
ended, and after some minutes in any case, so that a right that was taken away ends too; a client that comes back to an
ended job with nothing new is answered 204, which tells browsers to stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http import Reply, in_control
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
    rows, cursor, state = await _look(request, job, after)
    if last and not rows and state.is_final:
        return Reply(status=204)
    return Stream(_pieces(request, job, rows, cursor, state))


async def _pieces(
    request: Request, job: ResourceName, rows: list[dict[str, Any]], cursor: int, state: JobState
) -> AsyncGenerator[bytes]:
    began = spoke = time.monotonic()
    while True:
        for row in rows:
            yield _piece(row["kind"], row["sequence"], row)
            spoke = time.monotonic()
        if state.is_final and not rows:
            yield _piece("end", str(cursor), {"state": str(state)})
            return
        if time.monotonic() - began > MOST_SECONDS:
            return
        if time.monotonic() - spoke > HEARTBEAT_SECONDS:
            yield b": still here\n\n"
            spoke = time.monotonic()
        if not rows:
            await asyncio.sleep(LOOK_SECONDS)
        rows, cursor, state = await _look(request, job, cursor)


async def _look(request: Request, job: ResourceName, after: int) -> tuple[list[dict[str, Any]], int, JobState]:
    """The state first: what follows it holds every event of an ended job."""
    found = await in_control(request, tuning_jobs.get, job)
    rows, cursor = await in_control(request, events.list_, job, after)
    return rows, cursor, JobState(found["state"])


def _piece(kind: str, cursor: str, value: dict[str, Any]) -> bytes:
    return f"id: {cursor}\nevent: {kind}\ndata: ".encode() + orjson.dumps(value) + b"\n\n"
