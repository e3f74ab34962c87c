"""Files under an API key, on both databases: pages in both orders, purposes, rights, and the objects that they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.api.doors import house
from tests.control.conftest import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]

FILES = "/openai/v1/files"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_files_are_paged_in_both_orders(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else ""

    async def told() -> None:
        async with house(tmp_path, database_url=url) as place:
            email = place.account("owner-account", "roles/owner")
            place.account("viewer-account", "roles/aiplatform.viewer")
            keys = f"/v1/projects/-/serviceAccounts/{email}/apiKeys"
            bearer = (await place.ask("owner-account", "POST", keys, {})).json()["keyString"]
            headers = {"Authorization": f"Bearer {bearer}"}

            async def get(path: str) -> Any:
                answer = await place.client.get(path, headers=headers)
                assert answer.status_code == 200, answer.text
                return answer.json()

            assert (await get(FILES))["data"] == []
            made = []
            for number, purpose in enumerate(["fine-tune", "user_data", "fine-tune"]):
                form = {"data": {"purpose": purpose}, "files": {"file": (f"../{number}.jsonl", b"{}")}}
                answer = await place.client.post(FILES, headers=headers, **form)
                assert answer.status_code == 200 and answer.json()["filename"] == f"{number}.jsonl"
                made.append(answer.json()["id"])
            for order, wanted in (("asc", made), ("desc", made[::-1])):
                seen, after = [], ""
                while True:
                    page = await get(f"{FILES}?limit=1&order={order}" + (f"&after={after}" if after else ""))
                    seen += [one["id"] for one in page["data"]]
                    after = page["last_id"]
                    if not page["has_more"]:
                        break
                assert seen == wanted
            assert [one["id"] for one in (await get(f"{FILES}?purpose=user_data"))["data"]] == [made[1]]
            objects = (await get("/storage/v1/b/sarto-demo-files/o"))["items"]
            assert [one["name"] for one in objects] == [f"{made[n]}/{n}.jsonl" for n in range(3)]
            refused = await place.ask("viewer-account", "GET", f"{FILES}/{made[0]}/content")
            assert refused.status_code == 403 and refused.json()["error"]["type"] == "permission_error"
            gone = await place.client.delete(f"{FILES}/{made[0]}", headers=headers)
            assert gone.json() == {"id": made[0], "object": "file", "deleted": True}
            assert (await place.client.get(f"{FILES}/{made[0]}", headers=headers)).status_code == 404
            empty = await place.client.post(
                FILES, headers=headers, data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"")}
            )
            assert empty.status_code == 400 and empty.json()["error"]["param"] == "file"
            assert (await get("/openai/v1/fine_tuning/jobs"))["data"] == []

    asyncio.run(told())
