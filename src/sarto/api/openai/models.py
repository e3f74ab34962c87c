"""OpenAI's list of models: base models, endpoints, and tuned models by their names `ft:…`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.responses import reply
from sarto.api.http.routing import SIGNED_IN, Route
from sarto.api.http.services import in_control, in_thread, principal, services
from sarto.api.openai.errors import ERRORS, in_openai_form, refusal
from sarto.api.openai.place import ROOTS, location_of
from sarto.control.access import authorization, projects
from sarto.control.models import endpoints, registry, tuned_names
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound
from sarto.names import LocationName, ResourceName, parse_resource

LIST, DELETE = "aiplatform.endpoints.list", "aiplatform.models.delete"
PAGE = 1000


@in_openai_form
async def list_models(request: Request) -> ASGIApp:
    """Base models as `publisher/name`, then tuned ones by the endpoint's name and by theirs: those of the project in
    the path or of the API key, or of all projects whose endpoints the caller may list."""
    rows = _bases(request)
    for location in await _places(request):
        rows += await _tuned(request, location)
    return reply({"object": "list", "data": rows})


@in_openai_form
async def get_model(request: Request) -> ASGIApp:
    name = request.path_params["model"]
    if name.startswith(tuned_names.PREFIX):
        found = await in_control(request, tuned_names.find, name)
        return reply(_model(name, name.split(":")[2], int(found.name.id[:16]) // 1_000_000))
    for row in _bases(request):
        if row["id"] in (name, f"google/{name}"):
            return reply(row)
    for location in await _places(request):
        for row in await _tuned(request, location):
            if row["id"] == name:
                return reply(row)
    raise NotFound(f'Model "{name}" does not exist; GET models lists those that do.')


@in_openai_form
async def delete_model(request: Request) -> ASGIApp:
    """Delete the version of a tuned model, and the model with its last version."""
    name = request.path_params["model"]
    database, caller, place = services(request).database, principal(request), location_of(request)
    if place is None:
        await in_thread(request, authorization.require_somewhere, database, caller, DELETE)
    else:
        await in_thread(request, authorization.require_within, database, caller, DELETE, place.project)
    if not name.startswith(tuned_names.PREFIX):
        raise InvalidArgument.field(
            "model", f'"{name[:200]}" is not a tuned model, such as ft:…; only these are deleted.'
        )
    found = await in_control(request, tuned_names.find, name)
    if found.is_checkpoint:
        raise InvalidArgument.field("model", "A checkpoint is deleted with its model; name the model.")
    if not found.model:
        raise FailedPrecondition("The job of this model is not finished; cancel it first.")
    model = ResourceName(found.name.project, found.name.location, "models", found.model, str(found.version))
    versions, _ = await in_control(request, registry.list_versions, model)
    await in_control(request, registry.delete if len(versions) == 1 else registry.delete_version, model)
    return reply({"id": name, "object": "model", "deleted": True})


def _bases(request: Request) -> list[dict[str, Any]]:
    names = sorted(services(request).catalog.by_name)
    return [_model(name if "/" in name else f"google/{name}", "sarto", 0) for name in names]


async def _tuned(request: Request, location: LocationName) -> list[dict[str, Any]]:
    rows, token = list[dict[str, Any]](), ""
    while True:
        page, token = await in_control(request, endpoints.list_endpoints, location, PAGE, token)
        each = [parse_resource(row["name"], "endpoints") for row in page]
        rows += [_model(str(name), "user", int(name.id[:16]) // 1_000_000) for name in each]
        rows += await in_thread(request, _named, request, each)
        if not token:
            return rows


def _named(request: Request, each: list[ResourceName]) -> list[dict[str, Any]]:
    """The tuned models of these endpoints, of one project, by their names."""
    control = services(request).control
    project = projects.find(control.database, each[0].project) if each else None
    if project is None:
        return []
    found = tuned_names.names(control, project, each)
    return [
        _model(name, project.id, int(endpoint_id[:16]) // 1_000_000)
        for endpoint_id, name in sorted(found.items(), reverse=True)
        if name
    ]


async def _places(request: Request) -> list[LocationName]:
    place = location_of(request)
    if place is not None:
        return [LocationName(place.project, place.location if "location" in request.path_params else "-")]
    database, caller = services(request).database, principal(request)
    listed = await in_thread(request, authorization.visible_projects, database, caller, LIST)
    return [LocationName(project.number, "-") for project in listed]


def _model(name: str, owner: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


ROUTES = [
    Route(method, f"{root}{path}", handler, permission, summary, query=None, errors=ERRORS, refusal=refusal)
    for root in ROOTS
    for method, path, handler, permission, summary in (
        ("GET", "/models", list_models, SIGNED_IN, "Models in OpenAI's form"),
        ("GET", "/models/{model=**}", get_model, SIGNED_IN, "One model in OpenAI's form"),
        ("DELETE", "/models/{model=**}", delete_model, DELETE, "Delete a tuned model, by its name in OpenAI's form"),
    )
]
