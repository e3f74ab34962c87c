"""Long-running operations, of a location or of one resource in it. Also under `/ui/`, where the REST client polls."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request

from sarto.api.http.requests import page, query, read_message, resource_name, until_gone
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import ENDPOINT, JOB, LOCATION, MODEL, PAGE, Route
from sarto.api.http.services import in_control, principal, services
from sarto.control import operations
from sarto.errors import InvalidArgument
from sarto.schema.wire import Message, Text

OURS = frozenset(
    {"progressPercentage", "progressMessage", "comparison", "rows", "rowsLeftOut", "modelResults", "dataset"}
)
"""Fields of an operation's metadata that Google's does not have."""
V1, V1_BETA1 = "type.googleapis.com/google.cloud.aiplatform.v1.", "type.googleapis.com/google.cloud.aiplatform.v1beta1."

ONLY_BETA = ("EvaluateDatasetOperationMetadata", "EvaluateDatasetResponse")
"""Types whose operations the typed clients have only in v1beta1, and poll under `/ui/`, without a version."""


LOOK_SECONDS = 0.2
MOST_WAIT_SECONDS = 300.0


class CancelRequest(Message):
    """The body of any cancel. The URL has the name; some clients repeat it in the body."""

    name: Text = ""


class WaitRequest(CancelRequest):
    timeout: Text = ""


def answer(request: Request, operation: dict[str, Any]) -> Reply:
    """An operation with its types in the requested API version: typed clients refuse the other version's."""
    return reply(_typed(request, operation))


async def get(request: Request) -> Reply:
    return answer(request, await in_control(request, operations.get, resource_name(request)))


async def list_operations(request: Request) -> Reply:
    about = resource_name(request).removesuffix("/operations")
    if query(request).get("filter"):
        raise InvalidArgument.field("filter", "Operations cannot be filtered here; leave the parameter out.")
    rows, token = await in_control(request, operations.list_operations, about, *page(request))
    return listing("operations", ([_typed(request, row) for row in rows], token))


async def wait(request: Request) -> Reply:
    """The operation once it is done, or its state after `timeout` ("30s"), which clients send in body or query."""
    body = await read_message(request, WaitRequest)
    seconds = read_timeout(query(request).get("timeout", body.timeout))

    async def look() -> dict[str, Any]:
        return await in_control(request, operations.get, resource_name(request))

    return answer(request, await waited(request, look, lambda operation: bool(operation.get("done")), seconds))


async def waited(
    request: Request,
    look: Callable[[], Awaitable[dict[str, Any]]],
    is_over: Callable[[dict[str, Any]], bool],
    seconds: float,
) -> dict[str, Any]:
    """The result of `look` once it is final, or after this number of seconds (0: the longest wait). It polls; a thread
    is used for each poll only. Ends when the client disconnects."""
    long_polls = services(request).long_polls
    until = time.monotonic() + min(seconds or MOST_WAIT_SECONDS, MOST_WAIT_SECONDS)

    async def watch() -> dict[str, Any]:
        while True:
            resource = await look()
            left = until - time.monotonic()
            if is_over(resource) or left <= 0:
                return resource
            await asyncio.sleep(min(long_polls.seconds(LOOK_SECONDS), left))

    with long_polls.place(principal(request).member):
        return await until_gone(request, watch())  # type: ignore[no-any-return]


async def cancel(request: Request) -> Reply:
    await read_message(request, CancelRequest)
    await in_control(request, operations.cancel, resource_name(request))
    return reply({})


async def delete(request: Request) -> Reply:
    await in_control(request, operations.delete, resource_name(request))
    return reply({})


def _typed(request: Request, operation: dict[str, Any]) -> dict[str, Any]:
    if _is_typed_client(request) and OURS & set(operation.get("metadata", {})):
        metadata = {key: value for key, value in operation["metadata"].items() if key not in OURS}
        operation = operation | {"metadata": metadata}
    is_beta = "/v1beta1/" in request.scope["path"]
    renamed = {
        name: part | {"@type": part["@type"].replace(V1, V1_BETA1)}
        for name, part in operation.items()
        if name in ("metadata", "response") and "@type" in part and (is_beta or part["@type"].endswith(ONLY_BETA))
    }
    return operation | renamed


def _is_typed_client(request: Request) -> bool:
    """Whether the caller is an official typed client, which refuses unknown fields in an operation and polls under
    `/ui/`."""
    return b"enum-encoding" in request.scope["query_string"] or request.scope["path"].startswith("/ui/")


def read_timeout(text: str, field: str = "timeout") -> float:
    """A duration in Google's JSON form; 0 if there is none. Raises InvalidArgument."""
    try:
        number, unit = (text or "0s")[:-1], (text or "0s")[-1]
        seconds = float(number) if unit == "s" else math.nan
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidArgument.field(field, f'{text!r} is not a duration such as "30s".') from None
    return max(0.0, min(seconds, 86_400.0))


ROUTES = [
    route
    for about in (LOCATION, JOB, MODEL, ENDPOINT, f"{LOCATION}/batchPredictionJobs/{{job}}")
    for route in (
        Route(
            "GET", f"{about}/operations", list_operations, "aiplatform.operations.list", "List operations",
            query=(*PAGE, "filter"),
        ),
        Route(
            "GET", f"{about}/operations/{{operation}}", get, "aiplatform.operations.get",
            "Get an operation",
        ),
        Route(
            "DELETE", f"{about}/operations/{{operation}}", delete, "aiplatform.operations.delete",
            "Delete an operation",
        ),
        Route(
            "POST", f"{about}/operations/{{operation}}:wait", wait, "aiplatform.operations.get",
            "Wait until an operation is done", {"type": "object"}, query=("timeout",),
        ),
        Route(
            "POST", f"{about}/operations/{{operation}}:cancel", cancel, "aiplatform.operations.cancel",
            "Cancel an operation; no change when it is done", {"type": "object"},
        ),
    )
]  # fmt: skip
