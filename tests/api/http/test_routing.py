"""Paths to routes: ids keep their escapes, verbs are told from ids, what does not match says why."""

from __future__ import annotations

from typing import Any

import pytest

from sarto.api.http.responses import Reply
from sarto.api.http.routing import PUBLIC, Route, Router
from sarto.errors import InvalidArgument, MethodNotAllowed, NotFound


async def handler(_: Any) -> Reply:
    return Reply()


PLACE = "/{api}/projects/{project}/locations/{location}"
ROUTER = Router(
    Route(method, path, handler, PUBLIC, f"{method} {path}")
    for method, path in [
        ("GET", f"{PLACE}/jobs"),
        ("POST", f"{PLACE}/jobs"),
        ("POST", f"{PLACE}/jobs:again"),
        ("GET", f"{PLACE}/jobs/{{job}}"),
        ("POST", f"{PLACE}/jobs/{{job}}:cancel"),
        ("GET", f"{PLACE}/operations/{{operation}}"),
        ("GET", "/store/{bucket}/o/{object}"),
        ("POST", "/store/{bucket}/o/{object}/copy/{target}"),
        ("GET", "/{bucket}/{object=**}"),
        ("GET", "/"),
    ]
)
BASE = "/v1/projects/p/locations/l"


def find(method: str, path: str) -> tuple[str, dict[str, str]]:
    route, values = ROUTER.find(method, path.encode())
    values.pop("project", None)
    values.pop("location", None)
    return route.path.removeprefix(PLACE), values


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", f"{BASE}/jobs", ("/jobs", {})),
        ("HEAD", f"{BASE}/jobs", ("/jobs", {})),
        ("GET", "/", ("/", {})),
        ("GET", "/v1beta1/projects/p/locations/l/jobs/7", ("/jobs/{job}", {"job": "7"})),
        ("GET", f"{BASE}/jobs/m%401", ("/jobs/{job}", {"job": "m@1"})),
        ("GET", f"{BASE}/jobs/a%2Fb", ("/jobs/{job}", {"job": "a/b"})),
        ("GET", f"{BASE}/jobs/7:nothing", ("/jobs/{job}", {"job": "7:nothing"})),
        ("POST", f"{BASE}/jobs/7:cancel", ("/jobs/{job}:cancel", {"job": "7"})),
        ("POST", f"{BASE}/jobs/7%3Acancel", ("/jobs/{job}:cancel", {"job": "7"})),
        ("POST", f"{BASE}/jobs/a:b:cancel", ("/jobs/{job}:cancel", {"job": "a:b"})),
        ("POST", f"{BASE}/jobs:again", ("/jobs:again", {})),
        ("GET", f"/x.googleapis.com{BASE}/jobs/7", ("/jobs/{job}", {"job": "7"})),
        ("GET", "/ui/projects/p/locations/l/operations/9", ("/operations/{operation}", {"operation": "9"})),
        ("GET", "/store/b/o/dir%2Ft.jsonl", ("/store/{bucket}/o/{object}", {"bucket": "b", "object": "dir/t.jsonl"})),
        ("GET", "/store/b/o/a:cancel", ("/store/{bucket}/o/{object}", {"bucket": "b", "object": "a:cancel"})),
        ("GET", "/b/dir/t%20x:y", ("/{bucket}/{object=**}", {"bucket": "b", "object": "dir/t x:y"})),
        ("GET", "//b/t", ("/{bucket}/{object=**}", {"bucket": "b", "object": "t"})),
    ],
)
def test_paths_lead_to_their_route(method: str, path: str, expected: tuple[str, dict[str, str]]) -> None:
    assert find(method, path) == expected


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "/v1/nothing", NotFound),
        ("GET", f"{BASE}/jobs/", NotFound),
        ("GET", f"{BASE}/jobs/7/more", NotFound),
        ("GET", f"{BASE}/jobs/7:cancel", MethodNotAllowed),
        ("POST", f"{BASE}/jobs/7:nothing", MethodNotAllowed),
        ("PUT", f"{BASE}/jobs", MethodNotAllowed),
        ("POST", "/b/t", MethodNotAllowed),
        ("GET", f"{BASE}/jobs/%ff", InvalidArgument),
    ],
)
def test_what_does_not_match_says_why(method: str, path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        find(method, path)


def test_a_wrong_verb_names_the_right_ones() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        find("PUT", f"{BASE}/jobs")
    assert caught.value.allowed == ["GET", "POST"]


def test_two_routes_for_one_path_are_a_mistake() -> None:
    twice = [Route("GET", "/a/{x}", handler, PUBLIC, ""), Route("GET", "/a/{y}", handler, PUBLIC, "")]
    with pytest.raises(AssertionError, match="two routes"):
        Router(twice)
