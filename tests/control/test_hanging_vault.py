"""A Vault that stops answering in the middle: what needs it ends in time and says why, what does not goes on, and it
all goes on when the Vault speaks again. Over HTTP, with real uploads and real child processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from sarto.control.access import authorization, projects
from sarto.control.context import Control
from sarto.control.jobs import events
from sarto.control.keys.key_use import ROLE
from sarto.control.runs.supervisor import Supervisor
from sarto.names import ResourceName
from sarto.storage.buckets.store import Buckets
from sarto.storage.encryption import external_kms
from sarto.storage.encryption.key_service import KeyService
from sarto.storage.encryption.sealer import Sealer
from tests.api.doors import House, house
from tests.control.homes import add_project, create, member, read, state, wait_for_end, wait_until
from tests.control.keys.vault import Vault

pytest.importorskip("hvac")
KEY = "projects/demo/locations/us-central1/keyRings/far/cryptoKeys/key"
SECONDS = 2.0
"""For a call, in place of five."""


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setattr(external_kms, "CALL_SECONDS", SECONDS)
    monkeypatch.setattr(external_kms, "TURN_SECONDS", 0.1)
    monkeypatch.setattr(external_kms, "PAUSE_SECONDS", 0.5)
    with Vault() as served:
        yield served


def uri_of(vault: Vault) -> str:
    return f"hcvault+http://{vault.address}/transit/keys/sarto"


@pytest.fixture
def far(control: Control, vault: Vault) -> Control:
    """A control that has the key in the Vault, which the service agent may use."""
    number = member(control).project
    found = projects.find(control.database, "demo")
    assert found is not None
    key = KEY.replace("demo", number)
    with control.database.transaction() as connection:
        authorization.bind(connection, key, ROLE, f"serviceAccount:{found.agent}")
    control.database.rights_changes += 1
    keys = KeyService(control.database, control.sealer.keys.material, {key: uri_of(vault)}, "root")
    sealer = Sealer(keys, control.sealer.private)
    return replace(control, buckets=Buckets(control.database, control.home, sealer))


def said(control: Control, name: ResourceName) -> str:
    return " ".join(one["message"] for one in events.list_events(control, member(control), name)[0])


def test_a_claim_waits_for_it_and_other_jobs_run(
    far: Control, vault: Vault, supervise: Callable[[Control], Supervisor]
) -> None:
    add_project(far, "other")
    keyed = create(far, encryptionSpec={"kmsKeyName": KEY})
    vault.speaks.clear()
    began, before = time.monotonic(), vault.calls
    supervise(far)
    wait_until(lambda: vault.calls > before)  # it is claimed, and asks
    other = create(far, "gs://data-other/train.jsonl", project="other")
    assert wait_for_end(far, other)["state"] == "JOB_STATE_SUCCEEDED"
    assert time.monotonic() - began < 10 * SECONDS
    assert "did not encrypt: no answer within 2 seconds" in said(far, keyed)
    assert state(far, keyed) in ("PENDING", "RUNNING", "PAUSED")
    vault.speaks.set()
    assert wait_for_end(far, keyed)["state"] == "JOB_STATE_SUCCEEDED"


def test_a_run_at_work_is_paused_with_the_reason_and_goes_on(
    far: Control, vault: Vault, supervise: Callable[[Control], Supervisor]
) -> None:
    supervise(far)
    keyed = create(far, "slow", encryptionSpec={"kmsKeyName": KEY})
    wait_until(lambda: state(far, keyed) == "RUNNING")
    vault.speaks.clear()
    wait_until(lambda: state(far, keyed) == "PAUSED")
    assert "did not encrypt: no answer within 2 seconds" in read(far, keyed)["error"]["message"]
    vault.speaks.set()
    assert wait_for_end(far, keyed, 30)["state"] == "JOB_STATE_SUCCEEDED"


async def upload(place: House, bucket: str, name: str = "a") -> tuple[httpx.Response, float]:
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {place.tokens['owner-account']}"}
    answer = await place.client.post(
        f"/upload/storage/v1/b/{bucket}/o", params={"uploadType": "media", "name": name}, content=b"x", headers=headers
    )
    return answer, time.monotonic() - began


async def make(place: House, bucket: str, **fields: Any) -> None:
    body = {"name": bucket, "location": "us-central1", **fields}
    answer = await place.ask("owner-account", "POST", "/storage/v1/b", body, params={"project": "demo"})
    assert answer.status_code == 200, answer.text


def test_uploads_under_its_key_fail_in_time_and_hold_up_nobody(tmp_path: Path, vault: Vault) -> None:
    async def told() -> None:
        settings = {"external_keys": {KEY: uri_of(vault)}, "vault_token": "root"}
        async with house(tmp_path, **settings) as place:
            place.account("owner-account", "roles/owner")
            found = projects.find(place.services.database, "demo")
            assert found is not None
            with place.services.database.transaction() as connection:
                key = KEY.replace("demo", found.number)
                authorization.bind(connection, key, ROLE, f"serviceAccount:{found.agent}")
            place.services.database.rights_changes += 1
            await make(place, "sealed-rows", encryption={"defaultKmsKeyName": KEY})
            await make(place, "plain-rows")
            assert (await upload(place, "sealed-rows", "before"))[0].status_code == 200
            vault.speaks.clear()
            held = [asyncio.create_task(upload(place, "sealed-rows", f"held-{number}")) for number in range(40)]
            await asyncio.sleep(0)
            waits = []
            for number in range(10):
                answer, seconds = await upload(place, "plain-rows", str(number))
                assert answer.status_code == 200, answer.text
                waits.append(seconds)
            assert sorted(waits)[-2] < SECONDS, waits
            for answer, seconds in await asyncio.gather(*held):
                assert 400 <= answer.status_code < 504 and "did not encrypt" in answer.text, answer.text
                assert seconds < 6 * SECONDS
            assert not list(tmp_path.rglob("spool-*"))
            download = "/download/storage/v1/b/sealed-rows/o/before"
            refused = await place.ask("owner-account", "GET", download, params={"alt": "media"})
            assert refused.status_code >= 400 and "did not decrypt" in refused.text
            vault.speaks.set()
            until = time.monotonic() + 20
            while (await upload(place, "sealed-rows", "after"))[0].status_code != 200:
                assert time.monotonic() < until
                await asyncio.sleep(0.1)
            names = await place.ask("owner-account", "GET", "/storage/v1/b/sealed-rows/o")
            assert [one["name"] for one in names.json()["items"]] == ["after", "before"], "no half of a held one"
            assert (await place.ask("owner-account", "GET", download, params={"alt": "media"})).content == b"x"

    asyncio.run(told())
