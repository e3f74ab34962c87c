"""The project and location of a request: those of its path, else the project that its API key names."""

from __future__ import annotations

from starlette.requests import Request

from sarto.api.http.requests import parent
from sarto.api.http.routing import LOCATION
from sarto.api.http.services import principal
from sarto.control.access import projects
from sarto.errors import InvalidArgument
from sarto.names import LocationName

KEY_LOCATION = "us-central1"
"""The location of requests whose project comes from an API key."""
MODEL_IN_BODY = "openapi"
ROOTS = (f"{LOCATION}/endpoints/{MODEL_IN_BODY}", "/openai/v1")


def location_of(request: Request) -> LocationName | None:
    """The location of the path or, without one, that of the caller's API key; None for a caller without a key."""
    if "location" in request.path_params:
        return parent(request)
    project = principal(request).key_project
    return LocationName(project, KEY_LOCATION) if project else None


def place_of(request: Request) -> LocationName:
    """`location_of`, and for an account without a key its own project. Raises InvalidArgument for a caller without a
    project."""
    place, caller = location_of(request), principal(request)
    if place is not None:
        return place
    if not caller.project or caller.project == projects.SYSTEM.number:
        raise InvalidArgument(
            "This path has no project, and your credential names none. Use an API key (`sarto auth api-key create`), or"
            f" the base URL /v1/projects/PROJECT/locations/LOCATION/endpoints/{MODEL_IN_BODY}."
        )
    return LocationName(caller.project, KEY_LOCATION)
