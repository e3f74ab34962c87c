"""The base models, as the catalogue names them. They belong to no project."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sarto.api.http import Reply, in_thread, page, parent, principal, reply, services
from sarto.catalog import BaseModelEntry
from sarto.control import iam, paging
from sarto.errors import InvalidArgument, NotFound


async def get(request: Request) -> Reply:
    publisher, name = request.path_params["publisher"], request.path_params["model"]
    try:
        entry = services(request).catalog.find(f"publishers/{publisher}/models/{name}", "name")
    except InvalidArgument as error:
        raise NotFound(error.violations[0].description) from None
    return reply(_publisher_model(entry))


async def get_in_project(request: Request) -> Reply:
    """The same, for clients that put project and location in front; the caller must have a right there."""
    database, project = services(request).database, parent(request).project
    await in_thread(request, iam.require, database, principal(request), "aiplatform.publisherModels.get", project)
    return await get(request)


async def list_(request: Request) -> Reply:
    """Those of one publisher; `-` or `*` for all. Sorted by name."""
    size, token = page(request)
    size, publisher = paging.page_size(size), request.path_params["publisher"]
    entries = [_publisher_model(entry) for entry in services(request).catalog.by_name.values()]
    if publisher not in ("-", "*"):
        entries = [entry for entry in entries if entry["name"].startswith(f"publishers/{publisher}/")]
    entries.sort(key=lambda entry: str(entry["name"]))
    start = paging.start(token, "publisherModels", publisher)
    rest = [entry for entry in entries if entry["name"] > start]
    shown = rest[:size]
    body: dict[str, Any] = {"publisherModels": shown}
    if len(rest) > size:
        body["nextPageToken"] = paging.token(shown[-1]["name"], "publisherModels", publisher)
    return reply(body)


def _publisher_model(entry: BaseModelEntry) -> dict[str, Any]:
    publisher, slash, plain = entry.name.partition("/")
    name = f"publishers/{publisher}/models/{plain}" if slash else f"publishers/google/models/{entry.name}"
    sizes = ", ".join(map(str, sorted(entry.rules.adapter_sizes)))
    return {
        "name": name,
        "versionId": "default",
        "displayName": entry.name,
        "description": f"Answered by {entry.weights.title} on this server. Adapter sizes for tuning: {sizes}.",
        "launchStage": "GA",
    }
