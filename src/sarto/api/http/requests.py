"""A request's body, query and names, read within limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.types import Receive

from sarto.api.http.bodies import SHORT_BYTES, is_short, read_value
from sarto.api.http.routing import Route
from sarto.api.http.services import T, principal, services
from sarto.control.access import authorization
from sarto.errors import Cancelled, FieldViolation, InvalidArgument, PayloadTooLarge
from sarto.names import LocationName, ResourceName, check_location, check_project, parse_resource
from sarto.schema.wire import Message, to_snake

STANDARD_PARAMETERS = frozenset(
    ["alt", "fields", "key", "pretty_print", "quota_user", "user_ip", "callback", "upload_protocol", "upload_type"]
)
"""Google's parameters of every method; they are ignored, since responses are always plain JSON. So are parameters that
begin with `$`."""


M = TypeVar("M", bound=Message)


async def read_body(request: Request, limit: int | None = None) -> bytes:
    """The whole body, read after the caller's right was checked. Raises PermissionDenied before a byte of it is read,
    and PayloadTooLarge with the limit before more than that is in memory."""
    await _ask_first(request)
    limit = min(limit or request.scope["sarto.route"].most_body_bytes, services(request).max_body_bytes)
    stated = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    size = int(stated) if stated.isdigit() and len(stated) < 19 else 0
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            _hold(request, size, len(chunk))
            chunks.append(chunk)
    if size > limit:
        raise PayloadTooLarge(f"The request body is too large: the limit is {limit} bytes.")
    return b"".join(chunks)


async def _ask_first(request: Request) -> None:
    """Refuse a body from a caller without the route's permission on anything in the project of the path or of its
    API key, and without one, anywhere. Control checks it on the exact resource, and routes of buckets have done so
    before."""
    route: Route = request.scope["sarto.route"]
    if not route.asks_first or "{bucket}" in route.path:
        return
    values = request.path_params
    project = values.get("project", "") or principal(request).key_project
    if project == "-":  # that of the account
        project = values.get("account", "").partition("@")[2].partition(".")[0]
    ask = partial(
        authorization.require_within, services(request).database, principal(request), route.permission, project
    )
    await asyncio.wrap_future(services(request).threads.read(partial(copy_context().run, ask)))


def _hold(request: Request, size: int, more: int) -> None:
    """Count a long body against its caller's share until the response is complete."""
    if size > SHORT_BYTES:
        services(request).bodies.take(principal(request).member, more)
        request.scope["sarto.held"].append(more)


async def read_json(request: Request) -> Any:
    """The body as a JSON value; an empty body is an empty object. Raises InvalidArgument with line and column."""
    return await _read(request, lambda value: value)


async def read_message(request: Request, kind: type[M], root: str = "") -> M:
    """The body as a message. Raises InvalidArgument with the violations, whose paths begin with `root`."""
    return await _read(request, lambda value: kind.read(value, root))


async def _read(request: Request, form: Callable[[Any], T]) -> T:
    """Parse a body; a long one outside the event loop."""
    body, content_type = await read_body(request), request.headers.get("content-type", "")
    if is_short(body):
        return form(read_value(body, content_type))
    return await beside(request, lambda: form(read_value(body, content_type)))


async def beside(request: Request, work: Callable[[], T]) -> T:
    """Compute outside the event loop, in a thread for computations. The project of the path takes turns with others;
    without a project the caller does."""
    caller = request.scope.get("sarto.principal")
    project = request.path_params.get("project") or (caller.member if caller is not None else "")
    return await services(request).threads.compute(project, work)


def query(request: Request) -> Mapping[str, str]:
    """Query parameters by snake_case name, without Google's standard ones."""
    parameters: Mapping[str, str] = request.scope["sarto.query"]
    return parameters


def page(request: Request) -> tuple[int, str]:
    """`pageSize` (0 by default) and `pageToken`. Raises InvalidArgument for an order other than ours."""
    values = query(request)
    if values.get("order_by", "").replace("createTime", "create_time").strip() not in ("", "create_time desc"):
        raise InvalidArgument.field("order_by", 'Lists are newest first: leave it out, or write "create_time desc".')
    text = values.get("page_size") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidArgument.field("page_size", f'"{text}" is not a number from 0 to 999999999.')
    return int(text), values.get("page_token", "")


def flag(request: Request, name: str) -> bool:
    """A boolean query parameter."""
    text = query(request).get(name, "false").lower()
    if text not in ("true", "false", ""):
        raise InvalidArgument.field(name, f'"{text}" is neither true nor false.')
    return text == "true"


def resource_name(request: Request) -> str:
    """The resource of the path, without version and verb: `projects/p/locations/l/tuningJobs/7`."""
    route: Route = request.scope["sarto.route"]
    return route.resource.format_map(request.path_params)


def named(request: Request, collection: str, *, versioned: bool = False) -> ResourceName:
    """The resource of the path, parsed. Raises InvalidArgument for an invalid id."""
    return parse_resource(resource_name(request), collection, versioned=versioned)


def parent(request: Request, *, wildcard: bool = False) -> LocationName:
    """The location of a collection's path; lists may have `-` for all locations."""
    values = request.path_params
    return LocationName(check_project(values["project"]), check_location(values["location"], wildcard=wildcard))


async def until_gone(request: Request, work: Any) -> Any:
    """The result of `work`, which is cancelled when the client disconnects. Raises Cancelled then."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("The client closed the connection.")
        return task.result()
    finally:
        for part in (task, watcher):
            part.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


def decode_query(raw: bytes, route: Route) -> dict[str, str]:
    """Query parameters as text. Raises InvalidArgument with every unknown parameter."""
    if not raw:
        return {}
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)
    if route.query is None:
        return dict(pairs)
    values = {to_snake(name): value for name, value in pairs if not name.startswith("$")}
    values = {name: value for name, value in values.items() if name not in STANDARD_PARAMETERS or name in route.query}
    unknown = [name for name in values if name not in route.query]
    if unknown:
        raise InvalidArgument.of(
            FieldViolation(name, f'Unknown name "{name}": Cannot bind query parameter.') for name in unknown
        )
    return values
