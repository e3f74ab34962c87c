"""Two projects on one service: neither counts, status nor answers tell one what the other did."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import ended
from .service import Service, training_rows, upload

MODEL = "publishers/google/models/gemini-2.0-flash-001"
PROMPT = "What this project asks of the base model is for nobody else to know, not even that it was asked. " * 2


@pytest.fixture(scope="module")
def projects(http: httpx.Client) -> list[str]:
    names = ["tenant-one", "tenant-two"]
    for name in names:
        http.post("/v3/projects", json={"projectId": name}).raise_for_status()
        http.post("/storage/v1/b", params={"project": name}, json={"name": f"{name}-data"}).raise_for_status()
    return names


def test_no_project_is_told_how_much_of_a_prompt_another_one_has_sent(http: httpx.Client, projects: list[str]) -> None:
    asked = {"contents": [{"role": "user", "parts": [{"text": PROMPT}]}], "generationConfig": {"maxOutputTokens": 2}}
    chat = {"model": "google/gemini-2.0-flash-001", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2}

    def known(project: str) -> int:
        answer = http.post(f"/v1/projects/{project}/locations/us-central1/{MODEL}:generateContent", json=asked)
        return int(answer.raise_for_status().json()["usageMetadata"].get("cachedContentTokenCount", 0))

    def known_in_chat(project: str) -> int:
        path = f"/v1/projects/{project}/locations/us-central1/endpoints/openapi/chat/completions"
        usage: dict[str, Any] = http.post(path, json=chat).raise_for_status().json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    first, second = projects
    assert known(first) == 0 < known(first)
    assert known_in_chat(second) == 0 < known_in_chat(second)


def test_a_dataset_that_another_project_has_prepared_is_prepared_anew(
    service: Service, http: httpx.Client, projects: list[str]
) -> None:
    for project in projects:
        uri = upload(http, f"{project}-data", "same.jsonl", training_rows(5))
        body = {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": uri}
        http.post(f"/v1/projects/{project}/locations/us-central1:checkDataset", json=body).raise_for_status()
    stores = [path.parent for path in (service.home / "cache" / "tokens").glob("*/*/facts.json")]
    twice = {store.name for store in stores if sum(store.name == other.name for other in stores) > 1}
    assert twice and not list((service.home / "cache" / "tokens").glob("*/facts.json"))


def test_the_jobs_of_a_project_correct_its_own_forecasts_and_no_others(http: httpx.Client, projects: list[str]) -> None:
    first, second = projects

    def forecast(project: str) -> dict[str, Any]:
        uri = upload(http, f"{project}-data", "alike.jsonl", training_rows(12))
        body = {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": uri}
        answer = http.post(f"/v1/projects/{project}/locations/us-central1:checkDataset", json=body)
        found: dict[str, Any] = answer.raise_for_status().json()["forecast"]
        return found

    assert forecast(first)["correction"]["runs"] == 0
    spec = {"trainingDatasetUri": f"gs://{first}-data/alike.jsonl", "hyperParameters": {"epochCount": "1"}}
    body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec}
    made = http.post(f"/v1/projects/{first}/locations/us-central1/tuningJobs", json=body).raise_for_status().json()
    took = ended(http, made["name"])["tuningJobMetadata"]["effectiveParameters"]["details"]["forecast"]
    assert took["tuning_seconds"] > 0 and took["forecast_seconds"] > 0
    corrected = forecast(first)
    assert corrected["correction"] == {
        "factor": pytest.approx(took["tuning_seconds"] / took["forecast_seconds"]), "runs": 1, "isSameBase": True,
    }  # fmt: skip
    assert forecast(second)["correction"]["runs"] == 0
