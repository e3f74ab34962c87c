"""One service for the session, with data in a bucket and one tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.judge_server import KEY, judge_server

from .service import Service, training_rows, upload, wait_for

PARENT = "projects/demo/locations/us-central1"


@dataclass(frozen=True)
class Dataset:
    training: str
    validation: str


@pytest.fixture(scope="session", autouse=True)
def nobody_leaves_this_machine() -> Iterator[None]:
    """Newer google-auth asks a Google host about every service account, in the background; here it reaches nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service") / "home")
    with judge_server() as judge:
        service.write_judges(
            (name, kind, f"{url}/v1", model)
            for name, kind, url, model in (
                ("outside/fair", "openai", judge, "fair"),
                ("outside/fair-gemini", "gemini", judge, "fair"),
                ("outside/wordy", "openai", judge, "wordy"),
                ("outside/teacher", "openai", judge, "teacher"),
                ("outside/away", "openai", "http://127.0.0.1:9", "any"),
            )
        )
        service.start(JUDGE_KEY=KEY)
        with service.http() as http:
            service.give_metadata_account(http)
        yield service
        service.stop()


@pytest.fixture(scope="session")
def http(service: Service) -> Iterator[httpx.Client]:
    with service.http() as client:
        yield client


@pytest.fixture(scope="session")
def dataset(http: httpx.Client) -> Dataset:
    return Dataset(
        upload(http, "tuning-data", "train.jsonl", training_rows()),
        upload(http, "tuning-data", "dir/validation.jsonl", training_rows(4)),
    )


@pytest.fixture(scope="session")
def tuned(http: httpx.Client, dataset: Dataset) -> dict[str, Any]:
    """A job that has succeeded, as the API answers it."""
    spec = {
        "trainingDatasetUri": dataset.training,
        "validationDatasetUri": dataset.validation,
        "hyperParameters": {"epochCount": "2", "adapterSize": "ADAPTER_SIZE_FOUR"},
    }
    body = {"baseModel": "gemini-2.0-flash-001", "tunedModelDisplayName": "shared", "supervisedTuningSpec": spec}
    made = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body | {"labels": {"suite": "conformance"}})
    assert made.status_code == 200, made.text
    return ended(http, made.json()["name"])


def ended(http: httpx.Client, name: str) -> dict[str, Any]:
    """The job once it has succeeded."""

    def read() -> dict[str, Any] | None:
        job: dict[str, Any] = http.get(f"/v1/{name}").json()
        return job if job["state"] in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED") else None

    job: dict[str, Any] = wait_for(read)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
    return job
