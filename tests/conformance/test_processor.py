"""A processor that multiplies wrong, planted: jobs are right with fewer instructions and say so, or fail by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from sarto.system import failpoints

from .conftest import PARENT, ended
from .service import MAIN, Service, training_rows, upload, wait_for

SPEC = {"hyperParameters": {"epochCount": "1", "adapterSize": "ADAPTER_SIZE_FOUR"}}
ASKED = {
    "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
    "generationConfig": {"maxOutputTokens": 4, "temperature": 0},
}
BASE = f"/v1/{PARENT}/publishers/google/models/gemini-2.0-flash-001:generateContent"


@contextmanager
def service_on(home: Path, wrong: str) -> Iterator[tuple[Service, dict[str, str]]]:
    """A service whose processor multiplies wrong at some levels, and that environment."""
    service = Service(home)
    environment = {failpoints.VARIABLE: f"!wrong products at: {wrong}", "XDG_CACHE_HOME": str(home / "user-cache")}
    service.start(**environment)
    try:
        yield service, environment
    finally:
        service.stop()


def make_job(http: httpx.Client) -> str:
    uri = upload(http, "tuning-data", "train.jsonl", training_rows())
    body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": SPEC | {"trainingDatasetUri": uri}}
    made = http.post(f"/v1/{PARENT}/tuningJobs", json=body)
    assert made.status_code == 200, made.text
    return str(made.json()["name"])


def test_a_job_on_such_a_processor_is_right_and_says_with_what(tmp_path: Path) -> None:
    with service_on(tmp_path / "home", "ALL") as (service, environment), service.http() as http:
        job = ended(http, make_job(http))
        said = job["tuningJobMetadata"]["effectiveParameters"]["details"]["instructions"]
        assert said.startswith("up to AVX512_CORE_BF16") and "a product of training" in said
        answer = http.post(f"/v1/{job['tunedModel']['endpoint']}:generateContent", json=ASKED)
        assert answer.status_code == 200, answer.text
        command = [sys.executable, "-c", MAIN, "doctor", "--json", "--home", str(service.home)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        found = {one["name"]: one for one in json.loads(done.stdout)}["processor"]
        assert found["state"] == "warning" and "up to AVX512_CORE_BF16" in found["found"], found


def test_where_no_instructions_are_right_nothing_is_tuned_or_answered(tmp_path: Path) -> None:
    with service_on(tmp_path / "home", "ALL AVX512_CORE_BF16 AVX512_CORE AVX2") as (service, _), service.http() as http:
        name = make_job(http)

        def read() -> dict[str, Any] | None:
            job: dict[str, Any] = http.get(f"/v1/{name}").json()
            return job if job["state"] == "JOB_STATE_FAILED" else None

        job = wait_for(read, seconds=240)
        assert "This processor multiplies wrong with every set of instructions" in job["error"]["message"]
        refused = http.post(BASE, json=ASKED, timeout=240)
        assert refused.status_code == 400 and "multiplies wrong" in refused.json()["error"]["message"]
