"""The route list: every route says what it needs, its description holds together, and projects are walls."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from sarto.api.http.application import Application
from sarto.api.http.openapi import describe
from sarto.api.http.routing import PUBLIC, SIGNED_IN, Route
from sarto.api.routes import ROUTES
from sarto.assembly.app import running
from sarto.control.access import account_store, projects
from sarto.control.access.authentication import Authenticator
from sarto.settings import Settings

PERMISSION = re.compile(
    r"(aiplatform|storage|resourcemanager|cloudtranslate|iam|cloudkms|logging|monitoring|serviceusage)\.[a-zA-Z]+\.[a-zA-Z]+"
)
PUBLIC_PATHS = re.compile(r"/(|healthz|readyz|openapi\.json|docs|token|sts/token|oauth2/v3/certs|computeMetadata/.*)")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_declares_its_permission(route: Route) -> None:
    assert route.summary
    if route.permission == PUBLIC:
        assert PUBLIC_PATHS.fullmatch(route.path), "only the service's own pages and the token doors are public"
    else:
        assert route.permission == SIGNED_IN or PERMISSION.fullmatch(route.permission)


def test_the_description_holds_together() -> None:
    description = describe(ROUTES)
    references = set(re.findall(r"#/components/schemas/(\w+)", repr(description)))
    assert references <= description["components"]["schemas"].keys()
    identifiers = [op["operationId"] for path in description["paths"].values() for op in path.values()]
    assert len(identifiers) == len(set(identifiers))
    job = description["components"]["schemas"]["TuningJob"]["properties"]
    assert "tunedModelDisplayName" in job and "tuned_model_display_name" not in job


def test_a_stranger_learns_nothing_from_any_route(tmp_path: Path) -> None:
    """A project that is another's and one that does not exist answer alike on every route that needs a permission."""
    asyncio.run(_stranger(tmp_path))


async def _stranger(home: Path) -> None:
    async with running(Settings(home=home, project="demo", allow_root=True), "http://127.0.0.1:1") as (services, _):
        with services.database.transaction() as connection:
            mine = projects.insert(connection, "elsewhere", 0.0)
            account = account_store.create(connection, mine, "stranger", "roles/owner", 0.0)
            key = account_store.create_key(connection, account, mine.id, 0.0)
        token = _token(services.authenticator, key["private_key_id"])
        doors = Application(ROUTES)
        doors.services = services
        transport = httpx.ASGITransport(app=doors)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            client.headers["Authorization"] = f"Bearer {token}"
            for route in ROUTES:
                if "{project}" in route.path and route.permission not in (PUBLIC, SIGNED_IN):
                    foreign = await _asked(client, route, "demo")
                    unknown = await _asked(client, route, "nobody-here")
                    assert foreign == unknown, route
                    assert foreign[0] in (400, 403), (route, foreign)


def _token(authenticator: Authenticator, key_id: str) -> str:
    key = account_store.find_key(authenticator.database, key_id)
    assert key is not None
    return str(authenticator.issue(key)["access_token"])


BODIES: dict[str, Any] = {
    "translateText": {"contents": ["a"], "sourceLanguageCode": "en", "targetLanguageCode": "es"},
    "generateContent": {"contents": [{"parts": [{"text": "a"}]}]},
}
PLAIN = {"displayName": "a"}


async def _asked(client: httpx.AsyncClient, route: Route, project: str) -> tuple[int, str]:
    values = {"project": project, "location": "us-central1", "api": "v1", "publisher": "google", "store": "default"}
    values["tensorboard"] = "1"
    path = re.sub(r"{(\w+)(=\*\*)?}", lambda found: values.get(found[1], "1234567890123456789"), route.path)
    if "publishers" in path:
        path = path.replace("1234567890123456789", "gemini-2.0-flash-001")
    body = next(
        (value for word, value in BODIES.items() if word in path),
        {"displayName": "a"} if route.method == "PATCH" else {},
    )
    answer = await client.request(route.method, path, json=body if route.method in ("POST", "PATCH") else None)
    return answer.status_code, answer.text.replace(project, "P")
