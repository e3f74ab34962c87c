"""Accounts that hold a role on the service: no role in a project reaches them, wherever it is bound."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from sarto.api.http.routing import Route
from sarto.api.routes import ROUTES
from sarto.control.access import account_store, authorization, projects
from sarto.control.access.roles import ROLES, SARTO_ADMIN
from sarto.errors import InvalidArgument, Unauthenticated
from sarto.storage.database.tables import service_account_key
from tests.api.doors import House, house

KEY = "0123456789abcdef"
ADMIN = account_store.ADMIN_EMAIL
BODIES = {
    ":generateAccessToken": {"scope": ["all"]},
    ":generateIdToken": {"audience": "me"},
    ":setIamPolicy": {"policy": {"bindings": []}},
    ":testIamPermissions": {"permissions": ["iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.actAs"]},
}
OF_ACCOUNTS = [route for route in ROUTES if "{account}" in route.path]


async def ask(place: House, caller: str, route: Route, project: str, email: str) -> tuple[int, str]:
    path = route.path.format(project=project, account=email, key=KEY)
    body = next((value for verb, value in BODIES.items() if path.endswith(verb)), {})
    answer = await place.ask(caller, route.method, path, body if route.method == "POST" else None)
    return answer.status_code, answer.text


def test_no_role_of_a_project_reaches_an_account_of_the_service(tmp_path: Path) -> None:
    asyncio.run(_matrix(tmp_path))


async def _matrix(home: Path) -> None:
    async with house(home) as place:
        other = place.account("other-admin", SARTO_ADMIN)
        roles = {role: f"caller-{index:02d}" for index, role in enumerate(ROLES) if role != SARTO_ADMIN}
        for role, name in roles.items():
            email = place.account(name, role)
            place.bind(email, role, f"serviceAccounts/{other}")
            with place.services.database.transaction() as connection:
                for on in ("projects/1", f"projects/1/serviceAccounts/{ADMIN}"):
                    authorization.bind(connection, on, role, f"serviceAccount:{email}")
        place.services.database.rights_changes += 1
        wrong = []
        for route in OF_ACCOUNTS:
            for project, email in (("sys", ADMIN), ("1", ADMIN), ("-", ADMIN), ("demo", ADMIN), ("demo", other)):
                for role, name in roles.items():
                    status, text = await ask(place, name, route, project, email)
                    is_refused = text == "{}" if route.path.endswith(":testIamPermissions") else status == 403
                    if not is_refused and '"UNIMPLEMENTED"' not in text:
                        wrong.append((route.method, route.path, project, email, role, status, text[:100]))
        assert wrong == []


def test_another_administrator_manages_them_and_gives_nobody_else_a_right_on_them(tmp_path: Path) -> None:
    async def told() -> None:
        async with house(tmp_path) as place:
            email = place.account("other-admin", SARTO_ADMIN)
            place.account("owner-account", "roles/owner")
            path = f"/v1/projects/sys/serviceAccounts/{ADMIN}"
            listed = await place.ask("other-admin", "GET", f"{path}/keys")
            assert listed.status_code == 200 and len(listed.json()["keys"]) == 1
            made = await place.ask("other-admin", "POST", f"{path}:generateAccessToken", {"scope": ["all"]})
            assert made.status_code == 200
            creator = [{"role": "roles/iam.serviceAccountTokenCreator", "members": [f"serviceAccount:{email}"]}]
            for target in (path, "/v1/projects/sys", f"/v1/projects/demo/serviceAccounts/{email}"):
                wanted = {"policy": {"bindings": creator}}
                refused = await place.ask("other-admin", "POST", f"{target}:setIamPolicy", wanted)
                assert refused.status_code == 400 and "only roles on the service" in refused.text, target
            job = {"serviceAccount": email, "baseModel": "gemini-2.0-flash-001"}
            job |= {"supervisedTuningSpec": {"trainingDatasetUri": "gs://sarto-samples/x.jsonl"}}
            jobs = "/v1/projects/demo/locations/us-central1/tuningJobs"
            refused = await place.ask("owner-account", "POST", jobs, job)
            assert refused.status_code == 403 and "actAs" in refused.text

    asyncio.run(told())


def test_an_account_is_not_taken_for_the_administrator_by_its_name(tmp_path: Path) -> None:
    async def told() -> None:
        async with house(tmp_path) as place:
            place.account("owner-account", "roles/owner")
            body = {"accountId": "sarto-admin", "serviceAccount": {"displayName": "sarto-admin"}}
            made = await place.ask("owner-account", "POST", "/v1/projects/demo/serviceAccounts", body)
            assert made.status_code == 200
            path = account_store.renew_administrator(place.services.database, tmp_path, "demo", "http://x", 0)
            assert ADMIN in path.read_text()

    asyncio.run(told())


def test_nobody_makes_the_address_of_a_service_agent(tmp_path: Path) -> None:
    """An account `service-NUMBER` of a project `gcp-sa-vertex-tune` would have it."""

    async def told() -> None:
        async with house(tmp_path) as place:
            database = place.services.database
            with database.transaction() as connection:
                for taken in ("gcp-sa-vertex-tune", "gcp-sa-anything", "sys", "1"):
                    with pytest.raises(InvalidArgument):
                        projects.insert(connection, taken, 0.0)
            victim = projects.find(database, "demo")
            assert victim is not None
            with database.transaction() as connection:  # as it could be before
                squatter = projects.Project("gcp-sa-vertex-tune", "2", 0.0)
                account = account_store.create(connection, squatter, f"service-{victim.number}", "", 0.0)
                key = account_store.create_key(connection, account, squatter.id, 0.0)
            assert account.email == victim.agent
            token = place.token_of(key["private_key_id"])
            with pytest.raises(Unauthenticated, match="service agent"):
                place.services.authenticator.authenticate(token)

    asyncio.run(told())


def test_a_key_has_at_most_the_life_that_the_settings_say(tmp_path: Path) -> None:
    async def told() -> None:
        async with house(tmp_path, max_key_days=30) as place:
            email = place.account("tuner-account")
            place.account("owner-account", "roles/owner")
            path = f"/v1/projects/demo/serviceAccounts/{email}/keys"
            made = (await place.ask("owner-account", "POST", path, {})).json()
            assert not made["validBeforeTime"].startswith("9999")
            wanted = {"validBeforeTime": "2999-01-01T00:00:00Z"}
            refused = await place.ask("owner-account", "POST", path, wanted)
            assert refused.status_code == 400 and "max_key_days" in refused.text
            with place.services.database.reading() as connection:
                query = sa.select(service_account_key.c.expire_time).where(service_account_key.c.email == ADMIN)
                assert connection.execute(query).scalar() is not None

    asyncio.run(told())
