"""`entries:list` of the audit log, in the form of Cloud Logging."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request

from sarto.api.http.requests import read_message
from sarto.api.http.responses import Reply, listing
from sarto.api.http.routing import Route
from sarto.api.http.services import in_thread, principal, services
from sarto.control.audit import audit_log
from sarto.errors import InvalidArgument
from sarto.schema.wire import Message, Text


class ListLogEntriesRequest(Message):
    """A page of entries, newest first only; a `filter` is refused."""

    resource_names: list[Text] = Field(default_factory=list)
    filter: Text = ""
    order_by: Text = ""
    page_size: int = 0
    page_token: Text = ""


async def list_entries(request: Request) -> Reply:
    body = await read_message(request, ListLogEntriesRequest)
    if len(body.resource_names) != 1 or not body.resource_names[0].startswith("projects/"):
        raise InvalidArgument.field("resource_names", "Name one project: projects/PROJECT.")
    if body.filter:
        raise InvalidArgument.field("filter", "Filters are not supported; `sarto audit export` gives lines for grep.")
    if body.order_by not in ("", "timestamp desc"):
        raise InvalidArgument.field("order_by", 'Only "timestamp desc" is supported.')
    project = body.resource_names[0].partition("/")[2]
    database, caller = services(request).database, principal(request)
    return listing(
        "entries",
        await in_thread(request, audit_log.list_entries, database, caller, project, body.page_size, body.page_token),
    )


ROUTES = [
    Route(
        "POST", "/v2/entries:list", list_entries, "logging.logEntries.list", "The audit log of a project, newest first",
        ListLogEntriesRequest,
    )
]  # fmt: skip
