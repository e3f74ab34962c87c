"""What sealing costs a job: the same job with and without a customer key, in turn, on a service with the small
base. Prints processor seconds of the service and its runs, and wall seconds from the job's start to its end.

    python benchmarks/sealing.py [--rows 120] [--rounds 3]

The first pair warms the disk and is not counted. On a busy machine, trust processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from processor import show_processor

LIMIT = 0.05
PARENT = "projects/demo/locations/us-central1"
KEY = f"{PARENT}/keyRings/ring/cryptoKeys/key"
SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards brew strong tea".split()


def rows(count: int) -> bytes:
    """Questions of about 60 tokens with replies of about 20, each its own."""
    made = []
    for i in range(count):
        turned = [WORDS[(i + j * (1 + i % 5)) % len(WORDS)] for j in range(40)]
        turns = [("user", f"Sort these, number {i}: {' '.join(turned)}"), ("model", " ".join(sorted(turned)[:14]))]
        made.append({"contents": [{"role": role, "parts": [{"text": text}]} for role, text in turns]})
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def processor_seconds(pid: int) -> float:
    """Of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def serve(home: Path) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    environment = {**os.environ, "SARTO_WARM_SECONDS": "0", "SARTO_THREADS": "1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", "from sarto.cli import main; main()", "serve", "--port", "0", "--home", str(home)]
    child = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
    while not (home / "address").exists():
        assert child.poll() is None, "the service did not start"
        time.sleep(0.05)
    file = str(home / "credentials" / "admin.json")
    credentials = service_account.Credentials.from_service_account_file(file, scopes=SCOPES)
    credentials.refresh(Request())
    headers = {"Authorization": f"Bearer {credentials.token}"}
    address = (home / "address").read_text().strip()
    return child, httpx.Client(base_url=address, headers=headers, timeout=60)


def prepare(http: httpx.Client, count: int) -> None:
    number = http.get("/v3/projects/demo").json()["projectNumber"]
    agent = f"serviceAccount:service-{number}@gcp-sa-vertex-tune.iam.gserviceaccount.com"
    bindings = [{"role": "roles/cloudkms.cryptoKeyEncrypterDecrypter", "members": [agent]}]
    for path, query, body in (
        (f"/v1/{PARENT}/keyRings", {"keyRingId": "ring"}, {}),
        (f"/v1/{PARENT}/keyRings/ring/cryptoKeys", {"cryptoKeyId": "key"}, {"purpose": "ENCRYPT_DECRYPT"}),
        (f"/v1/{KEY}:setIamPolicy", {}, {"policy": {"bindings": bindings}}),
        ("/storage/v1/b", {"project": "demo"}, {"name": "benchmark-data"}),
    ):
        http.post(path, params=query, json=body).raise_for_status()
    query = {"uploadType": "media", "name": "train.jsonl"}
    http.post("/upload/storage/v1/b/benchmark-data/o", params=query, content=rows(count)).raise_for_status()


def job(http: httpx.Client, pid: int, kms_key: str) -> tuple[float, float]:
    """(processor seconds, wall seconds)."""
    spec = {"trainingDatasetUri": "gs://benchmark-data/train.jsonl", "hyperParameters": {"epochCount": 2}}
    body: dict[str, Any] = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec}
    if kms_key:
        body["encryptionSpec"] = {"kmsKeyName": kms_key}
    before = processor_seconds(pid)
    made = http.post(f"/v1/{PARENT}/tuningJobs", json=body)
    assert made.status_code == 200, made.text
    while "endTime" not in (found := http.get(f"/v1/{made.json()['name']}").json()):
        time.sleep(0.5)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    begun, ended = (datetime.fromisoformat(found[name]).timestamp() for name in ("startTime", "endTime"))
    return processor_seconds(pid) - before, ended - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    show_processor()
    with tempfile.TemporaryDirectory() as folder:
        child, http = serve(Path(folder) / "home")
        try:
            prepare(http, given.rows)
            found: dict[str, list[tuple[float, float]]] = {"": [], KEY: []}
            for turn in range(given.rounds + 1):
                for kms_key, times in found.items():
                    measured = job(http, child.pid, kms_key)
                    if turn:
                        times.append(measured)
            for place, unit in enumerate(("processor", "wall")):
                open_, sealed = (statistics.median(one[place] for one in found[key]) for key in ("", KEY))
                print(f"{unit} seconds: {open_:.2f} open, {sealed:.2f} sealed, ratio {sealed / open_:.3f}")
            shares = [sealed[0] / open_[0] - 1 for open_, sealed in zip(found[""], found[KEY], strict=True)]
            print(f"sealing costs {statistics.median(shares):.1%} of a job's processor time (limit {LIMIT:.0%})")
        finally:
            http.close()
            child.send_signal(signal.SIGINT)
            child.wait()


if __name__ == "__main__":
    main()
