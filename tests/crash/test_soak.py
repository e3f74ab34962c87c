"""Small real jobs one after another, for as long as `SARTO_SOAK_SECONDS` says (default: a few): memory and descriptors
of the service stay flat once it is warm.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx

from tests.conformance.service import Service, training_rows, upload
from tests.crash.test_two_servers import create, wait

SECONDS = float(os.environ.get("SARTO_SOAK_SECONDS", "5"))
WARM_JOBS = 5
MOST_GROWTH_BYTES = 24 << 20
MOST_GROWTH_DESCRIPTORS = 8


def memory_bytes(pid: int) -> int:
    """What is the process's own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def ask_everything(http: httpx.Client, name: str, endpoint: str) -> None:
    """What users and clients do beside the jobs."""
    for path in (name, f"{name}/events", f"{name.rpartition('/')[0]}?pageSize=20", f"{name}/dataReport", endpoint):
        assert http.get(f"/v1/{path}").status_code == 200
    body = {"contents": [{"role": "user", "parts": [{"text": "q1"}]}], "generationConfig": {"maxOutputTokens": 4}}
    assert http.post(f"/v1/{endpoint}:generateContent", json=body).status_code == 200


def test_memory_and_descriptors_of_the_service_stay_flat(tmp_path: Path) -> None:
    service = Service(tmp_path / "home")
    service.start()
    samples: list[tuple[int, int]] = []
    with service.http() as http:
        uri = upload(http, "tuning-data", "train.jsonl", training_rows())
        until = time.monotonic() + SECONDS
        while len(samples) < WARM_JOBS + 2 or time.monotonic() < until:
            job = wait(http, create(http, uri, epochs=1))
            assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
            ask_everything(http, job["name"], job["tunedModel"]["endpoint"])
            samples.append((memory_bytes(service.pid), descriptors(service.pid)))
            http.headers["Authorization"] = f"Bearer {service.token()}"
    assert service.stop() == 0
    warm = samples[WARM_JOBS - 1 :]
    part = max(1, len(warm) // 4)
    begin, end = (
        [sorted(one[i] for one in some)[len(some) // 2] for i in (0, 1)] for some in (warm[:part], warm[-part:])
    )
    print(
        f"\n{len(samples)} jobs; memory {begin[0] / 1e6:.1f} MB after the first {WARM_JOBS}, {end[0] / 1e6:.1f} MB at"
        f" the end; descriptors {begin[1]} and {end[1]}"
    )
    assert end[0] - begin[0] < MOST_GROWTH_BYTES, samples
    assert end[1] - begin[1] <= MOST_GROWTH_DESCRIPTORS, samples
