"""Names and URIs in bodies and paths that would lead out of the home: N tried, none of them reads or writes outside.

Object names in paths and uploads have a test of their own beside the storage conformance tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.api.doors import House, house

PLACE = "/v1/projects/demo/locations/us-central1"
SECRET = "CANARY-of-another-folder"


def uris(outside: Path) -> Iterator[str]:
    """A file beside the home, in every spelling that some program reads as a file or as a way up to it."""
    plain = str(outside)
    ways = [plain, f"..{plain}", f"../../../../../..{plain}", f"a/../../../../../..{plain}", f"./{plain}", f"~{plain}"]
    ways += [way.replace("/", "\\") for way in ways] + [way.replace("/", "%2F").replace(".", "%2e") for way in ways]
    for way in ways:
        yield way
        for scheme in (
            "file://",
            "file:",
            "file://localhost",
            "FILE://",
            "local://",
            "gs:",
            "s3://",
            "http://",
            "gs://../",
        ):
            yield f"{scheme}{way}"
        yield f"gs://a-bucket/{way}"
        yield f"gs://{way}/x.jsonl"
        yield f"gs://a-bucket/{way}\0.jsonl"


def bodies(uri: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every field of the API that names data or a place for it."""
    spec, open_model = {"trainingDatasetUri": uri}, "qwen/qwen3@qwen3-0.6b"
    source = {"instancesFormat": "jsonl", "gcsSource": {"uris": [uri]}}
    target = {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": uri}}
    config = {"metrics": [{"exactMatchSpec": {}}], "outputConfig": {"gcsDestination": {"outputUriPrefix": uri}}}
    good = {"trainingDatasetUri": "gs://a-bucket/train.jsonl", "validationDatasetUri": "gs://a-bucket/train.jsonl"}
    for job in (
        {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec},
        {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": good | {"validationDatasetUri": uri}},
        {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": good | {"evaluationConfig": config}},
        {"baseModel": open_model, "supervisedTuningSpec": good, "outputUri": uri},
        {"baseModel": open_model, "supervisedTuningSpec": good, "outputUri": "gs://a-bucket/o", "customBaseModel": uri},
        {"baseModel": uri, "supervisedTuningSpec": good},
        {"preTunedModel": {"tunedModelName": uri}, "supervisedTuningSpec": good},
    ):
        yield "POST", f"{PLACE}/tuningJobs", job
    model = "publishers/google/models/gemini-2.0-flash-001"
    yield "POST", f"{PLACE}/batchPredictionJobs", {"model": model, "inputConfig": source, "outputConfig": target}
    yield "POST", f"{PLACE}:checkDataset", {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": uri}
    yield "POST", f"{PLACE}:showExample", {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": uri}
    yield "POST", "/storage/v1/b?project=demo", {"name": uri}
    yield "POST", "/v3/projects", {"projectId": uri}
    yield "POST", "/v1/projects/demo/serviceAccounts", {"accountId": uri}


def paths(uri: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every kind of id that a path or a query holds."""
    word = quote(uri, safe="")
    for path in ("tuningJobs/{}", "tuningJobs/{}/dataReport", "tuningJobs/{}/evaluation", "models/{}", "endpoints/{}",
                 "operations/{}", "batchPredictionJobs/{}", "webhooks/{}", "keyRings/{}", "keyRings/r/cryptoKeys/{}",
                 "metadataStores/default/contexts/{}", "metadataStores/default/artifacts/{}"):  # fmt: skip
        yield "GET", f"{PLACE}/{path.format(word)}", {}
    yield "POST", f"{PLACE}/keyRings?keyRingId={word}", {}
    yield "POST", f"{PLACE}/models/{word}:export", {"outputConfig": {"exportFormatId": "adapter"}}
    yield "GET", f"/v1/projects/demo/serviceAccounts/{word}", {}
    yield "GET", f"/v1/projects/{word}/locations/us-central1/tuningJobs", {}


def test_no_name_in_a_body_or_a_path_leaves_the_home(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    outside = tmp_path / "outside" / "secret.jsonl"
    outside.parent.mkdir()
    outside.write_text(SECRET)
    tried = asyncio.run(_try_all(tmp_path, outside))
    print(f"{tried} tried, {tried} kept inside")
    record_property("path_escapes_tried", tried)
    assert tried > 5000
    assert outside.read_text() == SECRET
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "outside"]
    assert list(outside.parent.iterdir()) == [outside]


async def _try_all(root: Path, outside: Path) -> int:
    tried = 0
    async with house(root / "home") as place:
        place.account("owner-account", "roles/owner")
        await place.ask("owner-account", "POST", "/storage/v1/b?project=demo", {"name": "a-bucket"})
        row = (
            b'{"contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]}]}\n'
        )
        place.services.buckets.put_bytes("a-bucket", "train.jsonl", row)
        for uri in set(uris(outside)):
            for method, path, body in (*bodies(uri), *paths(uri)):
                await _try(place, method, path, body)
                tried += 1
    return tried


async def _try(place: House, method: str, path: str, body: dict[str, Any]) -> None:
    answer = await place.ask("owner-account", method, path, body if method == "POST" else None)
    assert answer.status_code < 500, (method, path, body, answer.text)
    assert SECRET not in answer.text, (method, path, body)
    if "file:" in str(body).lower():
        assert answer.status_code >= 400, f"a file:// URI was taken: {body} {answer.text}"
