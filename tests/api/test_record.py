"""What the audit log has of requests: each act by the name of what it made or changed, each sign-in, no words of a
refused body, and no more than so much of what a stranger chose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sarto.control.audit import chain, refusal_rate
from sarto.storage.database.tables import metadata
from tests.api.doors import House, house

P = "/v1/projects/demo/locations/us-central1"
BASE = "gemini-2.0-flash-001"
KEY_RING = f"{P}/keyRings"
Entry = dict[str, Any]


def entries(home: House) -> list[Entry]:
    return [json.loads(line)["protoPayload"] for line in chain.export(home.services.database)]


async def until(home: House, holds: Callable[[list[Entry]], bool]) -> list[Entry]:
    """The entries, once they are as wanted: those of refusals and sign-ins come a moment behind the answer."""
    for _ in range(200):
        found = entries(home)
        if holds(found):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"not in the record: {[(one['methodName'], one['resourceName']) for one in found]}")


def acts(found: list[Entry]) -> list[tuple[str, str]]:
    return [(one["methodName"].rpartition(".")[2], one["resourceName"].partition("/objects/")[2]) for one in found]


def test_every_write_of_an_object_has_an_entry_with_its_name(tmp_path: Path) -> None:
    async def story() -> list[Entry]:
        async with house(tmp_path) as home:
            home.account("storage-admin", "roles/owner")

            async def ask(method: str, path: str, body: Any = None, **more: Any) -> None:
                answer = await home.ask("storage-admin", method, path, body, **more)
                assert answer.status_code < 400, answer.text

            await ask("POST", "/storage/v1/b?project=demo", {"name": "a-bucket"})
            upload = "/upload/storage/v1/b/a-bucket/o?uploadType=media&name="
            await ask("POST", f"{upload}one", content=b"1")
            await ask("POST", f"{upload}one", content=b"2")
            await ask("PATCH", "/storage/v1/b/a-bucket/o/one", {"metadata": {"a": "b"}})
            await ask("POST", "/storage/v1/b/a-bucket/o/one/copyTo/b/a-bucket/o/two", {})
            await ask("POST", "/storage/v1/b/a-bucket/o/one/rewriteTo/b/a-bucket/o/three", {})
            await ask("POST", "/storage/v1/b/a-bucket/o/two/moveTo/o/four", {})
            await ask("POST", "/storage/v1/b/a-bucket/o/five/compose", {"sourceObjects": [{"name": "one"}]})
            await ask("PUT", "/a-bucket/six", content=b"x")
            await ask("DELETE", "/a-bucket/six")
            part = (
                "--b\r\nContent-Type: application/http\r\n\r\nDELETE /storage/v1/b/a-bucket/o/five HTTP/1.1\r\n\r\n\r\n"
            )
            batch = {"Content-Type": "multipart/mixed; boundary=b"}
            token = {"Authorization": f"Bearer {home.tokens['storage-admin']}"}
            answer = await home.client.post(
                "/batch/storage/v1", content=f"{part}--b--\r\n".encode(), headers=batch | token
            )
            assert b"204" in answer.content, answer.content
            begun = await home.ask("storage-admin", "POST", "/a-bucket/seven?uploads")
            number = begun.text.partition("<UploadId>")[2].partition("<")[0]
            part_of = await home.ask(
                "storage-admin", "PUT", f"/a-bucket/seven?partNumber=1&uploadId={number}", content=b"p"
            )
            tag = part_of.headers["etag"]
            listed = f"<C><Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part></C>"
            await ask("POST", f"/a-bucket/seven?uploadId={number}", content=listed.encode())
            await ask("GET", "/storage/v1/b/a-bucket/o/seven")
            return entries(home)

    found = asyncio.run(story())
    objects = [one for one in found if "/objects/" in one["resourceName"]]
    assert acts(objects) == [
        ("create", "one"), ("delete", "one"), ("create", "one"), ("update", "one"), ("create", "two"),
        ("create", "three"), ("create", "four"), ("delete", "two"), ("create", "five"), ("create", "six"),
        ("delete", "six"), ("delete", "five"), ("create", "seven"),
    ]  # fmt: skip
    for one in objects:
        assert one["resourceName"].startswith("projects/_/buckets/a-bucket/objects/")
        assert one["authenticationInfo"]["principalEmail"] == "storage-admin@demo.iam.gserviceaccount.com"
    assert [one["resourceName"] for one in found if one["methodName"] == "storage.buckets.create"] == [
        "projects/_/buckets/a-bucket"
    ]


def test_every_create_names_what_it_made(tmp_path: Path) -> None:
    creates: dict[str, tuple[str, Any]] = {
        "CreateKeyRing": (f"{KEY_RING}?keyRingId=r", {}),
        "CreateCryptoKey": (f"{KEY_RING}/r/cryptoKeys?cryptoKeyId=k", {"purpose": "ENCRYPT_DECRYPT"}),
        "CreateCryptoKeyVersion": (f"{KEY_RING}/r/cryptoKeys/k/cryptoKeyVersions", {}),
        "CreateServiceAccount": ("/v1/projects/demo/serviceAccounts", {"accountId": "new-account"}),
        "CreateServiceAccountKey": (
            "/v1/projects/demo/serviceAccounts/new-account@demo.iam.gserviceaccount.com/keys", {},
        ),
        "CreateWebhook": (f"{P}/webhooks", {"uri": "https://8.8.8.8/hook"}),
        "CreateEndpoint": (f"{P}/endpoints", {"displayName": "e"}),
    }  # fmt: skip

    async def story() -> tuple[dict[str, Any], list[Entry]]:
        async with house(tmp_path) as home:
            home.account("an-owner", "roles/owner")
            made = {}
            for method, (path, body) in creates.items():
                answer = await home.ask("an-owner", "POST", path, body)
                assert answer.status_code == 200, answer.text
                made[method] = answer.json().get("response", answer.json())
            return made, entries(home)

    made, found = asyncio.run(story())
    named = {one["methodName"].rpartition(".")[2]: one["resourceName"] for one in found}
    for method in creates:
        assert named[method].rpartition("/")[2] == made[method]["name"].rpartition("/")[2], method


def test_sign_ins_and_failed_ones_have_entries_and_a_flood_is_counted(tmp_path: Path) -> None:
    async def story() -> list[Entry]:
        async with house(tmp_path) as home:
            home.account("an-owner", "roles/owner")
            form = {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"}
            good = await home.client.post("/sts/token", data=form | {"subject_token": home.tokens["an-owner"]})
            assert good.status_code == 200
            bad = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "CANARY"}
            await home.client.post("/token", data=bad)
            for _ in range(100):
                answer = await home.client.get(f"{P}/endpoints", headers={"Authorization": "Bearer CANARY"})
                assert answer.status_code == 401
            await until(home, lambda found: sum(one["status"].get("code") == 16 for one in found) == 60)
            database = home.services.database
        return [json.loads(line)["protoPayload"] for line in chain.export(database)]

    found = asyncio.run(story())
    exchange = next(one for one in found if one["methodName"].endswith("ExchangeToken"))
    assert exchange["authenticationInfo"]["principalEmail"] == "an-owner@demo.iam.gserviceaccount.com"
    assert exchange["status"] == {}
    failed = [one for one in found if one["status"].get("code") == 16]
    assert len(failed) == refusal_rate.EACH_ADDRESS and failed[0]["methodName"] == "google.oauth2.Token"
    assert failed[0]["requestMetadata"]["callerIp"] == "127.0.0.1"
    assert [one["status"]["message"] for one in found if "more refusals" in one["status"].get("message", "")] == [
        "41 more refusals"
    ]
    assert "CANARY" not in json.dumps(found)


def test_refusals_of_a_stranger_take_no_more_than_so_much_room(tmp_path: Path) -> None:
    async def story() -> list[str]:
        async with house(tmp_path) as home:
            home.account("a-nobody")
            for _ in range(100):
                answer = await home.ask("a-nobody", "GET", f"/v1/projects/demo/serviceAccounts/{'x' * 60_000}")
                assert answer.status_code in (400, 403)
            await until(home, lambda found: len(found) >= refusal_rate.EACH_PRINCIPAL)
            database = home.services.database
        return list(chain.export(database))

    lines = asyncio.run(story())
    assert len(lines) == refusal_rate.EACH_PRINCIPAL + 1 and "40 more refusals" in lines[-1]
    assert max(map(len, lines)) < 1500 and all(line.count("x" * 100) < 4 for line in lines)


def test_a_refused_request_leaves_no_word_of_its_body_query_or_heads_in_the_database(tmp_path: Path) -> None:
    bodies: list[tuple[str, str, Any]] = [
        ("POST", f"{P}/tuningJobs", {"CANARYKEY": 1, "supervisedTuningSpec": {"CANARYKEY": "CANARYVALUE"}}),
        ("POST", f"{P}/tuningJobs", {"baseModel": "CANARYVALUE", "labels": {"CANARYKEY": "CANARYVALUE" * 20}}),
        ("POST", f"{P}/batchPredictionJobs", {"model": "CANARYVALUE", "CANARYKEY": {}}),
        ("POST", f"{P}/webhooks", {"uri": "CANARYVALUE://x", "displayName": 7}),
        ("POST", f"{P}/endpoints", {"displayName": 5, "labels": {"CANARYKEY": 4}}),
        ("POST", f"{P}/endpoints/7:generateContent", {"contents": [{"parts": [{"CANARYKEY": "CANARYVALUE"}]}]}),
        ("POST", f"{P}/publishers/google/models/x:countTokens", {"contents": "CANARYVALUE"}),
        ("POST", f"{P}:evaluateInstances", {"rougeInput": {"instances": "CANARYVALUE", "CANARYKEY": 1}}),
        ("POST", "/storage/v1/b?project=demo", {"name": "CANARYVALUE"}),
        ("POST", "/v1/projects/demo/serviceAccounts", {"accountId": "CANARYVALUE"}),
        ("POST", "/v3/projects", {"projectId": "CANARYVALUE"}),
        ("POST", "/v2/entries:list", {"filter": "CANARYVALUE", "resourceNames": ["projects/demo"]}),
        ("POST", "/v1/projects/demo:setIamPolicy", {"policy": {"bindings": [{"role": "CANARYVALUE", "members": []}]}}),
        ("GET", f"{P}/endpoints?filter=displayName%3D%22CANARYVALUE%22&CANARYKEY=1", None),
    ]

    async def story() -> dict[str, str]:
        async with house(tmp_path) as home:
            home.account("an-owner", "roles/owner")
            home.account("a-nobody")
            await home.ask("an-owner", "POST", "/storage/v1/b?project=demo", {"name": "rows-bucket"})
            upload = "/upload/storage/v1/b/rows-bucket/o?uploadType=media&name=rows.jsonl"
            row = b'{"contents":[{"role":"CANARYROLE","parts":[{"CANARYKEY":"CANARYVALUE"}]}]}\n'
            stored = await home.ask("an-owner", "POST", upload, content=row * 20)
            assert stored.status_code == 200, stored.text
            spec = {"trainingDatasetUri": "gs://rows-bucket/rows.jsonl"}
            refused = await home.ask(
                "an-owner", "POST", f"{P}/tuningJobs", {"baseModel": BASE, "supervisedTuningSpec": spec}
            )
            assert refused.status_code == 400 and "CANARYROLE" in refused.text, refused.text
            heads = {"x-goog-meta-a": "CANARYHEAD", "user-agent": "CANARYHEAD", "x-goog-encryption-key": "CANARYHEAD"}
            for name in ("an-owner", "a-nobody"):
                for method, path, body in bodies:
                    answer = await home.ask(name, method, path, body)
                    assert answer.status_code >= 400, (path, answer.text)
                token = {"Authorization": f"Bearer {home.tokens[name]}"}
                await home.client.put("/a-bucket/x", content=b"CANARYBODY", headers=heads | token)
                await home.client.post("/batch/storage/v1", content=b"CANARYBODY", headers=heads | token)
            database = home.services.database
        found = {}
        with database.reading() as connection:
            for table in metadata.sorted_tables:
                found[table.name] = "\n".join(map(str, connection.execute(sa.select(table)).all()))
        return found

    found = asyncio.run(story())
    assert (
        '"status":{"code":3,"message":"tuning_job.supervised_tuning_spec.training_dataset_uri' in found["audit_entry"]
    )
    assert [name for name, text in found.items() if "CANARY" in text or "canary" in text] == []
