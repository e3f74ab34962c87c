"""The base models of the catalogue. They belong to no project."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sarto.api.http.requests import page, parent
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import LIST, PUBLISHER_MODEL, SIGNED_IN, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.catalog import BaseModelEntry
from sarto.control.access import authorization
from sarto.control.aip import pages
from sarto.errors import InvalidArgument, NotFound


async def get(request: Request) -> Reply:
    publisher, name = request.path_params["publisher"], request.path_params["model"]
    try:
        entry = services(request).catalog.find(f"publishers/{publisher}/models/{name}", "name")
    except InvalidArgument as error:
        raise NotFound(error.violations[0].description) from None
    return reply(_publisher_model(entry))


async def get_in_project(request: Request) -> Reply:
    """The same for clients that prefix project and location; the caller must have a right there."""
    database, project = services(request).database, parent(request).project
    await in_thread(
        request, authorization.require, database, principal(request), "aiplatform.publisherModels.get", project
    )
    return await get(request)


async def list_models(request: Request) -> Reply:
    """Base models of one publisher, or of all with `-` or `*`. Sorted by name."""
    publisher = request.path_params["publisher"]
    requested = pages.requested(*page(request), "publisherModels", publisher)
    entries = {entry["name"]: entry for entry in map(_publisher_model, services(request).catalog.by_name.values())}

    def after(key: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        return sorted((name, entry) for name, entry in entries.items() if name > key)[:limit]

    def keep(entry: dict[str, Any]) -> bool:
        return publisher in ("-", "*") or entry["name"].startswith(f"publishers/{publisher}/")

    return listing("publisherModels", pages.filtered(after, keep, requested))


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


ROUTES = [
    Route(
        "GET", PUBLISHER_MODEL, get_in_project, "aiplatform.publisherModels.get",
        "Get a base model, by a path with a project", query=("view", "language_code", "is_hugging_face_model"),
    ),
    Route(
        "GET", "/{api}/publishers/{publisher}/models", list_models, SIGNED_IN, "List base models",
        query=(*LIST, "view", "language_code", "list_all_versions"),
    ),
    Route(
        "GET", "/{api}/publishers/{publisher}/models/{model}", get, SIGNED_IN, "Get a base model",
        query=("view", "language_code", "is_hugging_face_model"),
    ),
]  # fmt: skip
