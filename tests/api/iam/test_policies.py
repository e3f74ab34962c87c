"""Policies and service accounts over the application: shapes of the services they come from, conflicts, refusals."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.api.doors import House, house

PROJECT = "/v1/projects/demo"
VIEWER, USER = "roles/aiplatform.viewer", "roles/aiplatform.user"


def test_a_policy_is_read_changed_and_written_under_its_etag(tmp_path: Path) -> None:
    asyncio.run(_etags(tmp_path))


async def _etags(home: Path) -> None:
    async with house(home) as place:
        place.account("owner-account", "roles/owner")
        ada = "user:ada@example.com"
        first = (await place.ask("owner-account", "POST", f"{PROJECT}:getIamPolicy")).json()
        wanted = {**first, "bindings": [*first["bindings"], {"role": VIEWER, "members": [ada]}]}
        answer = await place.ask("owner-account", "POST", f"{PROJECT}:setIamPolicy", {"policy": wanted})
        assert answer.status_code == 200 and {"role": VIEWER, "members": [ada]} in answer.json()["bindings"]
        late = await place.ask("owner-account", "POST", "/v3/projects/demo:setIamPolicy", {"policy": first})
        assert late.status_code == 409 and late.json()["error"]["status"] == "ABORTED"
        again = (await place.ask("owner-account", "POST", "/v3/projects/demo:getIamPolicy")).json()
        assert again == answer.json()


def test_wrong_roles_and_members_are_refused_by_name(tmp_path: Path) -> None:
    asyncio.run(_words(tmp_path))


async def _words(home: Path) -> None:
    async with house(home) as place:
        place.account("owner-account", "roles/owner")
        for role, member, word in [
            ("roles/nothing", "user:a@example.com", 'no role \\"roles/nothing\\"'),
            ("roles/sarto.admin", "user:a@example.com", "for the whole service"),
            (USER, "allUsers", "never to everybody"),
            (USER, "allAuthenticatedUsers", "never to everybody"),
            (USER, "group:g@example.com", "groups and domains"),
            (USER, "ada@example.com", "is not user:EMAIL"),
            (USER, "serviceAccount:nobody@demo.iam.gserviceaccount.com", "does not exist"),
        ]:
            body = {"policy": {"bindings": [{"role": role, "members": [member]}]}}
            answer = await place.ask("owner-account", "POST", f"{PROJECT}:setIamPolicy", body)
            assert answer.status_code == 400 and word in answer.text, (role, member, answer.text)


def test_a_role_on_one_resource_opens_that_one_only(tmp_path: Path) -> None:
    asyncio.run(_narrow(tmp_path))


async def _narrow(home: Path) -> None:
    async with house(home) as place:
        place.account("owner-account", "roles/owner")
        reader = place.account("reader-account")
        for bucket in ("one-bucket", "two-bucket"):
            made = await place.ask("owner-account", "POST", "/storage/v1/b?project=demo", {"name": bucket})
            assert made.status_code == 200
        path = "/storage/v1/b/one-bucket/iam"
        found = (await place.ask("owner-account", "GET", path)).json()
        assert found["kind"] == "storage#policy" and found["resourceId"] == "projects/_/buckets/one-bucket"
        found["bindings"] = [{"role": "roles/storage.objectViewer", "members": [f"serviceAccount:{reader}"]}]
        assert (await place.ask("owner-account", "PUT", path, found)).status_code == 200
        held = "permissions=storage.objects.get&permissions=storage.objects.create"
        answer = await place.ask("reader-account", "GET", f"{path}/testPermissions?{held}")
        assert answer.json()["permissions"] == ["storage.objects.get"]
        assert (await place.ask("reader-account", "GET", "/storage/v1/b/one-bucket/o")).status_code == 200
        assert (await place.ask("reader-account", "GET", path)).status_code == 403
        hidden = await place.ask("reader-account", "GET", "/storage/v1/b/no-bucket-here/iam")
        assert hidden.status_code == 404
        place.account("stranger", "roles/owner", "elsewhere")
        for what in ("iam", f"iam/testPermissions?{held}", "o"):
            answers = [
                await place.ask("stranger", "GET", f"/storage/v1/b/{b}/{what}") for b in ("one-bucket", "no-one")
            ]
            assert answers[0].status_code == 404
            assert answers[0].text.replace("one-bucket", "B") == answers[1].text.replace("no-one", "B")


def test_an_account_lives_from_create_to_delete(tmp_path: Path) -> None:
    asyncio.run(_account(tmp_path))


async def _account(home: Path) -> None:
    async with house(home) as place:
        place.account("owner-account", "roles/owner")
        accounts = f"{PROJECT}/serviceAccounts"
        body = {"accountId": "worker-one", "serviceAccount": {"displayName": "Worker"}}
        made = (await place.ask("owner-account", "POST", accounts, body)).json()
        email = made["email"]
        assert made["displayName"] == "Worker" and made["name"] == f"projects/demo/serviceAccounts/{email}"
        assert (await place.ask("owner-account", "POST", accounts, body)).status_code == 409
        listed = (await place.ask("owner-account", "GET", accounts)).json()["accounts"]
        assert email in [one["email"] for one in listed]
        key = (await place.ask("owner-account", "POST", f"{accounts}/{email}/keys", {})).json()
        file = json.loads(base64.b64decode(key["privateKeyData"]))
        place.tokens["worker"] = place.token_of(file["private_key_id"])
        place.bind(email, VIEWER)
        jobs = f"{PROJECT}/locations/us-central1/tuningJobs"
        assert (await place.ask("worker", "GET", jobs)).status_code == 200
        for url in (f"{accounts}/{email}", f"/v1/projects/-/serviceAccounts/{email}/keys/{file['private_key_id']}"):
            for verb, expected in (("disable", 401), ("enable", 200)):
                assert (await place.ask("owner-account", "POST", f"{url}:{verb}")).status_code == 200
                assert (await place.ask("worker", "GET", jobs)).status_code == expected
        assert (await place.ask("owner-account", "DELETE", f"{accounts}/{email}")).status_code == 200
        assert (await place.ask("worker", "GET", jobs)).status_code == 401
        assert (await place.ask("owner-account", "GET", f"{accounts}/{email}")).status_code == 404
        await _dated_keys(place, accounts)


async def _dated_keys(place: House, accounts: str) -> None:
    email = (await place.ask("owner-account", "POST", accounts, {"accountId": "worker-two"})).json()["email"]
    place.bind(email, VIEWER)
    for name, field, moment in (
        ("early", "validAfterTime", timedelta(hours=1)),
        ("short", "validBeforeTime", timedelta(seconds=1)),
    ):
        body = {field: (datetime.now(UTC) + moment).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        key = (await place.ask("owner-account", "POST", f"{accounts}/{email}/keys", body)).json()
        place.tokens[name] = place.token_of(key["name"].rpartition("/")[2])
    jobs = f"{PROJECT}/locations/us-central1/tuningJobs"
    assert (await place.ask("early", "GET", jobs)).status_code == 401
    until = time.monotonic() + 4
    while (await place.ask("short", "GET", jobs)).status_code != 401:
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


def test_the_only_administrator_stays(tmp_path: Path) -> None:
    asyncio.run(_last(tmp_path))


async def _last(home: Path) -> None:
    async with house(home) as place:
        admin = json.loads((home / "credentials" / "admin.json").read_bytes())
        place.tokens["admin"] = place.token_of(admin["private_key_id"])
        url = f"/v1/projects/sys/serviceAccounts/{admin['client_email']}"
        for method, path in (("POST", f"{url}:disable"), ("DELETE", url)):
            answer = await place.ask("admin", method, path)
            assert answer.status_code == 400 and "only administrator" in answer.text


def test_the_log_of_a_project_is_for_those_who_may_read_it(tmp_path: Path) -> None:
    asyncio.run(_log(tmp_path))


async def _log(home: Path) -> None:
    async with house(home) as place:
        place.account("owner-account", "roles/owner")
        place.account("viewer-account", VIEWER)
        await place.ask("owner-account", "POST", f"{PROJECT}/serviceAccounts", {"accountId": "worker-one"})
        await place.ask("viewer-account", "POST", f"{PROJECT}/serviceAccounts", {"accountId": "worker-two"})
        body = {"resourceNames": ["projects/demo"]}
        assert (await place.ask("viewer-account", "POST", "/v2/entries:list", body)).status_code == 403
        until = time.monotonic() + 5
        found: list[dict[str, object]] = []
        while len(found) < 3:
            answer = await place.ask("owner-account", "POST", "/v2/entries:list", body)
            found = answer.json().get("entries", [])
            assert time.monotonic() < until
        codes = {(one["protoPayload"]["methodName"], one["protoPayload"]["status"].get("code", 0)) for one in found}  # type: ignore[index]
        create = "google.iam.admin.v1.CreateServiceAccount"
        assert {(create, 0), (create, 7)} <= codes


@pytest.mark.parametrize("resource", ["keyRings/none", "keyRings/none/cryptoKeys/none", "models/7", "endpoints/7"])
def test_what_does_not_exist_has_no_policy(tmp_path: Path, resource: str) -> None:
    async def ask() -> int:
        async with house(tmp_path) as place:
            place.account("an-owner", "roles/owner")
            verb = "GET" if resource.startswith("keyRings") else "POST"
            path = f"/v1/projects/demo/locations/us-central1/{resource}:getIamPolicy"
            return (await place.ask("an-owner", verb, path)).status_code

    assert asyncio.run(ask()) == 404
