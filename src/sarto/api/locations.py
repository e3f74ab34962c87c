"""The locations of a project: every region name is one, on this one machine. Clients ask to fill their menus."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sarto.api.http import Reply, in_thread, listing, page, parent, principal, query, reply, services
from sarto.api.routing import Route
from sarto.control import iam, paging
from sarto.errors import InvalidArgument
from sarto.names import REGIONS, LocationName, check_project

PLACES = "/{api}/projects/{project}/locations"
GET, LIST = "aiplatform.locations.get", "aiplatform.locations.list"


async def get(request: Request) -> Reply:
    place = parent(request)
    number = await _number(request, GET, place.project, f"locations/{place.location}")
    return reply(_written(number, place.location))


async def list_(request: Request) -> Reply:
    """Sorted by name."""
    number = await _number(request, LIST, check_project(request.path_params["project"]))
    if query(request).get("filter"):
        raise InvalidArgument.field("filter", "Locations cannot be filtered here; leave the parameter out.")

    def after(key: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        return [(region, _written(number, region)) for region in sorted(REGIONS) if region > key][:limit]

    return listing("locations", paging.page(after, lambda _: True, *page(request), "locations", number))


async def _number(request: Request, permission: str, project: str, on: str = "") -> str:
    database, caller = services(request).database, principal(request)
    return (await in_thread(request, iam.require, database, caller, permission, project, on)).number


def _written(project: str, region: str) -> dict[str, Any]:
    labels = {"cloud.googleapis.com/region": region}
    return {"name": str(LocationName(project, region)), "locationId": region, "labels": labels}


ROUTES = [
    Route("GET", PLACES, list_, LIST, "List locations", query=("page_size", "page_token", "filter")),
    Route("GET", f"{PLACES}/{{location}}", get, GET, "Get a location"),
]
