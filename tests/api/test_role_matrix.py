"""Every route asked by a caller of every role: the answer is a refusal exactly where the table of roles says so."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from sarto.api.http.routing import PUBLIC, SIGNED_IN, Route
from sarto.api.routes import ROUTES
from sarto.control.access.roles import ROLES, SARTO_ADMIN, grants
from tests.api.doors import House, house

NOBODY = ""
IDS = "1234567890123456789"
VALUES = {
    "project": "demo", "location": "us-central1", "api": "v1", "publisher": "google", "store": "default",
    "tensorboard": "1", "bucket": "a-bucket", "object": "an-object", "target_bucket": "a-bucket", "target": "a-copy",
    "account": "spare-account@demo.iam.gserviceaccount.com", "path": "x", "version": "1",
}  # fmt: skip
BODIES: dict[str, Any] = {
    "translateText": {"contents": ["a"], "sourceLanguageCode": "en", "targetLanguageCode": "es"},
    "generateContent": {"contents": [{"parts": [{"text": "a"}]}], "generationConfig": {"maxOutputTokens": 1}},
    "GenerateContent": {"contents": [{"parts": [{"text": "a"}]}], "generationConfig": {"maxOutputTokens": 1}},
    "countTokens": {"contents": [{"parts": [{"text": "a"}]}]},
    "chat/completions": {
        "model": "projects/demo/locations/us-central1/endpoints/7",
        "messages": [{"role": "user", "content": "a"}],
    },
    ":generateAccessToken": {"scope": ["all"]},
    ":deployModel": {"deployedModel": {"model": f"projects/demo/locations/us-central1/models/{IDS}"}},
    "webhooks": {"uri": "https://8.8.8.8/hook"},
    "/storage/v1/b": {"name": "a-bucket"},
    "entries:list": {"resourceNames": ["projects/demo"]},
    "setIamPolicy": {"policy": {"bindings": [], "etag": "never"}},
    "checkDataset": {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": "gs://a-bucket/x.jsonl"},
}


ALSO = {
    "/copyTo/": "storage.objects.create",
    "/rewriteTo/": "storage.objects.create",
    "/moveTo/": "storage.objects.delete",
}
"""What a route asks for besides its own permission."""


def is_checked_alone(route: Route) -> bool:
    """Whether `permission` is all that the route asks for, on the project that the matrix binds roles in."""
    return route.permission not in (PUBLIC, SIGNED_IN)


def expected(route: Route, role: str) -> bool:
    if role == NOBODY:
        return False
    asked = [route.permission, *(also for part, also in ALSO.items() if part in route.path)]
    return all(grants(role, permission) for permission in asked)


async def ask(place: House, name: str, route: Route) -> tuple[int, str]:
    path = re.sub(r"{(\w+)(=\*\*)?}", lambda found: VALUES.get(found[1], IDS), route.path)
    if "publishers" in path:
        path = path.replace(IDS, "gemini-2.0-flash-001")
    body = next((value for word, value in BODIES.items() if word in path), {})
    if route.method == "PATCH":
        body = {"displayName": "a"}
    if route.method == "PATCH" and "keyRings" in path:
        is_version = "cryptoKeyVersions" in path
        path += f"?updateMask={'state' if is_version else 'labels'}"
        body = {"state": "ENABLED"} if is_version else {"labels": {}}
    if path.endswith("/quota"):
        body = {"concurrentJobs": 2}
    if route.method == "PUT":
        body = {"bindings": [], "etag": "never"}
    if path.startswith("/storage/v1/b") and path.count("/") == 3:
        path += "?project=demo"
    answer = await place.ask(name, route.method, path, body if route.method in ("POST", "PATCH", "PUT") else None)
    return answer.status_code, answer.text


def is_refusal(status: int, text: str, permission: str) -> bool:
    """A refusal for want of the permission; storage hides a bucket from those who may see nothing of it."""
    return (status == 403 and "Permission '" in text and "' denied" in text) or (
        permission.startswith("storage.") and status == 404 and "bucket does not exist" in text
    )


@pytest.mark.slow
def test_every_cell_of_routes_and_roles(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("matrix_cells", asyncio.run(_matrix(tmp_path)))


async def _matrix(home: Path) -> int:
    cells, wrong = 0, []
    roles = [NOBODY, *(role for role in ROLES if role != SARTO_ADMIN)]
    async with house(home) as place:
        names = {role: f"caller-{index:02d}" for index, role in enumerate(roles)}
        for role, name in names.items():
            place.account(name, role)
        place.account("spare-account")
        place.account("owner-account", "roles/owner")
        await place.ask("owner-account", "POST", "/storage/v1/b?project=demo", {"name": "a-bucket"})
        for route in [one for one in ROUTES if is_checked_alone(one)]:
            answers = await _column(place, route, names)
            for role, (status, text) in answers.items():
                cells += 1
                if is_refusal(status, text, route.permission) == expected(route, role) or status == 401:
                    wrong.append((route.method, route.path, route.permission, role, status, text[:200]))
    assert wrong == [], f"{len(wrong)} of {cells} cells: " + "\n".join(map(str, wrong[:40]))
    return cells


async def _column(place: House, route: Route, names: dict[str, str]) -> dict[str, tuple[int, str]]:
    """The answers of a route to every role: at once, except where a caller may delete the bucket before the next."""
    if "{bucket}" not in route.path:
        found = await asyncio.gather(*(ask(place, name, route) for name in names.values()))
        return dict(zip(names, found, strict=True))
    answers = {}
    for role, name in names.items():
        if route.method == "DELETE":
            await place.ask("owner-account", "POST", "/storage/v1/b?project=demo", {"name": "a-bucket"})
        answers[role] = await ask(place, name, route)
    await place.ask("owner-account", "POST", "/storage/v1/b?project=demo", {"name": "a-bucket"})
    return answers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_foreign_project_costs_the_same_queries_as_one_that_does_not_exist(tmp_path: Path, method: str) -> None:
    asyncio.run(_same_work(tmp_path, method))


async def _same_work(home: Path, method: str) -> None:
    async with house(home) as place:
        place.account("stranger", "roles/owner", "elsewhere")
        seen: list[str] = []

        def note(_c: object, _u: object, statement: str, values: object, *_: object) -> None:
            if project in str(values):
                seen.append(statement)

        engine: Engine = place.services.database.engine
        path = "/v1/projects/{}/locations/us-central1/" + ("tuningJobs" if method == "GET" else "tuningJobs/7:cancel")
        await place.ask("stranger", method, path.format("elsewhere"))
        works, project = [], ""
        for project in ("demo", "nobody-here"):
            sa.event.listen(engine, "before_cursor_execute", note)
            answer = await place.ask("stranger", method, path.format(project), {} if method == "POST" else None)
            sa.event.remove(engine, "before_cursor_execute", note)
            assert answer.status_code == 403
            works.append(list(seen))
            seen.clear()
        assert works[0] == works[1] != []
