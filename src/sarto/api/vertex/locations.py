"""The locations of a project: all region names of Google, which all mean this machine."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sarto.api.http.requests import page, parent, query
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import PAGE, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.control.access import authorization
from sarto.control.aip import pages
from sarto.errors import InvalidArgument
from sarto.names import REGIONS, LocationName, check_project

PLACES = "/{api}/projects/{project}/locations"
GET, LIST = "aiplatform.locations.get", "aiplatform.locations.list"


async def get(request: Request) -> Reply:
    location = parent(request)
    number = await _number(request, GET, location.project, f"locations/{location.location}")
    return reply(_written(number, location.location))


async def list_locations(request: Request) -> Reply:
    """Locations sorted by name."""
    number = await _number(request, LIST, check_project(request.path_params["project"]))
    if query(request).get("filter"):
        raise InvalidArgument.field("filter", "Locations cannot be filtered here; leave the parameter out.")

    def after(key: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        return [(region, _written(number, region)) for region in sorted(REGIONS) if region > key][:limit]

    return listing(
        "locations", pages.filtered(after, lambda _: True, pages.requested(*page(request), "locations", number))
    )


async def _number(request: Request, permission: str, project: str, on: str = "") -> str:
    database, caller = services(request).database, principal(request)
    return (await in_thread(request, authorization.require, database, caller, permission, project, on)).number


def _written(project: str, region: str) -> dict[str, Any]:
    labels = {"cloud.googleapis.com/region": region}
    return {"name": str(LocationName(project, region)), "locationId": region, "labels": labels}


ROUTES = [
    Route("GET", PLACES, list_locations, LIST, "List locations", query=(*PAGE, "filter")),
    Route("GET", f"{PLACES}/{{location}}", get, GET, "Get a location"),
]
