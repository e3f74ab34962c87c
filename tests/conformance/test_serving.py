"""Serving under an operator's eyes, over a real port: numbers, deadlines, and a worker that is killed mid-sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from .service import Service, wait_for

LONG = {
    "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
    "generationConfig": {"maxOutputTokens": 1900, "temperature": 0},
}
STREAM = "/v1/projects/demo/locations/us-central1/publishers/google/models/gemini-2.0-flash-001:streamGenerateContent"
"""Of the base: it has not learned to be brief."""
SHORT = LONG | {"generationConfig": {"maxOutputTokens": 4, "temperature": 0}}


def children(pid: int, module: str) -> list[int]:
    """Processes below `pid` that run a module of ours."""
    command = ["ps", "-e", "-ww", "-o", "pid=,ppid=,args="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pid and module in row[2]]


def metrics(http: httpx.Client) -> dict[tuple[str, str], float]:
    """(name, value of the only label) → number."""
    answer = http.get("/metrics")
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {(s.name, "".join(s.labels.values())): s.value for family in families for s in family.samples}


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


def test_metrics_say_what_the_worker_holds_and_does(http: httpx.Client, tuned: dict[str, Any]) -> None:
    endpoint = tuned["tunedModel"]["endpoint"]
    http.post(f"/v1/{endpoint}:generateContent", json=SHORT).raise_for_status()
    before = metrics(http)
    http.post(f"/v1/{endpoint}:generateContent", json=SHORT).raise_for_status()
    after = metrics(http)
    assert after["sarto_worker_up", ""] == 1
    assert after["sarto_requests_waiting", ""] == after["sarto_requests_running", "Tiny"] == 0
    assert after["sarto_adapters_resident", "Tiny"] >= 1
    assert after["sarto_adapter_hits_total", "Tiny"] == before["sarto_adapter_hits_total", "Tiny"] + 1
    assert after["sarto_adapter_load_seconds_total", "Tiny"] > 0
    assert after["sarto_generated_tokens_total", "Tiny"] > before["sarto_generated_tokens_total", "Tiny"]
    assert after["sarto_tuning_jobs", "succeeded"] >= 1


def test_metrics_are_for_nobody_without_a_token(service: Service) -> None:
    assert httpx.get(f"{service.address}/metrics").status_code == 401


def test_a_stream_ends_with_an_error_when_its_time_is_over(http: httpx.Client) -> None:
    headers = {"X-Server-Timeout": "0.4"}
    with http.stream("POST", STREAM, params={"alt": "sse"}, json=LONG, headers=headers) as answer:
        pieces = events_of(answer)
    assert pieces[-1]["error"]["status"] == "DEADLINE_EXCEEDED"
    assert all("candidates" in piece for piece in pieces[:-1])
    wait_for(lambda: metrics(http)["sarto_requests_running", "Tiny"] == 0)


def test_a_worker_killed_in_mid_stream_is_an_error_in_the_stream_and_the_next_request_has_another(
    service: Service, http: httpx.Client, tuned: dict[str, Any]
) -> None:
    pieces = []
    with http.stream("POST", STREAM, params={"alt": "sse"}, json=LONG) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: "):
                pieces.append(json.loads(line[6:]))
                if len(pieces) == 1:
                    (worker,) = children(service.pid, "sarto.serving.worker.program")
                    os.kill(worker, signal.SIGKILL)
    assert pieces[-1]["error"]["status"] == "UNAVAILABLE"
    assert "ended unexpectedly" in pieces[-1]["error"]["message"]
    assert http.get("/readyz").json() == {"status": "ok"}
    answer = http.post(f"/v1/{tuned['tunedModel']['endpoint']}:generateContent", json=SHORT)
    assert answer.status_code == 200 and answer.json()["candidates"][0]["content"]
    assert children(service.pid, "sarto.serving.worker.program") != [worker]
