"""Writing over what is there, with each role of storage, through every door that writes; and sessions of others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.api.doors import House, house

B, UP = "/storage/v1/b", "/upload/storage/v1/b"


async def _make(place: House) -> dict[str, str]:
    emails = {name: place.account(name) for name in ("creator-account", "keeper-account", "drop-account")}
    place.account("owner-account", "roles/owner")
    for bucket in ("alpha-data", "alpha-drop"):
        made = await place.ask("owner-account", "POST", f"{B}?project=demo", {"name": bucket})
        assert made.status_code == 200, made.text
    for name in ("there", "source"):
        await _upload(place, "owner-account", name)
    for role in ("roles/storage.objectCreator", "roles/storage.objectViewer"):
        place.bind(emails["creator-account"], role, "buckets/alpha-data")
    place.bind(emails["keeper-account"], "roles/storage.objectAdmin", "buckets/alpha-data")
    place.bind(emails["drop-account"], "roles/storage.objectCreator", "buckets/alpha-drop")
    return emails


async def _upload(place: House, who: str, name: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {place.tokens[who]}"}
    path = f"{UP}/alpha-data/o?uploadType=media&name={name}"
    return await place.client.request("POST", path, content=b"text", headers=headers)


async def _writes(place: House, who: str, name: str) -> dict[str, int]:
    """The status of each door that writes an object of that name."""
    headers = {"Authorization": f"Bearer {place.tokens[who]}"}
    found = {"media": (await _upload(place, who, name)).status_code}
    begun = await place.ask(who, "POST", f"{UP}/alpha-data/o?uploadType=resumable&name={name}", {})
    found["resumable"] = begun.status_code
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "copy": (f"{B}/alpha-data/o/source/copyTo/b/alpha-data/o/{name}", {"json": {}}),
        "rewrite": (f"{B}/alpha-data/o/source/rewriteTo/b/alpha-data/o/{name}", {"json": {}}),
        "compose": (f"{B}/alpha-data/o/{name}/compose", {"json": {"sourceObjects": [{"name": "source"}]}}),
    }
    for door, (path, more) in asked.items():
        found[door] = (await place.client.request("POST", path, headers=headers, **more)).status_code
    put = await place.client.request("PUT", f"/alpha-data/{name}", content=b"text", headers=headers)
    copy = {**headers, "x-goog-copy-source": "alpha-data/source"}
    found |= {"xml": put.status_code}
    found["xml copy"] = (await place.client.request("PUT", f"/alpha-data/{name}", headers=copy)).status_code
    return found


def test_who_may_not_delete_objects_replaces_none_through_any_door(tmp_path: Path) -> None:
    async def test() -> None:
        async with house(tmp_path) as place:
            await _make(place)
            assert set((await _writes(place, "creator-account", "there")).values()) == {403}
            assert set((await _writes(place, "keeper-account", "there")).values()) == {200}
            assert (await _upload(place, "creator-account", "new")).status_code == 200
            refused = await place.ask("owner-account", "POST", f"{B}?project=demo", {"name": "sarto-gamma-models"})
            assert refused.status_code == 403 and "reserved" in refused.text

    asyncio.run(test())


def test_an_upload_session_is_for_who_began_it_in_its_bucket(tmp_path: Path) -> None:
    async def test() -> None:
        async with house(tmp_path) as place:
            await _make(place)
            begun = await place.ask("owner-account", "POST", f"{UP}/alpha-data/o?uploadType=resumable&name=mine", {})
            session = begun.headers["x-guploader-uploadid"]
            statuses = []
            for who, bucket in (
                ("drop-account", "alpha-drop"), ("keeper-account", "alpha-data"), ("owner-account", "alpha-drop"),
                ("owner-account", "alpha-data"),
            ):  # fmt: skip
                headers = {"Authorization": f"Bearer {place.tokens[who]}"}
                path = f"{UP}/{bucket}/o?uploadType=resumable&upload_id={session}"
                statuses.append((await place.client.request("PUT", path, content=b"x", headers=headers)).status_code)
            assert statuses == [404, 404, 404, 200]

    asyncio.run(test())
