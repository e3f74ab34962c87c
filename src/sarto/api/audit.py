"""Reading the audit log, in the shape of Cloud Logging's `entries:list`."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request

from sarto.api.http import Reply, in_thread, listing, principal, read_message, services
from sarto.api.routing import Route
from sarto.control import audit_log
from sarto.errors import InvalidArgument
from sarto.schema.wire import Message, Text


class ListLogEntriesRequest(Message):
    """Newest first only; a `filter` is refused."""

    resource_names: list[Text] = Field(default_factory=list)
    filter: Text = ""
    order_by: Text = ""
    page_size: int = 0
    page_token: Text = ""


async def list_(request: Request) -> Reply:
    asked = await read_message(request, ListLogEntriesRequest)
    if len(asked.resource_names) != 1 or not asked.resource_names[0].startswith("projects/"):
        raise InvalidArgument.field("resource_names", "Name one project: projects/PROJECT.")
    if asked.filter:
        raise InvalidArgument.field("filter", "Filters are not supported; `sarto audit export` gives lines for grep.")
    if asked.order_by not in ("", "timestamp desc"):
        raise InvalidArgument.field("order_by", 'Only "timestamp desc" is supported.')
    project = asked.resource_names[0].partition("/")[2]
    database, caller = services(request).database, principal(request)
    return listing(
        "entries",
        await in_thread(request, audit_log.list_, database, caller, project, asked.page_size, asked.page_token),
    )


ROUTES = [
    Route(
        "POST", "/v2/entries:list", list_, "logging.logEntries.list", "The audit log of a project, newest first",
        ListLogEntriesRequest,
    )
]  # fmt: skip
