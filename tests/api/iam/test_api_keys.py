"""API keys: made and shown once, stored as digests, in the audit log, and ended by revoking them or their account."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sarto.control.access import account_store
from sarto.storage.database.tables import api_key
from tests.api.doors import House, house

MODELS = "/openai/v1/models"


def keys_of(email: str) -> str:
    return f"/v1/projects/-/serviceAccounts/{email}/apiKeys"


async def status_with(place: House, bearer: str) -> int:
    answer = await place.client.get(MODELS, headers={"Authorization": f"Bearer {bearer}"})
    return answer.status_code


def test_a_key_is_accepted_until_it_is_revoked(tmp_path: Path) -> None:
    async def told() -> None:
        async with house(tmp_path) as place:
            email = place.account("tuner-account", "roles/aiplatform.user")
            place.account("owner-account", "roles/owner")
            made = await place.ask("owner-account", "POST", keys_of(email), {"displayName": "laptop"})
            assert made.status_code == 200, made.text
            key: dict[str, Any] = made.json()
            bearer = key["keyString"]
            assert bearer.startswith("sk-sarto-") and len(bearer) == len("sk-sarto-") + 43
            assert await status_with(place, bearer) == 200
            assert await status_with(place, bearer[:-1]) == 401
            listed = (await place.ask("owner-account", "GET", keys_of(email))).json()["apiKeys"]
            assert [one["displayName"] for one in listed] == ["laptop"] and "keyString" not in listed[0]
            with place.services.database.reading() as connection:
                row = connection.execute(sa.select(api_key)).one()
            assert row.digest == hashlib.sha256(bearer.encode()).hexdigest()
            assert bearer not in str(row)
            gone = await place.ask("owner-account", "DELETE", f"{keys_of(email)}/{key['uid']}")
            assert gone.status_code == 200 and await status_with(place, bearer) == 401
            again = await place.ask("owner-account", "DELETE", f"{keys_of(email)}/{key['uid']}")
            assert again.status_code == 404
            log = await place.ask("owner-account", "POST", "/v2/entries:list", {"resourceNames": ["projects/demo"]})
            payloads = [one["protoPayload"] for one in log.json()["entries"]]
            methods = {one["methodName"] for one in payloads if "/apiKeys/" in one["resourceName"]}
            admin = "google.iam.admin.v1"
            assert methods == {f"{admin}.CreateServiceAccountKey", f"{admin}.DeleteServiceAccountKey"}
            assert bearer not in log.text

    asyncio.run(told())


def test_a_key_has_the_rights_and_the_end_of_its_account(tmp_path: Path) -> None:
    async def told() -> None:
        async with house(tmp_path) as place:
            email = place.account("tuner-account", "roles/aiplatform.viewer")
            place.account("owner-account", "roles/owner")
            bearer = (await place.ask("owner-account", "POST", keys_of(email), {})).json()["keyString"]
            headers = {"Authorization": f"Bearer {bearer}"}
            jobs = "/v1/projects/demo/locations/us-central1/tuningJobs"
            assert (await place.client.get(jobs, headers=headers)).status_code == 200
            assert (await place.client.post(jobs, headers=headers, json={})).status_code == 403
            account = f"/v1/projects/demo/serviceAccounts/{email}"
            await place.ask("owner-account", "POST", f"{account}:disable", {})
            assert await status_with(place, bearer) == 401
            await place.ask("owner-account", "POST", f"{account}:enable", {})
            assert await status_with(place, bearer) == 200
            await place.ask("owner-account", "DELETE", account)
            await place.ask(
                "owner-account", "POST", "/v1/projects/demo/serviceAccounts", {"accountId": "tuner-account"}
            )
            assert await status_with(place, bearer) == 401

    asyncio.run(told())


def test_who_may_make_keys_and_for_which_project(tmp_path: Path) -> None:
    async def told() -> None:
        async with house(tmp_path, max_key_days=30) as place:
            email = place.account("tuner-account", "roles/aiplatform.user")
            place.account("owner-account", "roles/owner")
            place.account("stranger-account", "roles/owner", "elsewhere")
            for caller in ("tuner-account", "stranger-account"):
                assert (await place.ask(caller, "POST", keys_of(email), {})).status_code == 403
            foreign = await place.ask("owner-account", "POST", keys_of(email), {"project": "elsewhere"})
            missing = await place.ask("owner-account", "POST", keys_of(email), {"project": "nobody-here"})
            assert foreign.status_code == missing.status_code == 403
            made = (await place.ask("owner-account", "POST", keys_of(email), {})).json()
            assert made["expireTime"] > made["createTime"]
            late = await place.ask("owner-account", "POST", keys_of(email), {"expireTime": "2999-01-01T00:00:00Z"})
            early = await place.ask("owner-account", "POST", keys_of(email), {"expireTime": "2001-01-01T00:00:00Z"})
            assert late.status_code == early.status_code == 400 and "max_key_days" in late.text
            for _ in range(account_store.MOST_KEYS - 1):
                await place.ask("owner-account", "POST", keys_of(email), {})
            full = await place.ask("owner-account", "POST", keys_of(email), {})
            assert full.status_code == 400 and "revoke one" in full.text

    asyncio.run(told())
