"""What HTTP clients of other languages do on the wire: marks, charsets, chunks, and methods written as headers."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from .conftest import PARENT, Dataset
from .service import Service

JOBS = f"/v1/{PARENT}/tuningJobs"
WORDS = "Grüße"


def body(dataset: Dataset) -> dict[str, Any]:
    spec = {"trainingDatasetUri": dataset.training}
    return {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec, "description": WORDS}


@pytest.mark.parametrize(
    ("encoding", "charset"),
    [
        ("utf-8-sig", ""),  # PowerShell's Out-File -Encoding utf8, and then -InFile
        ("utf-8", "; charset=utf-8"),  # the documentation's Invoke-WebRequest
        ("iso-8859-1", "; charset=ISO-8859-1"),
        ("utf-16", '; charset="utf-16"'),
    ],
)
def test_a_body_is_read_in_the_charset_its_client_states(
    http: httpx.Client, dataset: Dataset, encoding: str, charset: str
) -> None:
    sent = json.dumps(body(dataset), ensure_ascii=False).encode(encoding)
    answer = http.post(JOBS, content=sent, headers={"Content-Type": f"application/json{charset}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["description"] == WORDS
    http.post(f"/v1/{answer.json()['name']}:cancel").raise_for_status()


@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "klingon", "unicode_escape"])
def test_a_body_that_is_not_in_its_charset_is_refused(http: httpx.Client, charset: str) -> None:
    answer = http.post(JOBS, content=b"\xff\xfe\xff", headers={"Content-Type": f"application/json; charset={charset}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_a_client_that_waits_for_100_continue_and_sends_chunks_is_served(service: Service, dataset: Dataset) -> None:
    sent = json.dumps(body(dataset)).encode()
    head = (
        f"POST {JOBS} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {service.token()}\r\n"
        "content-type: application/json\r\nexpect: 100-continue\r\n"
        "transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(service.port)), timeout=30) as line:
        line.sendall(head.encode())
        assert line.recv(1000).startswith(b"HTTP/1.1 100")
        for part in (sent[:7], sent[7:]):
            line.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        line.sendall(b"0\r\n\r\n")
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200"), answer
    with service.http() as http:
        http.post(f"/v1/{json.loads(answer.partition(b'{')[1] + answer.partition(b'{')[2])['name']}:cancel")


@pytest.mark.parametrize("cut", [1, 40, 0, -5])
def test_a_body_behind_an_offer_of_http2_is_read(service: Service, tuned: dict[str, Any], cut: int) -> None:
    sent = json.dumps({"contents": [{"role": "user", "parts": [{"text": "q1"}]}]}).encode()
    head = (
        f"POST /v1/{tuned['tunedModel']['endpoint']}:countTokens HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        f"Host: localhost\r\nAuthorization: Bearer {service.token()}\r\nContent-Length: {len(sent)}\r\n"
        "HTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", int(service.port)), timeout=30) as line:
        for _ in range(2):  # the connection goes on after it
            whole, at = head + sent, len(head) + cut
            for part in (whole[:at], whole[at:]):
                line.sendall(part)
            answer = line.recv(65536)
            while not answer.endswith(b"}"):
                answer += line.recv(65536) or pytest.fail(f"it ends after {answer!r}")
            assert answer.startswith(b"HTTP/1.1 200") and b"totalTokens" in answer, answer


def test_a_method_may_be_written_as_a_header(http: httpx.Client, tuned: dict[str, Any]) -> None:
    read = http.post(f"/v1/{tuned['name']}", headers={"X-HTTP-Method-Override": "GET"})
    assert read.json()["name"] == tuned["name"]
    refused = http.post(f"/v1/{tuned['name']}", headers={"X-HTTP-Method-Override": "BREW"})
    assert refused.status_code == 405


def test_options_says_which_methods_a_path_has(http: httpx.Client) -> None:
    answer = http.request("OPTIONS", JOBS, headers={"Authorization": ""})
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, "GET, POST, OPTIONS", b"")
    assert http.request("OPTIONS", f"{JOBS}/1/nothing").status_code == 404


def test_waiting_takes_its_timeout_from_the_query_too(http: httpx.Client, tuned: dict[str, Any]) -> None:
    ref = {"tunedModelRef": {"tuningJob": tuned["name"]}}
    operation = http.post(f"{JOBS}:rebaseTunedModel", json=ref).raise_for_status().json()
    assert http.post(f"/v1/{operation['name']}:wait?timeout=1s").json()["done"] is True
    assert http.post(f"/v1/{operation['name']}:wait?timeout=soon").status_code == 400
    http.post(f"/v1/{operation['response']['name']}:cancel").raise_for_status()


def test_a_verb_without_fields_refuses_unknown_ones(http: httpx.Client, tuned: dict[str, Any]) -> None:
    for verb in ("cancel", "wait"):
        url = f"/v1/{tuned['name']}:{verb}"
        assert http.post(url, json={"name": tuned["name"]}).status_code == 200
        refused = http.post(url, json={"reason": "none"})
        assert refused.status_code == 400 and "reason" in refused.json()["error"]["message"]


def test_operations_of_every_location_are_listed_together(http: httpx.Client, tuned: dict[str, Any]) -> None:
    operation = http.post(f"{JOBS}:rebaseTunedModel", json={"tunedModelRef": {"tuningJob": tuned["name"]}}).json()
    everywhere = http.get(f"/v1/{PARENT.replace('us-central1', '-')}/operations").json()["operations"]
    assert operation in everywhere
    assert http.get(f"/v1/{PARENT.replace('us-central1', '-')}/operations/1").status_code == 400
    http.post(f"/v1/{operation['response']['name']}:cancel").raise_for_status()


def test_locations_are_listed_page_by_page_and_read(http: httpx.Client, tuned: dict[str, Any]) -> None:
    number = tuned["name"].split("/")[1]
    first = http.get("/v1/projects/demo/locations", params={"pageSize": 20}).json()
    rest = http.get("/v1/projects/demo/locations", params={"pageToken": first["nextPageToken"]}).json()
    ids = [place["locationId"] for place in first["locations"] + rest["locations"]]
    assert len(first["locations"]) == 20 and ids == sorted(set(ids)) and {"us-central1", "global"} <= set(ids)
    place = http.get(f"/v1beta1/{PARENT}").json()
    assert (
        place["name"] == f"projects/{number}/locations/us-central1" and place in first["locations"] + rest["locations"]
    )
    assert http.get("/v1/projects/demo/locations/moon").status_code == 400
    assert http.get("/v1/projects/nobody-here/locations").status_code == 403


def test_a_base_model_is_read_in_a_project_too(http: httpx.Client) -> None:
    name = "publishers/google/models/gemini-2.0-flash-001"
    assert http.get(f"/v1/{PARENT}/{name}").json() == http.get(f"/v1/{name}").json()
    assert http.get(f"/v1/{PARENT}/publishers/google/models/gemini-9").status_code == 404
    assert http.get(f"/v1/{PARENT.replace('demo', 'nobody-here')}/{name}").status_code == 403


def test_operations_refuse_a_filter_by_name(http: httpx.Client) -> None:
    answer = http.get(f"/v1/{PARENT}/operations", params={"filter": "done=true"})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["fieldViolations"][0]["field"] == "filter"


def test_a_finished_job_keeps_its_last_loss_and_speed(tuned: dict[str, Any]) -> None:
    throughput = tuned["tuningJobMetadata"].get("throughput", {"loss": 0.0, "tokensPerSecond": 0.0})
    assert set(throughput) == {"loss", "tokensPerSecond"}


def test_another_order_than_ours_is_refused_and_not_dropped(http: httpx.Client) -> None:
    for collection in ("tuningJobs", "models", "endpoints", "tensorboards", "batchPredictionJobs"):
        url = f"/v1/{PARENT}/{collection}"
        assert http.get(url, params={"orderBy": "create_time desc"}).status_code == 200
        answer = http.get(url, params={"orderBy": "create_time"})
        assert answer.status_code == 400 and "order_by" in answer.text, (collection, answer.text)


def test_tools_that_google_hosts_are_refused_by_name(http: httpx.Client) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "a"}]}], "tools": [{"googleSearch": {}}]}
    answer = http.post(f"/v1/{PARENT}/publishers/google/models/gemini-2.0-flash-001:generateContent", json=body)
    assert answer.status_code == 400 and "googleSearch is hosted by Google" in answer.text


def test_gemini_is_not_tuned_in_global(http: httpx.Client, dataset: Dataset) -> None:
    body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": {"trainingDatasetUri": dataset.training}}
    answer = http.post("/v1/projects/demo/locations/global/tuningJobs", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["status"] == "FAILED_PRECONDITION", answer.text


def test_a_client_that_will_not_wait_is_told_so(http: httpx.Client) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "a"}]}], "generationConfig": {"maxOutputTokens": 1500}}
    url = f"/v1/{PARENT}/publishers/google/models/gemini-2.0-flash-001:generateContent"
    answer = http.post(url, json=body, headers={"X-Server-Timeout": "0.02"})
    assert answer.status_code == 504 and answer.json()["error"]["status"] == "DEADLINE_EXCEEDED", answer.text
