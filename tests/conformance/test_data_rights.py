"""Who may touch which data, over a real port: a user with rights on the bucket does all of a job's journey, one without
is refused at each step and sees no row in what others made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .conftest import PARENT, ended
from .service import Service, training_rows, upload, wait_for

BUCKET = "private-rows"
MODEL = "publishers/google/models/gemini-2.0-flash-001"
BATCH_ROW = b'{"request": {"contents": [{"role": "user", "parts": [{"text": "q1"}]}]}}\n'
SCORED = b'{"prompt": "q1", "reference": "red", "response": "red"}\n'


def bind(http: httpx.Client, email: str, role: str, on_bucket: str = "") -> None:
    place = f"/storage/v1/b/{BUCKET}/iam" if on_bucket else "/v3/projects/demo"
    read = http.get(place) if on_bucket else http.post(f"{place}:getIamPolicy", json={})
    policy: dict[str, Any] = read.raise_for_status().json()
    policy["bindings"] = [*policy.get("bindings", []), {"role": role, "members": [f"user:{email}"]}]
    wrote = http.put(place, json=policy) if on_bucket else http.post(f"{place}:setIamPolicy", json={"policy": policy})
    wrote.raise_for_status()


@pytest.fixture(scope="module")
def callers(service: Service, http: httpx.Client) -> Iterator[dict[str, httpx.Client]]:
    """`keeper` tunes and holds the bucket, `tuner` tunes alone, `creator` may add objects and replace none."""
    for name, content in (("train.jsonl", training_rows()), ("asked.jsonl", BATCH_ROW), ("scored.jsonl", SCORED)):
        upload(http, BUCKET, name, content)
    found = {}
    for name, roles in {
        "keeper": ("roles/storage.objectAdmin",),
        "tuner": (),
        "creator": ("roles/storage.objectCreator", "roles/storage.objectViewer"),
    }.items():
        email = f"{name}@example.com"
        bind(http, email, "roles/aiplatform.user")
        for role in roles:
            bind(http, email, role, BUCKET)
        headers = {"Authorization": f"Bearer {service.user_token(email)}"}
        found[name] = httpx.Client(base_url=service.address, headers=headers, timeout=60)
    yield found
    for client in found.values():
        client.close()


@pytest.fixture(scope="module")
def job(callers: dict[str, httpx.Client]) -> dict[str, Any]:
    made = callers["keeper"].post(f"/v1/{PARENT}/tuningJobs", json=tuning())
    assert made.status_code == 200, made.text
    return ended(callers["keeper"], made.json()["name"])


def tuning() -> dict[str, Any]:
    uri = f"gs://{BUCKET}/train.jsonl"
    spec = {"trainingDatasetUri": uri, "validationDatasetUri": uri, "hyperParameters": {"epochCount": "1"}}
    return {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec}


def requests(job: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Everything one asks a service to do with data of a bucket, as (path, body)."""
    data = {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": f"gs://{BUCKET}/train.jsonl"}
    output = {"gcsDestination": {"outputUriPrefix": f"gs://{BUCKET}/out"}}
    batch = {
        "displayName": "asked",
        "model": MODEL,
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [f"gs://{BUCKET}/asked.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", **output},
    }
    evaluation = {
        "dataset": {"gcsSource": {"uris": [f"gs://{BUCKET}/scored.jsonl"]}},
        "metrics": [{"exactMatchSpec": {}}],
        "outputConfig": output,
    }
    target = {"exportFormatId": "adapter", "artifactDestination": output["gcsDestination"]}
    return {
        "tune": (f"{PARENT}/tuningJobs", tuning()),
        "check": (f"{PARENT}:checkDataset", data),
        "show": (f"{PARENT}:showExample", {**data, "row": "1"}),
        "batch": (f"{PARENT}/batchPredictionJobs", batch),
        "evaluate": (f"{PARENT}:evaluateDataset", evaluation),
        "export": (f"{job['tunedModel']['model']}:export", {"outputConfig": target}),
    }


def done(http: httpx.Client, operation: dict[str, Any]) -> dict[str, Any]:
    def read() -> Any:
        found = http.get(f"/v1/{operation['name']}").json()
        return found if found.get("done") else None

    return dict(wait_for(read, 120))


def test_a_tuner_who_holds_the_bucket_does_the_whole_journey(
    callers: dict[str, httpx.Client], job: dict[str, Any]
) -> None:
    keeper = callers["keeper"]
    stats = job["tuningDataStats"]["supervisedTuningDataStats"]
    assert stats["userDatasetExamples"]
    for path in ("dataReport", "evaluation", "events"):
        assert keeper.get(f"/v1/{job['name']}/{path}").status_code == 200, path
    assert keeper.get(f"/v1/{job['name']}:showExample", params={"row": "1"}).status_code == 200
    asked = {"contents": [{"role": "user", "parts": [{"text": "q1"}]}], "generationConfig": {"maxOutputTokens": 2}}
    assert keeper.post(f"/v1/{job['tunedModel']['endpoint']}:generateContent", json=asked).status_code == 200
    made = {}
    for way, (path, body) in requests(job).items():
        if way == "tune":
            continue
        answer = keeper.post(f"/v1/{path}", json=body)
        assert answer.status_code == 200, (way, answer.text)
        made[way] = answer.json()
    for way in ("evaluate", "export"):
        assert "error" not in done(keeper, made[way]), way
    again = keeper.post(f"/v1/{requests(job)['export'][0]}", json=requests(job)["export"][1]).json()
    assert "error" not in done(keeper, again)


def test_a_tuner_without_rights_on_the_bucket_is_refused_and_sees_no_row(
    callers: dict[str, httpx.Client], job: dict[str, Any]
) -> None:
    tuner = callers["tuner"]
    for way, (path, body) in requests(job).items():
        answer = tuner.post(f"/v1/{path}", json=body)
        assert answer.status_code == 403 and BUCKET in answer.text, (way, answer.text)
    seen = tuner.get(f"/v1/{job['name']}").json()
    assert seen["tuningDataStats"]["supervisedTuningDataStats"]["tuningStepCount"]
    listed = tuner.get(f"/v1/{PARENT}/tuningJobs", params={"pageSize": "100"}).json()["tuningJobs"]
    for one in (seen, next(each for each in listed if each["name"] == job["name"])):
        assert "userDatasetExamples" not in one["tuningDataStats"]["supervisedTuningDataStats"]
    for path in ("/dataReport", "/evaluation", ":showExample"):
        refused = tuner.get(f"/v1/{job['name']}{path}", params={"row": "1"} if path[0] == ":" else None)
        assert refused.status_code == 403 and BUCKET in refused.text, path


def test_an_export_over_what_is_there_is_refused_before_it_begins(
    callers: dict[str, httpx.Client], job: dict[str, Any]
) -> None:
    path, body = requests(job)["export"]
    config = body["outputConfig"]["artifactDestination"]
    config["outputUriPrefix"] = f"gs://{BUCKET}/of-the-creator"
    begun = callers["creator"].post(f"/v1/{path}", json=body)
    assert begun.status_code == 200, begun.text
    assert "error" not in done(callers["creator"], begun.json())
    again = callers["creator"].post(f"/v1/{path}", json=body)
    assert again.status_code == 403 and "storage.objects.delete" in again.text
