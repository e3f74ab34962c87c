"""Long-running operations. Ours are done when they are answered; clients poll them all the same."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sarto.api.http import resource_name
from sarto.names import new_id

EMPTY = {"@type": "type.googleapis.com/google.protobuf.Empty"}


def deleted(request: Request) -> dict[str, Any]:
    """The operation of a delete that has happened."""
    return {"name": f"{resource_name(request)}/operations/{new_id()}", "done": True, "response": EMPTY}
