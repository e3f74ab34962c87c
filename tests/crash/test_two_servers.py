"""Two `sarto serve` on one PostgreSQL database, with the real engine: what one is told, the other does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.service import MAIN, Service, training_rows, upload, wait_for

PARENT = "projects/demo/locations/us-central1"
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")


@pytest.fixture
def shared(tmp_path: Path, postgres_url: str) -> dict[str, str]:
    return {
        "SARTO_DATABASE_URL": postgres_url,
        "SARTO_DATA_FOLDER": str(tmp_path / "shared"),
        "SARTO_LEASE_SECONDS": "2",
        "SARTO_RESUME_SECONDS": "0.2",
        "SARTO_CONCURRENT_JOBS": "4",
        "SARTO_RUN_THREADS": "2",
    }


@pytest.fixture
def servers(tmp_path: Path, shared: dict[str, str]) -> Iterator[tuple[Service, Service]]:
    made = Service(tmp_path / "one"), Service(tmp_path / "two")
    for service in made:
        service.start(**shared)
    yield made
    for service in made:
        service.kill()


def create(http: httpx.Client, uri: str, epochs: int = 2) -> str:
    spec = {"trainingDatasetUri": uri, "hyperParameters": {"epochCount": str(epochs)}}
    made = http.post(
        f"/v1/{PARENT}/tuningJobs", json={"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec}
    )
    assert made.status_code == 200, made.text
    return str(made.json()["name"])


def wait(http: httpx.Client, name: str) -> dict[str, Any]:
    """Until it has ended, by the wait call."""

    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = http.post(f"/v1/{name}:wait", json={"timeout": "10s"}).json()
        return job if job["state"] in ENDED else None

    return dict(wait_for(ended, 120))


def story(http: httpx.Client, name: str) -> list[str]:
    return [event["kind"] for event in http.get(f"/v1/{name}/events").json()["events"]]


def test_jobs_made_on_one_server_are_seen_cancelled_and_finished_by_the_other(
    servers: tuple[Service, Service],
) -> None:
    one, two = servers
    token = {"Authorization": f"Bearer {one.token()}"}
    with one.http() as first, httpx.Client(base_url=two.address, headers=token, timeout=60) as second:
        uri = upload(first, "tuning-data", "train.jsonl", training_rows())
        names = [create(first, uri) for _ in range(4)]
        long = [create(first, uri, epochs=400) for _ in range(2)]
        listed = {job["name"] for job in second.get(f"/v1/{PARENT}/tuningJobs").json()["tuningJobs"]}
        assert listed == {*names, *long}
        doomed = wait_for(lambda: next((n for n in long if "started" in story(second, n)), ""))
        assert second.post(f"/v1/{doomed}:cancel", json={}).status_code == 200
        assert wait(first, doomed)["state"] == "JOB_STATE_CANCELLED"
        (other,) = set(long) - {doomed}
        wait_for(lambda: "started" in story(second, other))
        one.kill()
        late = create(second, uri)
        jobs = {name: wait(second, name) for name in (*names, late)}
        for name, job in jobs.items():
            assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
            assert story(second, name).count("succeeded") == 1
        models = second.get(f"/v1/{PARENT}/models", params={"pageSize": 100}).json()["models"]
        assert len(models) == len(jobs)
        assert second.post(f"/v1/{other}:cancel", json={}).status_code == 200
        assert wait(second, other)["state"] in ("JOB_STATE_CANCELLED", "JOB_STATE_SUCCEEDED")
        body = {"contents": [{"role": "user", "parts": [{"text": "q1"}]}], "generationConfig": {"maxOutputTokens": 4}}
        answer = second.post(f"/v1/{jobs[names[0]]['tunedModel']['endpoint']}:generateContent", json=body)
        assert answer.status_code == 200, answer.text


def test_a_server_with_another_folder_is_refused_at_its_start(
    servers: tuple[Service, Service], shared: dict[str, str], tmp_path: Path
) -> None:
    environ = {**os.environ, **shared, "SARTO_DATA_FOLDER": str(tmp_path / "elsewhere")}
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--home", str(tmp_path / "three")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "belongs to the data folder" in " ".join(done.stderr.split())
    assert json.loads((tmp_path / "one" / "credentials" / "admin.json").read_text())["project_id"] == "demo"
