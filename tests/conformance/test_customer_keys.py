"""Jobs under a customer key, over a real port with the real tiny model: nothing of theirs lies open, and the key
decides who reads it. Each test has a service of its own, for a home is scanned whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sarto.storage.private import place_for

from .conftest import PARENT, ended
from .service import Service, upload, wait_for

KEY = f"{PARENT}/keyRings/ring/cryptoKeys/key"
CANARY = "zyxcanary"
ROLE = "roles/cloudkms.cryptoKeyEncrypterDecrypter"


def rows(count: int = 12) -> bytes:
    """Every row, question and reply, holds the canary."""
    made = []
    for i in range(count):
        question = {"role": "user", "parts": [{"text": f"{CANARY} q{i}"}]}
        made.append({"contents": [question, {"role": "model", "parts": [{"text": f"{CANARY}-{i % 4}"}]}]})
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def make_key(http: httpx.Client, *, destroy_seconds: int = 0) -> None:
    http.post(f"/v1/{PARENT}/keyRings", params={"keyRingId": "ring"}).raise_for_status()
    body = {"purpose": "ENCRYPT_DECRYPT", "destroyScheduledDuration": f"{destroy_seconds}s"}
    made = http.post(f"/v1/{PARENT}/keyRings/ring/cryptoKeys", params={"cryptoKeyId": "key"}, json=body)
    made.raise_for_status()


def allow(http: httpx.Client) -> None:
    """The project's service agent may use the key."""
    number = http.get("/v3/projects/demo").json()["projectNumber"]
    agent = f"serviceAccount:service-{number}@gcp-sa-vertex-tune.iam.gserviceaccount.com"
    policy = {"bindings": [{"role": ROLE, "members": [agent]}]}
    http.post(f"/v1/{KEY}:setIamPolicy", json={"policy": policy}).raise_for_status()


def set_state(http: httpx.Client, state: str) -> None:
    version = f"/v1/{KEY}/cryptoKeyVersions/1"
    http.patch(version, params={"updateMask": "state"}, json={"state": state}).raise_for_status()


def create(http: httpx.Client, epochs: int = 2, **fields: Any) -> httpx.Response:
    spec = {
        "trainingDatasetUri": "gs://sealed-data/train.jsonl",
        "validationDatasetUri": "gs://sealed-data/validation.jsonl",
        "hyperParameters": {"epochCount": str(epochs), "adapterSize": "ADAPTER_SIZE_FOUR"},
    }
    body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec, "encryptionSpec": {"kmsKeyName": KEY}}
    return http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body | fields)


def ask(http: httpx.Client, endpoint: str) -> httpx.Response:
    turn = {"role": "user", "parts": [{"text": f"{CANARY} q1"}]}
    body = {"contents": [turn], "generationConfig": {"temperature": 0, "maxOutputTokens": 12}}
    return http.post(f"/v1/{endpoint}:generateContent", json=body)


def open_files(*folders: Path) -> list[str]:
    """Files that show the canary, in any of the encodings that text takes here."""
    needles = [CANARY.encode(), CANARY.encode("utf-16-le"), CANARY.encode("utf-32-le")]
    needles += [b"".join(ord(c).to_bytes(2, "little") for c in CANARY)]  # the byte tokenizer's ids
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "home")
    service.start(SARTO_LEASE_SECONDS="2", SARTO_RESUME_SECONDS="0.2")
    try:
        with service.http() as http:
            make_key(http)
            allow(http)
            bucket = {"name": "sealed-data", "location": "us-central1", "encryption": {"defaultKmsKeyName": KEY}}
            made = http.post("/storage/v1/b", params={"project": "demo"}, json=bucket)
            assert made.status_code == 200, made.text
            upload(http, "sealed-data", "train.jsonl", rows())
            upload(http, "sealed-data", "validation.jsonl", rows(4))
        yield service
    finally:
        service.stop()


def test_a_keyed_job_leaves_nothing_open_and_a_destroyed_key_ends_it_all(service: Service) -> None:
    private = place_for(service.home)
    with service.http() as http:
        made = create(http)
        assert made.status_code == 200, made.text
        job = ended(http, made.json()["name"])
        assert job["encryptionSpec"] == {"kmsKeyName": KEY}
        endpoint = job["tunedModel"]["endpoint"]
        assert http.get(f"/v1/{endpoint}").json()["encryptionSpec"] == {"kmsKeyName": KEY}
        assert http.get(f"/v1/{job['tunedModel']['model']}").json()["encryptionSpec"] == {"kmsKeyName": KEY}
        answer = ask(http, endpoint)
        assert answer.status_code == 200, answer.text
        report = http.get(f"/v1/{job['name']}/dataReport")
        assert report.status_code == 200, report.text
        assert CANARY in http.get("/storage/v1/b/sealed-data/o/train.jsonl", params={"alt": "media"}).text
        assert open_files(service.home) == []
        set_state(http, "DISABLED")
        wait_for(lambda: ask(http, endpoint).status_code == 400)
        refused = ask(http, endpoint).json()["error"]
        assert refused["status"] == "FAILED_PRECONDITION" and "DISABLED" in refused["message"]
        wait_for(lambda: list(private.glob("*/opened/*")) == [])
        set_state(http, "ENABLED")
        again = ask(http, endpoint)
        assert again.json()["candidates"] == answer.json()["candidates"]
        destroyed = http.post(f"/v1/{KEY}/cryptoKeyVersions/1:destroy").json()
        assert destroyed["state"] == "DESTROYED"
        wait_for(lambda: ask(http, endpoint).status_code == 400)
        for path in (f"/v1/{job['name']}/dataReport", "/storage/v1/b/sealed-data/o/train.jsonl?alt=media"):
            gone = http.get(path)
            assert gone.status_code == 400 and "DESTROYED" in gone.text, gone.text
        wait_for(lambda: list(private.glob("*/opened/*")) == [])
    assert service.stop() == 0
    assert open_files(service.home) == []
    assert [path for path in private.iterdir() if path.is_dir()] == []
    shutil.rmtree(private)
    service.start()
