"""The verdicts of `docs/support.md`, asked of the real service."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sarto.cli.docs.support import fields_of
from sarto.schema.wire import to_snake

from .conftest import PARENT, Dataset

VERDICTS = {path: verdict for path, _, verdict, _ in fields_of()}
SAMPLES: dict[str, Any] = {}
"""Of refused fields that are not objects."""
OPEN = "qwen/qwen3@qwen3-0.6b"


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def body(dataset: Dataset, **changes: Any) -> dict[str, Any]:
    spec = {"trainingDatasetUri": dataset.training, "hyperParameters": {"epochCount": 1}}
    return {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec} | changes


@pytest.mark.parametrize("path", [path for path, verdict in VERDICTS.items() if verdict == "refused"])
def test_a_refused_field_is_named(http: httpx.Client, dataset: Dataset, path: str) -> None:
    asked = body(dataset) | nested(path, SAMPLES.get(path, {"trainingDatasetUri": dataset.training}))
    answer = http.post(f"/v1/{PARENT}/tuningJobs", json=asked)
    assert answer.status_code == 400, answer.text
    named = ".".join(to_snake(part) for part in path.split("."))
    assert named in answer.text or "already set" in answer.text, answer.text


def bind(http: httpx.Client, resource: str, role: str, email: str) -> None:
    policy = http.post(f"/v1/{resource}:getIamPolicy", json={}).json()
    policy.setdefault("bindings", []).append({"role": role, "members": [f"serviceAccount:{email}"]})
    answer = http.post(f"/v1/{resource}:setIamPolicy", json={"policy": policy})
    assert answer.status_code == 200, answer.text


def make_tuner(http: httpx.Client) -> str:
    """A service account that jobs may run as."""
    made = http.post("/v1/projects/demo/serviceAccounts", json={"accountId": "tuner-account"})
    assert made.status_code in (200, 409), made.text
    email = "tuner-account@demo.iam.gserviceaccount.com"
    number = http.get("/v3/projects/demo").json()["name"].partition("/")[2]
    for role in ("roles/aiplatform.tuningServiceAgent", "roles/storage.objectAdmin"):
        bind(http, "projects/demo", role, email)
    agent = f"service-{number}@gcp-sa-vertex-tune.iam.gserviceaccount.com"
    bind(http, f"projects/demo/serviceAccounts/{email}", "roles/iam.serviceAccountTokenCreator", agent)
    return email


def test_supported_fields_come_back_as_they_were_sent(http: httpx.Client, dataset: Dataset) -> None:
    parameters = {"epochCount": "1", "learningRate": 0.01, "adapterSize": "ADAPTER_SIZE_EIGHT", "batchSize": "2"}
    sent = {
        "baseModel": OPEN,
        "tunedModelDisplayName": "all of it",
        "description": "every field",
        "labels": {"team": "a"},
        "serviceAccount": make_tuner(http),
        "outputUri": "gs://tuning-data/out/",
        "supervisedTuningSpec": {
            "trainingDatasetUri": dataset.training,
            "validationDatasetUri": dataset.validation,
            "hyperParameters": parameters,
            "exportLastCheckpointOnly": True,
            "tuningMode": "TUNING_MODE_PEFT_ADAPTER",
        },
    }
    made = http.post(f"/v1/{PARENT}/tuningJobs", json=sent)
    assert made.status_code == 200, made.text
    job = made.json()
    http.post(f"/v1/{job['name']}:cancel")
    assert job["labels"].pop("sarto-base")
    assert {name: job[name] for name in sent} == sent


def test_what_the_service_sets_is_not_read(http: httpx.Client, dataset: Dataset) -> None:
    made = http.post(
        f"/v1/{PARENT}/tuningJobs", json=body(dataset, state="JOB_STATE_SUCCEEDED", experiment="mine", name="mine")
    )
    assert made.status_code == 200, made.text
    job = made.json()
    http.post(f"/v1/{job['name']}:cancel")
    assert job["state"] == "JOB_STATE_PENDING" and job["name"] != "mine" and "experiment" not in job
