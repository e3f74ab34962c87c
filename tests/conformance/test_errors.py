"""Whatever goes wrong answers as google.rpc.Status, with the right HTTP status."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import PARENT, Dataset
from .service import Service

JOBS = f"/v1/{PARENT}/tuningJobs"


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    body: dict[str, Any] = answer.json()["error"]
    assert body["code"] == status and body["message"] and body["status"] and answer.headers["x-request-id"]
    return body


def violations(body: dict[str, Any]) -> list[str]:
    return [row["field"] for row in body["details"][0]["fieldViolations"]]


def test_unknown_paths_and_wrong_verbs(http: httpx.Client) -> None:
    assert error(http.get("/v1/nothing"), 404)["status"] == "NOT_FOUND"
    assert error(http.get("/v1/%ff"), 400)["status"] == "INVALID_ARGUMENT"
    wrong = http.put(f"{JOBS}/7")
    error(wrong, 405)
    assert wrong.headers["allow"] == "DELETE, GET"
    error(http.get(f"{JOBS}/7:cancel"), 405)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"baseModel": }', "line 1, column 15"),
        (b"{\n  'a': 1}", "line 2"),
        (b"\xff", "line 1"),
        (b"{" * 90, "line 1"),
        (b"{" * 3000, "nested deeper than 100 levels"),
    ],
)
def test_bad_json_says_where(http: httpx.Client, body: bytes, place: str) -> None:
    assert place in error(http.post(JOBS, content=body), 400)["message"]


def test_every_fault_of_a_body_is_listed_with_its_path(http: httpx.Client) -> None:
    body = {
        "baseModel": 7,
        "colour": "red",
        "supervisedTuningSpec": {"hyperParameters": {"epochCount": "two", "adapterSize": "ADAPTER_SIZE_NINE", "x": 1}},
    }
    assert set(violations(error(http.post(JOBS, json=body), 400))) == {
        "tuning_job.base_model",
        "tuning_job.colour",
        "tuning_job.supervised_tuning_spec.hyper_parameters.epoch_count",
        "tuning_job.supervised_tuning_spec.hyper_parameters.adapter_size",
        "tuning_job.supervised_tuning_spec.hyper_parameters.x",
    }


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null"])
def test_a_body_that_is_no_object_is_refused(http: httpx.Client, body: bytes) -> None:
    error(http.post(JOBS, content=body), 400)


def test_faults_of_a_job_are_clear(http: httpx.Client, dataset: Dataset) -> None:
    good: dict[str, Any] = {
        "baseModel": "gemini-2.0-flash-001",
        "supervisedTuningSpec": {"trainingDatasetUri": dataset.training},
    }
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tunedModelDisplayName": "x" * 129}, "128"),
        ({"preferenceOptimizationSpec": {}}, "already set"),
        ({"baseModel": "gemini-9"}, "gemini-2.0-flash-001"),
        ({"supervisedTuningSpec": {"trainingDatasetUri": "gs://tuning-data/none.jsonl"}}, "none.jsonl"),
        ({"supervisedTuningSpec": {"trainingDatasetUri": "/etc/passwd"}}, "gs://"),
        ({"labels": {"Upper": "x"}}, "label"),
    ]
    for change, words in cases:
        assert words in error(http.post(JOBS, json=good | change), 400)["message"]


def test_too_large_a_body_names_the_limit(http: httpx.Client) -> None:
    assert "1048576" in error(http.post(JOBS, content=b" " * (1048576 + 1)), 413)["message"]
    prompt = f"/v1/{PARENT}/endpoints/7:generateContent"
    assert "33554432" in error(http.post(prompt, content=b" " * (33554432 + 1)), 413)["message"]

    def chunks() -> Any:
        for _ in range(40):
            yield b" " * (1 << 20)

    error(http.post(JOBS, content=chunks()), 413)


def test_ids_with_separators_are_refused(http: httpx.Client) -> None:
    for bad in ("a:b", "a%3Ab", "a%2Fb", "%2E%2E", "a%00b", "%20"):
        answer = http.get(f"http://{http.base_url.host}:{http.base_url.port}{JOBS}/{bad}")
        assert answer.status_code in (400, 404), bad
        error(answer, answer.status_code)
    error(http.get("/v1/projects/BAD/locations/us-central1/tuningJobs"), 400)
    assert "not a location" in error(http.get("/v1/projects/demo/locations/local/tuningJobs"), 400)["message"]


def test_query_parameters_in_both_spellings_and_unknown_ones(http: httpx.Client, tuned: dict[str, Any]) -> None:
    for name in ("pageSize", "page_size"):
        assert len(http.get(JOBS, params={name: 1}).json()["tuningJobs"]) == 1
    ignored = {"$alt": "json;enum-encoding=int", "alt": "json", "prettyPrint": "false", "$.xgafv": "1"}
    assert http.get(f"/v1/{tuned['name']}", params=ignored).status_code == 200
    assert violations(error(http.get(JOBS, params={"pagesize": 1, "colour": "red"}), 400)) == ["pagesize", "colour"]
    for bad in ("-1", "x", "1e3"):
        error(http.get(JOBS, params={"pageSize": bad}), 400)
    error(http.get(JOBS, params={"pageToken": "nonsense"}), 400)
    assert "character" in error(http.get(JOBS, params={"filter": "state = = x"}), 400)["message"]


def test_without_a_good_token_there_is_nothing(service: Service) -> None:
    with httpx.Client(base_url=service.address) as stranger:
        for header in ("", "Bearer", "Bearer x", "Basic YTpi", "Bearer " + "x" * 9000, f"Token {service.token()}"):
            for path in (JOBS, "/v1/publishers/google/models", "/v3/projects", "/storage/v1/b?project=demo"):
                answer = stranger.get(path, headers={"Authorization": header} if header else {})
                assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.json()["error"]["code"] == 401
        assert stranger.get("/healthz").json() == stranger.get("/readyz").json() == {"status": "ok"}


def test_json_is_compressed_when_asked(http: httpx.Client, tuned: dict[str, Any]) -> None:
    packed = http.get(f"/v1/{tuned['name']}", headers={"Accept-Encoding": "gzip"})
    plain = http.get(f"/v1/{tuned['name']}", headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert packed.json() == plain.json()


def test_the_description_and_its_page_need_nothing_from_outside(service: Service) -> None:
    with httpx.Client(base_url=service.address) as stranger:
        description = stranger.get("/openapi.json").json()
        assert description["openapi"] == "3.1.0"
        assert "/v1beta1/projects/{project}/locations/{location}/tuningJobs/{job}:cancel" in description["paths"]
        page = stranger.get("/docs").text
    assert "http://" not in page and "https://" not in page
