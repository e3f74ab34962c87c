"""The quota of a project: its number of concurrent tuning jobs."""

from __future__ import annotations

from starlette.requests import Request

from sarto.api.http.requests import read_message
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import Route
from sarto.api.http.services import in_control
from sarto.control.jobs import quotas
from sarto.errors import InvalidArgument
from sarto.schema.wire import Boolean, Int32, Message, Text

QUOTA = "/v3/projects/{project}/quota"


class Quota(Message):
    """Only `concurrentJobs` is read."""

    name: Text = ""
    concurrent_jobs: Int32 | None = None
    is_default: Boolean = False
    running_jobs: Int32 = 0
    pending_jobs: Int32 = 0


async def get(request: Request) -> Reply:
    return reply(await in_control(request, quotas.get, request.path_params["project"]))


async def update(request: Request) -> Reply:
    body = await read_message(request, Quota, "quota")
    if body.concurrent_jobs is None:
        raise InvalidArgument.field("quota.concurrent_jobs", "Required field is not set.")
    return reply(await in_control(request, quotas.set_quota, request.path_params["project"], body.concurrent_jobs))


async def delete(request: Request) -> Reply:
    await in_control(request, quotas.reset, request.path_params["project"])
    return reply({})


ROUTES = [
    Route("GET", QUOTA, get, quotas.READ, "How many jobs of a project may run at once, and how many do", None, Quota),
    Route("PATCH", QUOTA, update, quotas.UPDATE, "Set a project's own quota", Quota, Quota),
    Route("DELETE", QUOTA, delete, quotas.UPDATE, "Remove a project's own quota"),
]
