"""Odd values in every field, query parameter and part of a path: refused or taken, never a fault of ours."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from sarto.api.http.routing import Route
from sarto.api.routes import ROUTES
from sarto.schema.wire import Message
from tests.api.doors import House, house
from tests.api.test_role_matrix import BODIES, IDS, VALUES

ODD: tuple[Any, ...] = (
    5, -1, 10**30, 1.5, True, "", "x", "²", "9" * 5000, "\x00", "gs://a-bucket/\x00", [], {}, [[]], [None], [{}],
    {"a": {"b": []}}, {"": ""}, ["x"] * 200, "projects/demo/locations/us-central1/models/²",
)  # fmt: skip
ODD_TEXTS = (
    "²", "9" * 5000, "9" * 19, "%00", "%ff", "-1", "1e9", "%22", "*", "(", "a%3D", "%F0%9F%92%A3", "x" * 3000, "true",
)  # fmt: skip
NEVER_ASKED = ("/computeMetadata",)


@pytest.mark.slow
def test_no_odd_value_is_a_fault_of_ours(tmp_path: Path) -> None:
    async def ask() -> list[str]:
        async with house(tmp_path) as place:
            place.account("spare-account")
            place.account("owner-account", "roles/owner")
            await place.ask("owner-account", "POST", "/storage/v1/b?project=demo", {"name": "a-bucket"})
            return [fault for route in ROUTES for fault in await _faults(place, route)]

    assert asyncio.run(ask()) == []


async def _faults(place: House, route: Route) -> list[str]:
    if route.method == "DELETE" or route.path.startswith(NEVER_ASKED):
        return []
    found = []
    for path, body in [*_bodies(route), *_queries(route), *_paths(route)]:
        answer = await place.ask("owner-account", route.method, path, body)
        if answer.status_code >= 500:
            found.append(f"{route.method} {path[:120]} {str(body)[:200]} {answer.status_code} {answer.text[:300]}")
    return found


def _path(route: Route, **other: str) -> str:
    return re.sub(r"{(\w+)(=\*\*)?}", lambda found: other.get(found[1], VALUES.get(found[1], IDS)), route.path)


def _bodies(route: Route) -> Iterator[tuple[str, Any]]:
    if route.method == "GET":
        return
    path = _path(route)
    sound = next((value for word, value in BODIES.items() if word in path), {})
    for value in ODD:
        yield path, value
    for name in _fields(route, sound):
        for value in ODD:
            yield path, sound | {name: value}


def _fields(route: Route, sound: dict[str, Any]) -> list[str]:
    if isinstance(route.request, type) and issubclass(route.request, Message):
        return [to_camel(name) for name in route.request.model_fields]
    return [
        *sound,
        "name",
        "metadata",
        "bindings",
        "labels",
        "state",
        "acl",
        "messages",
        "tools",
        "stream_options",
        "stop",
    ]


def _queries(route: Route) -> Iterator[tuple[str, Any]]:
    names = (
        ("filter", "pageToken", "generation", "maxResults", "project", "uploadType", "fields")
        if route.query is None
        else route.query
    )
    body = {} if route.method != "GET" else None
    for name in names:
        for value in ODD_TEXTS:
            yield f"{_path(route)}?{to_camel(name)}={value}", body


def _paths(route: Route) -> Iterator[tuple[str, Any]]:
    body = {} if route.method != "GET" else None
    for name in re.findall(r"{(\w+)(?:=\*\*)?}", route.path):
        for value in ODD_TEXTS:
            yield _path(route, **{name: value}), body
