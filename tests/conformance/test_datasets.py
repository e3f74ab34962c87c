"""The data API over a real port: reports and mask proofs before a job, of one that succeeded, and one that failed."""

from __future__ import annotations

import gzip
from typing import Any

import httpx

from .conftest import PARENT, Dataset
from .service import training_rows, upload

MODEL = "gemini-2.0-flash-001"
BROKEN = b'{"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}\n'


def check(http: httpx.Client, uri: str, **fields: Any) -> dict[str, Any]:
    answer = http.post(f"/v1/{PARENT}:checkDataset", json={"baseModel": MODEL, "trainingDatasetUri": uri, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_job_has_its_report_and_shows_its_rows(http: httpx.Client, tuned: dict[str, Any]) -> None:
    report = http.get(f"/v1/{tuned['name']}/dataReport").json()
    assert report["isUsable"] and report["dataset"]["rows"] == 12
    assert report["automatic"]["epochCount"] == 2
    forecast = report["forecast"]
    assert forecast["seconds"] > 0 and forecast["peakMemoryBytes"] > 0 and forecast["machine"]["device"] == "cpu"
    assert tuned["supervisedTuningSpec"]["hyperParameters"] == {
        "epochCount": "2", "adapterSize": "ADAPTER_SIZE_FOUR", "learningRateMultiplier": 1.0,
    }  # fmt: skip
    assert report["automatic"]["reasons"]["learningRate"].endswith("the rate recommended for the base model")
    assert report["automatic"]["reasons"] == tuned["tuningJobMetadata"]["effectiveParameters"]["reasons"]
    proof = http.get(f"/v1beta1/{tuned['name']}:showExample", params={"row": 2}).json()
    assert proof["line"] == 2 and proof["isSame"]
    assert http.get(f"/v1/{tuned['name']}:showExample").json()["line"] == 1
    past = http.get(f"/v1/{tuned['name']}:showExample", params={"row": 13})
    assert past.status_code == 404 and "train.jsonl has no line 13" in past.json()["error"]["message"]
    assert http.get(f"/v1/{tuned['name']}:showExample", params={"row": "x"}).status_code == 400


def test_what_has_no_report_says_so(http: httpx.Client) -> None:
    gone = http.get(f"/v1/{PARENT}/tuningJobs/1234567890123456789/dataReport")
    assert gone.status_code == 404 and "is not found" in gone.json()["error"]["message"]


def test_a_broken_row_is_named_before_and_by_the_job_that_fails_of_it(http: httpx.Client) -> None:
    late = upload(http, "tuning-data", "late.jsonl", training_rows(120) + BROKEN * 20)
    report = check(http, late)
    assert not report["isUsable"]
    first = report["dataset"]["faults"]["shown"][0]
    assert first["line"] == 121 and first["path"].startswith("contents") and first["fix"]
    assert report["findings"][0]["level"] == "error" and "20 of 140 rows" in report["findings"][0]["message"]
    body = {"baseModel": MODEL, "supervisedTuningSpec": {"trainingDatasetUri": late}}
    name = http.post(f"/v1/{PARENT}/tuningJobs", json=body).json()["name"]
    assert "endTime" not in http.post(f"/v1/{name}:wait", json={"timeout": "0.001s"}).json()
    job = http.post(f"/v1/{name}:wait", json={"timeout": "40s"}).json()
    assert job["state"] == "JOB_STATE_FAILED" and "line 121" in job["error"]["message"]
    stored = http.get(f"/v1/{job['name']}/dataReport").json()
    assert not stored["isUsable"] and stored["dataset"]["faults"] == report["dataset"]["faults"]


def test_the_check_refuses_what_creating_a_job_would_refuse(http: httpx.Client, dataset: Dataset) -> None:
    early = upload(http, "tuning-data", "early.jsonl", training_rows(30) + BROKEN * 4 + training_rows(1))
    report = check(http, early)
    words = "early.jsonl: 4 of 35 rows cannot be used (11.4 %; at most 10 % may be dropped). The first: line 31: con"
    assert not report["isUsable"] and words in report["findings"][0]["message"]
    body = {"baseModel": MODEL, "supervisedTuningSpec": {"trainingDatasetUri": early}}
    refused = http.post(f"/v1/{PARENT}/tuningJobs", json=body)
    assert refused.status_code == 400 and words in refused.json()["error"]["message"]
    held = check(http, dataset.training, validationDatasetUri=early)
    assert not held["isUsable"] and "early.jsonl: 4 of 35" in held["findings"][0]["message"]


def test_one_bad_row_is_dropped_wherever_it_is_in_the_check_as_in_the_job(http: httpx.Client, dataset: Dataset) -> None:
    early = upload(http, "tuning-data", "one.jsonl", training_rows(4) + BROKEN + training_rows(20))
    report = check(http, early, validationDatasetUri=early)
    assert report["isUsable"] and report["statistics"]["droppedCount"] == 1
    assert [each["line"] for each in report["dataset"]["faults"]["shown"]] == [5]
    body = {"baseModel": MODEL, "supervisedTuningSpec": {"trainingDatasetUri": early}}
    made = http.post(f"/v1/{PARENT}/tuningJobs", json=body)
    assert made.status_code == 200
    http.post(f"/v1/{made.json()['name']}:cancel")


def test_rows_stored_with_gzip_as_their_encoding_are_read(http: httpx.Client) -> None:
    packed = gzip.compress(training_rows(12))
    said = {"uploadType": "media", "name": "packed.jsonl", "contentEncoding": "gzip"}
    http.post("/upload/storage/v1/b/tuning-data/o", content=packed, params=said).raise_for_status()
    report = check(http, "gs://tuning-data/packed.jsonl")
    assert report["isUsable"] and report["dataset"]["usedRows"] == 12


def test_no_row_at_all_is_an_error_with_the_lines(http: httpx.Client) -> None:
    bad = upload(http, "tuning-data", "bad.jsonl", BROKEN * 3)
    body = {"baseModel": MODEL, "trainingDatasetUri": bad}
    answer = http.post(f"/v1/{PARENT}:checkDataset", json=body)
    assert answer.status_code == 400 and "bad.jsonl: none of 3 rows can be used" in answer.json()["error"]["message"]
    shown = http.post(f"/v1/{PARENT}:showExample", json=body | {"row": 2}).json()
    assert shown["fault"]["line"] == 2 and "training" not in shown
    missing = http.post(f"/v1/{PARENT}:checkDataset", json=body | {"trainingDatasetUri": "gs://tuning-data/no.jsonl"})
    assert missing.status_code == 400 and "training_dataset_uri" in missing.text
