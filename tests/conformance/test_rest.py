"""Plain HTTP in the documentation's words: its curl bodies as files, and the traps that clients meet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import PARENT, Dataset
from .service import Service, training_rows, upload, wait_for

BODIES = sorted(path.name for path in (Path(__file__).parent / "bodies").glob("*.json"))
JOBS = f"{PARENT}/tuningJobs"
SSE = {"alt": "sse"}
PROMPT = {"contents": [{"role": "user", "parts": [{"text": "q1"}]}], "generation_config": {"maxOutputTokens": 5}}


def create(http: httpx.Client, body: dict[str, Any], version: str = "v1") -> dict[str, Any]:
    answer = http.post(f"/{version}/{JOBS}", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def cancel(http: httpx.Client, job: dict[str, Any]) -> None:
    assert http.post(f"/v1/{job['name']}:cancel").json() == {}


def text_of(candidate: dict[str, Any]) -> str:
    return "".join(part["text"] for part in candidate.get("content", {}).get("parts", []))


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_documented_bodies_are_accepted(
    http: httpx.Client, tuned: dict[str, Any], dataset: Dataset, name: str, version: str
) -> None:
    text = (Path(__file__).parent / "bodies" / name).read_text()
    made = create(http, json.loads(text.replace("TUNED_MODEL", tuned["tunedModel"]["model"])), version)
    assert made["state"] == "JOB_STATE_PENDING" and "experiment" not in made
    spec = made["supervisedTuningSpec"]
    assert spec["trainingDatasetUri"].endswith("sft_train_data.jsonl")
    assert not any("_" in key for key in [*made, *spec, *spec.get("hyperParameters", {})])
    cancel(http, made)


@pytest.mark.parametrize(("number", "size"), [(1, "ONE"), (2, "FOUR"), (3, "EIGHT"), (6, "TWO")])
def test_adapter_sizes_by_number_are_answered_by_name(
    http: httpx.Client, dataset: Dataset, number: int, size: str
) -> None:
    spec = {"trainingDatasetUri": dataset.training, "hyperParameters": {"adapterSize": number, "epochCount": 3}}
    made = create(http, {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec})
    assert made["supervisedTuningSpec"]["hyperParameters"] == {
        "adapterSize": f"ADAPTER_SIZE_{size}",
        "epochCount": "3",
    }
    cancel(http, made)


def test_sizes_sixteen_and_thirty_two_have_their_own_numbers(http: httpx.Client, dataset: Dataset) -> None:
    for number, size in ((4, "ADAPTER_SIZE_SIXTEEN"), (5, "ADAPTER_SIZE_THIRTY_TWO")):
        spec = {"trainingDatasetUri": dataset.training, "hyperParameters": {"adapterSize": number}}
        answer = http.post(f"/v1/{JOBS}", json={"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec})
        assert answer.status_code == 400 and size in answer.json()["error"]["message"]


def test_snake_case_inside_camel_case_and_back(http: httpx.Client, dataset: Dataset, tuned: dict[str, Any]) -> None:
    body = {
        "preTunedModel": {"tuned_model_name": tuned["tunedModel"]["model"], "checkpoint_id": "1"},
        "tuned_model_display_name": "both",
        "supervisedTuningSpec": {"training_dataset_uri": dataset.training, "hyper_parameters": {"epochCount": "1"}},
    }
    made = create(http, body)
    assert made["preTunedModel"]["tunedModelName"] == tuned["tunedModel"]["model"]
    assert made["preTunedModel"]["checkpointId"] == "1" and made["tunedModelDisplayName"] == "both"
    cancel(http, made)


def test_a_job_is_never_queued(http: httpx.Client, dataset: Dataset) -> None:
    bodies = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": {"trainingDatasetUri": dataset.training}}
    made = [create(http, bodies) for _ in range(3)]
    seen = {http.get(f"/v1/{job['name']}").json()["state"] for job in made for _ in range(5)}
    assert seen <= {"JOB_STATE_PENDING", "JOB_STATE_RUNNING"}
    for job in made:
        cancel(http, job)


def test_a_finished_job_has_everything_filled(tuned: dict[str, Any], http: httpx.Client) -> None:
    assert tuned["labels"]["suite"] == "conformance" and tuned["labels"]["sarto-base"] == "tiny"
    assert {"createTime", "startTime", "endTime", "updateTime", "experiment", "tuningDataStats"} <= tuned.keys()
    assert len(tuned["tunedModel"]["checkpoints"]) == 2
    assert tuned["tunedModel"]["endpoint"] == tuned["tunedModel"]["checkpoints"][-1]["endpoint"]
    assert tuned["name"].split("/")[1].isdigit() and len(tuned["name"].rpartition("/")[2]) == 19
    beta = http.get(f"/v1beta1/{tuned['name']}").json()
    assert beta == http.get(f"/v1/{tuned['name']}").json()
    by_id = tuned["name"].replace(tuned["name"].split("/")[1], "demo")
    assert http.get(f"/v1/{by_id}").json() == beta
    context = http.get(f"/v1/{tuned['experiment']}").json()
    assert context["schemaTitle"] == "system.Experiment"


def test_the_models_files_are_readable_in_its_bucket(tuned: dict[str, Any], http: httpx.Client) -> None:
    model = http.get(f"/v1/{tuned['tunedModel']['model'].replace('@', '%40')}").json()
    bucket, _, prefix = model["artifactUri"].removeprefix("gs://").partition("/")
    names = [one["name"] for one in http.get(f"/storage/v1/b/{bucket}/o", params={"prefix": prefix}).json()["items"]]
    assert sum(name.endswith("adapter_model.safetensors") for name in names) == 2


def test_requests_are_idempotent_by_request_id(http: httpx.Client, dataset: Dataset) -> None:
    body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": {"trainingDatasetUri": dataset.training}}
    key = {"requestId": "6f2b1a52-8f7b-4a8e-9d0c-0f6f4b7b9c11"}
    first = http.post(f"/v1/{JOBS}", params=key, json=body).json()
    again = http.post(f"/v1beta1/{JOBS}", params=key, json=body).json()
    assert again["name"] == first["name"]
    other = http.post(f"/v1/{JOBS}", params=key, json=body | {"description": "other"})
    assert other.status_code == 409
    cancel(http, first)


def test_unary_array_and_events_say_the_same(http: httpx.Client, tuned: dict[str, Any]) -> None:
    endpoint = tuned["tunedModel"]["endpoint"]
    body = PROMPT | {"generationConfig": {"temperature": 0, "maxOutputTokens": 5}}
    del body["generation_config"]
    whole = http.post(f"/v1/{endpoint}:generateContent", json=body).json()
    array = http.post(f"/v1/{endpoint}:streamGenerateContent", json=body)
    assert array.headers["content-type"].startswith("application/json")
    events = http.post(f"/v1beta1/{endpoint}:streamGenerateContent", params=SSE, json=body)
    assert events.headers["content-type"].startswith("text/event-stream")
    pieces = [json.loads(line.removeprefix("data: ")) for line in events.text.splitlines() if line]
    for chunks in (array.json(), pieces):
        candidates = [chunk["candidates"][0] for chunk in chunks]
        assert "".join(map(text_of, candidates)) == text_of(whole["candidates"][0])
        assert candidates[-1]["finishReason"] == whole["candidates"][0]["finishReason"]
        assert chunks[-1]["usageMetadata"]["totalTokenCount"] == whole["usageMetadata"]["totalTokenCount"]


def test_a_fault_before_the_first_piece_has_its_own_status(http: httpx.Client, tuned: dict[str, Any]) -> None:
    for params in ({}, SSE):
        url = f"/v1/{tuned['tunedModel']['endpoint']}:streamGenerateContent"
        answer = http.post(url, params=params, json={"contents": []})
        assert answer.status_code == 400 and answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_names_that_answer_and_names_of_another_region(http: httpx.Client, tuned: dict[str, Any]) -> None:
    model, endpoint = tuned["tunedModel"]["model"], tuned["tunedModel"]["endpoint"]
    for name in (endpoint, model, model.partition("@")[0], model.replace("@1", "@default"), model.replace("@", "%40")):
        assert http.post(f"/v1/{name}:countTokens", json=PROMPT).status_code == 200, name
    elsewhere = http.post(f"/v1/{endpoint.replace('us-central1', 'europe-west4')}:generateContent", json=PROMPT)
    assert elsewhere.status_code == 404 and "us-central1" in elsewhere.json()["error"]["message"]


@pytest.mark.parametrize("verb", ["predict", "rawPredict"])
def test_predict_says_what_answers_instead(http: httpx.Client, tuned: dict[str, Any], verb: str) -> None:
    answer = http.post(f"/v1/{tuned['tunedModel']['endpoint']}:{verb}", json={"instances": [{}]})
    assert answer.status_code == 400 and "generateContent" in answer.json()["error"]["message"]


def test_operations_are_polled_under_ui_without_a_version(http: httpx.Client, tuned: dict[str, Any]) -> None:
    reference = {"tunedModelRef": {"tunedModel": tuned["tunedModel"]["model"]}}
    operation = http.post(f"/v1beta1/{JOBS}:rebaseTunedModel", json=reference).json()
    assert operation["done"] and operation["response"]["@type"].endswith("TuningJob")
    for prefix, version in (("ui", "v1"), ("v1", "v1"), ("v1beta1", "v1beta1")):
        polled = http.get(f"/{prefix}/{operation['name']}").json()
        assert polled["done"] and polled["name"] == operation["name"]
        assert f".{version}.TuningJob" in polled["response"]["@type"]
    assert http.post(f"/v1beta1/{operation['name']}:wait", json={"timeout": "1s"}).json() == operation
    assert http.post(f"/v1/{operation['name']}:cancel").json() == {}
    assert operation in http.get(f"/v1beta1/{PARENT}/operations").json()["operations"]
    cancel(http, operation["response"])


def test_the_api_is_served_under_a_google_host_as_prefix(http: httpx.Client, tuned: dict[str, Any]) -> None:
    for prefix in ("local.googleapis.com", "us-central1-aiplatform.googleapis.com"):
        assert http.get(f"/{prefix}/v1/{tuned['name']}").json()["name"] == tuned["name"]


def test_events_tell_the_story_of_a_job(http: httpx.Client, tuned: dict[str, Any]) -> None:
    page = http.get(f"/v1/{tuned['name']}/events").json()
    kinds = [event["kind"] for event in page["events"]]
    assert kinds[0] == "created" and kinds[-1] == "succeeded" and len(kinds) < 20
    rest = http.get(f"/v1/{tuned['name']}/events", params={"pageToken": page["nextPageToken"]}).json()
    assert rest == {"events": [], "nextPageToken": page["nextPageToken"]}


def test_delete_is_for_ended_jobs_and_leaves_the_model(http: httpx.Client, dataset: Dataset) -> None:
    body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": {"trainingDatasetUri": dataset.training}}
    made = create(http, body)
    running = http.delete(f"/v1/{made['name']}")
    assert running.status_code == 400 and running.json()["error"]["status"] == "FAILED_PRECONDITION"
    cancel(http, made)
    wait_for(lambda: http.get(f"/v1/{made['name']}").json()["state"] == "JOB_STATE_CANCELLED")
    assert http.delete(f"/v1/{made['name']}").json() == {}
    assert http.get(f"/v1/{made['name']}").status_code == 404


def test_a_failed_job_says_what_is_wrong_with_the_data(http: httpx.Client) -> None:
    good, bad = training_rows(2000), b'{"contents": [{"role": "user", "parts": [{"text": "no reply"}]}]}\n'
    uri = upload(http, "tuning-data", "late-fault.jsonl", good + bad * 400)
    made = create(http, {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": {"trainingDatasetUri": uri}})

    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = http.get(f"/v1/{made['name']}").json()
        return job if job["state"] == "JOB_STATE_FAILED" else None

    error = wait_for(ended)["error"]
    assert error["code"] == 3 and "2001" in error["message"], error


def test_projects_are_walls(http: httpx.Client, service: Service, tuned: dict[str, Any]) -> None:
    made = http.post("/v3/projects", json={"projectId": "walled"}).json()
    assert made["projectId"] == "walled" and made in http.get("/v3/projects").json()["projects"]
    assert http.get(f"/v3/projects/{made['projectNumber']}").json() == made
    assert http.get("/v1/projects/walled/locations/us-central1/tuningJobs").json() == {}
    wrong_wall = tuned["name"].replace(tuned["name"].split("/")[1], "walled")
    assert http.get(f"/v1/{wrong_wall}").status_code == 404
    nobody = http.get("/v1/projects/nobody-here/locations/us-central1/tuningJobs")
    assert nobody.status_code == 403 and "(or it may not exist)" in nobody.json()["error"]["message"]


def test_translation(http: httpx.Client) -> None:
    body = {"contents": ["Hello", "Bye"], "sourceLanguageCode": "en", "targetLanguageCode": "es-ES"}
    answer = http.post(f"/v3/{PARENT}:translateText", json=body | {"model": f"{PARENT}/models/general/translation-llm"})
    assert answer.status_code == 200, answer.text
    assert [one["model"] for one in answer.json()["translations"]] == [f"{PARENT}/models/general/translation-llm"] * 2
    wrong = http.post(f"/v3/{PARENT}:translateText", json=body | {"targetLanguageCode": "xx", "sourceLanguageCode": ""})
    fields = [row["field"] for row in wrong.json()["error"]["details"][0]["fieldViolations"]]
    assert fields == ["source_language_code", "target_language_code"]


def test_publisher_models_need_no_project(http: httpx.Client) -> None:
    page = http.get("/v1beta1/publishers/google/models", params={"pageSize": 2}).json()
    assert len(page["publisherModels"]) == 2
    rest = http.get("/v1beta1/publishers/google/models", params={"pageToken": page["nextPageToken"]}).json()
    names = [one["name"] for one in page["publisherModels"] + rest["publisherModels"]]
    assert "publishers/google/models/gemini-2.0-flash-001" in names and len(set(names)) == len(names)
    assert http.get("/v1/publishers/google/models/gemini-9").status_code == 404


def test_a_dataset_is_checked_and_shown_before_any_job(http: httpx.Client, dataset: Dataset) -> None:
    body = {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": dataset.training}
    report = http.post(f"/v1/{PARENT}:checkDataset", json=body | {"validationDatasetUri": dataset.validation}).json()
    assert report["isUsable"] and report["dataset"]["rows"] == 12 and report["forecast"]["steps"] > 0
    assert report["validation"]["overlap"]["samePrompts"] == 4
    proof = http.post(f"/v1/{PARENT}:showExample", json=body | {"row": 3}).json()
    assert proof["isSame"] and proof["line"] == 3
    learned = "".join(token["text"] for token in proof["training"][0]["tokens"] if token["learned"])
    assert learned.startswith("maybe")
    empty = http.post(f"/v1/{PARENT}:checkDataset", json={})
    fields = [row["field"] for row in empty.json()["error"]["details"][0]["fieldViolations"]]
    assert fields == ["base_model", "training_dataset_uri"]
