"""Long-running operations, of a location or of one resource in it. Also under `/ui/`, where the REST client polls."""

from __future__ import annotations

import math
from typing import Any

from starlette.requests import Request

from sarto.api.http import Reply, in_control, listing, page, query, read_message, reply, resource_name
from sarto.control import operations
from sarto.errors import InvalidArgument
from sarto.schema.wire import Message, Text

OURS = frozenset({"progressPercentage", "progressMessage", "comparison", "rows", "rowsLeftOut", "modelResults"})
"""Fields of an operation's metadata that Google's has not."""
V1, V1_BETA1 = "type.googleapis.com/google.cloud.aiplatform.v1.", "type.googleapis.com/google.cloud.aiplatform.v1beta1."

ONLY_BETA = ("EvaluateDatasetOperationMetadata", "EvaluateDatasetResponse")
"""Types whose operations the typed clients have in that version alone, and poll under `/ui/`, which names none."""


class CancelRequest(Message):
    """Of whatever can be cancelled. The URL has the name already; some clients write it into the body too."""

    name: Text = ""


class WaitRequest(CancelRequest):
    timeout: Text = ""


def answer(request: Request, operation: dict[str, Any]) -> Reply:
    """An operation, its types named in the API version that was asked: typed clients refuse the other version's."""
    return reply(_typed(request, operation))


async def get(request: Request) -> Reply:
    return answer(request, await in_control(request, operations.get, resource_name(request)))


async def list_(request: Request) -> Reply:
    about = resource_name(request).removesuffix("/operations")
    if query(request).get("filter"):
        raise InvalidArgument.field("filter", "Operations cannot be filtered here; leave the parameter out.")
    rows, token = await in_control(request, operations.list_, about, *page(request))
    return listing("operations", ([_typed(request, row) for row in rows], token))


async def wait(request: Request) -> Reply:
    """The operation once it is done, or as it is after `timeout` ("30s"), which clients send in body or query."""
    body = await read_message(request, WaitRequest)
    seconds = read_timeout(query(request).get("timeout", body.timeout))
    return answer(request, await in_control(request, operations.wait, resource_name(request), seconds))


async def cancel(request: Request) -> Reply:
    await read_message(request, CancelRequest)
    await in_control(request, operations.cancel, resource_name(request))
    return reply({})


async def delete(request: Request) -> Reply:
    await in_control(request, operations.delete, resource_name(request))
    return reply({})


def _typed(request: Request, operation: dict[str, Any]) -> dict[str, Any]:
    if _is_typed_client(request) and OURS & set(operation.get("metadata", {})):
        kept = {key: value for key, value in operation["metadata"].items() if key not in OURS}
        operation = operation | {"metadata": kept}
    is_beta = "/v1beta1/" in request.scope["path"]
    renamed = {
        name: part | {"@type": part["@type"].replace(V1, V1_BETA1)}
        for name, part in operation.items()
        if name in ("metadata", "response") and "@type" in part and (is_beta or part["@type"].endswith(ONLY_BETA))
    }
    return operation | renamed


def _is_typed_client(request: Request) -> bool:
    """The official typed client refuses an operation with fields it does not know; it polls under `/ui/`."""
    return b"enum-encoding" in request.scope["query_string"] or request.scope["path"].startswith("/ui/")


def read_timeout(text: str, field: str = "timeout") -> float:
    """A duration in Google's JSON form; 0 when there is none. Raises InvalidArgument."""
    try:
        number, unit = (text or "0s")[:-1], (text or "0s")[-1]
        seconds = float(number) if unit == "s" else math.nan
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidArgument.field(field, f'{text!r} is not a duration such as "30s".') from None
    return max(0.0, min(seconds, 86_400.0))
