"""Jobs under a customer key, over a real port with the real tiny model: nothing of theirs lies open, and the key
decides who reads it. Each test has a service of its own, for a home is scanned whole."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sarto.storage.encryption.scratch_folder import place_for
from tests.control.keys.vault import Vault

from .conftest import PARENT, ended
from .service import Service, upload, wait_for

KEY = f"{PARENT}/keyRings/ring/cryptoKeys/key"
CANARY = "zyxcanary"
LEASE_SECONDS = 2.0
ROLE = "roles/cloudkms.cryptoKeyEncrypterDecrypter"


def rows(count: int = 12) -> bytes:
    """Every row, question and reply, holds the canary."""
    made = []
    for i in range(count):
        question = {"role": "user", "parts": [{"text": f"{CANARY} q{i}"}]}
        made.append({"contents": [question, {"role": "model", "parts": [{"text": f"{CANARY}-{i % 4}"}]}]})
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def pairs(count: int = 40) -> bytes:
    """Every prompt and completion holds the canary."""

    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"text": text}]}

    made = []
    for i in range(count):
        replies = ((1.0, f"{CANARY}-{i % 4}"), (0.0, f"I would say {CANARY}-{i % 4}, or so"))
        completions = [{"score": score, "completion": turn("model", text)} for score, text in replies]
        made.append({"contents": [turn("user", f"{CANARY} q{i}")], "completions": completions})
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def make_key(http: httpx.Client, *, destroy_seconds: int = 0) -> None:
    http.post(f"/v1/{PARENT}/keyRings", params={"keyRingId": "ring"}).raise_for_status()
    body = {"purpose": "ENCRYPT_DECRYPT", "destroyScheduledDuration": f"{destroy_seconds}s"}
    made = http.post(f"/v1/{PARENT}/keyRings/ring/cryptoKeys", params={"cryptoKeyId": "key"}, json=body)
    made.raise_for_status()


def allow(http: httpx.Client) -> None:
    """The project's service agent may use the key."""
    number = http.get("/v3/projects/demo").json()["projectNumber"]
    agent = f"serviceAccount:service-{number}@gcp-sa-vertex-tune.iam.gserviceaccount.com"
    policy = {"bindings": [{"role": ROLE, "members": [agent]}]}
    http.post(f"/v1/{KEY}:setIamPolicy", json={"policy": policy}).raise_for_status()


def set_state(http: httpx.Client, state: str) -> None:
    version = f"/v1/{KEY}/cryptoKeyVersions/1"
    http.patch(version, params={"updateMask": "state"}, json={"state": state}).raise_for_status()


def create(http: httpx.Client, epochs: int = 2, **fields: Any) -> httpx.Response:
    spec = {
        "trainingDatasetUri": "gs://sealed-data/train.jsonl",
        "validationDatasetUri": "gs://sealed-data/validation.jsonl",
        "hyperParameters": {"epochCount": str(epochs), "adapterSize": "ADAPTER_SIZE_FOUR"},
    }
    body = {"supervisedTuningSpec": spec, "encryptionSpec": {"kmsKeyName": KEY}, **fields}
    source = {} if "preTunedModel" in fields else {"baseModel": "gemini-2.0-flash-001"}
    return http.post(f"/v1beta1/{PARENT}/tuningJobs", json=source | body)


def ask(http: httpx.Client, endpoint: str) -> httpx.Response:
    turn = {"role": "user", "parts": [{"text": f"{CANARY} q1"}]}
    body = {"contents": [turn], "generationConfig": {"temperature": 0, "maxOutputTokens": 12}}
    return http.post(f"/v1/{endpoint}:generateContent", json=body)


def state_is(http: httpx.Client, name: str, state: str) -> dict[str, Any] | None:
    """The job once it is in that state."""
    job: dict[str, Any] = http.get(f"/v1/{name}").json()
    return job if job["state"] == state else None


def events(http: httpx.Client, name: str) -> list[str]:
    return [event["message"] for event in http.get(f"/v1beta1/{name}/events").json()["events"]]


def resident_adapters(http: httpx.Client) -> float:
    """Adapters that the generation worker has in memory."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("sarto_adapters_resident{"))


def open_files(*folders: Path) -> list[str]:
    """Files that show the canary, in any of the encodings that text takes here."""
    needles = [CANARY.encode(), CANARY.encode("utf-16-le"), CANARY.encode("utf-32-le")]
    needles += [b"".join(ord(c).to_bytes(2, "little") for c in CANARY)]  # the byte tokenizer's ids
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "home")
    service.start(SARTO_LEASE_SECONDS="2", SARTO_RESUME_SECONDS="0.2")
    try:
        with service.http() as http:
            make_key(http)
            allow(http)
            bucket = {"name": "sealed-data", "location": "us-central1", "encryption": {"defaultKmsKeyName": KEY}}
            made = http.post("/storage/v1/b", params={"project": "demo"}, json=bucket)
            assert made.status_code == 200, made.text
            upload(http, "sealed-data", "train.jsonl", rows())
            upload(http, "sealed-data", "validation.jsonl", rows(4))
        yield service
    finally:
        if not service.has_ended:
            service.stop()


def test_a_keyed_job_leaves_nothing_open_and_a_destroyed_key_ends_it_all(service: Service) -> None:
    private = place_for(service.home)
    with service.http() as http:
        made = create(http)
        assert made.status_code == 200, made.text
        job = ended(http, made.json()["name"])
        assert job["encryptionSpec"] == {"kmsKeyName": KEY}
        endpoint = job["tunedModel"]["endpoint"]
        assert http.get(f"/v1/{endpoint}").json()["encryptionSpec"] == {"kmsKeyName": KEY}
        assert http.get(f"/v1/{job['tunedModel']['model']}").json()["encryptionSpec"] == {"kmsKeyName": KEY}
        answer = ask(http, endpoint)
        assert answer.status_code == 200, answer.text
        report = http.get(f"/v1/{job['name']}/dataReport")
        assert report.status_code == 200, report.text
        assert CANARY in http.get("/storage/v1/b/sealed-data/o/train.jsonl", params={"alt": "media"}).text
        assert open_files(service.home) == [] and resident_adapters(http) == 1
        set_state(http, "DISABLED")
        wait_for(lambda: ask(http, endpoint).status_code == 400)
        refused = ask(http, endpoint).json()["error"]
        assert refused["status"] == "FAILED_PRECONDITION" and "DISABLED" in refused["message"]
        wait_for(lambda: list(private.glob("*/opened/*")) == [])
        wait_for(lambda: resident_adapters(http) == 0)
        set_state(http, "ENABLED")
        again = ask(http, endpoint)
        assert again.json()["candidates"] == answer.json()["candidates"]
        destroyed = http.post(f"/v1/{KEY}/cryptoKeyVersions/1:destroy").json()
        assert destroyed["state"] == "DESTROYED"
        wait_for(lambda: ask(http, endpoint).status_code == 400)
        for path in (f"/v1/{job['name']}/dataReport", "/storage/v1/b/sealed-data/o/train.jsonl?alt=media"):
            gone = http.get(path)
            assert gone.status_code == 400 and "DESTROYED" in gone.text, gone.text
        wait_for(lambda: list(private.glob("*/opened/*")) == [])
    assert service.stop() == 0
    assert open_files(service.home) == []
    assert [path for path in private.iterdir() if path.is_dir()] == []


def test_what_a_killed_service_left_open_goes_when_it_starts_and_its_job_resumes(service: Service) -> None:
    private = place_for(service.home)
    with service.http() as http:
        name = create(http, epochs=300).json()["name"]
        point = service.home / "runs" / name.rpartition("/")[2] / "resume" / "resume.safetensors"
        wait_for(point.exists)
        os.kill(service.pid, signal.SIGKILL)
    wait_for(lambda: service.has_ended)
    left = [path for path in private.iterdir() if path.is_dir()]
    assert open_files(*left) and open_files(service.home) == []
    (service.home / "address").unlink()  # of the killed one
    service.start(SARTO_LEASE_SECONDS="2", SARTO_RESUME_SECONDS="0.2")
    assert not any(path.exists() for path in left)
    with service.http() as http:
        ended(http, name)
        assert any("resumed after step" in told for told in events(http, name)), events(http, name)
    assert open_files(service.home) == []


def test_a_disabled_key_stops_a_running_job_within_a_lease_and_an_enabled_one_lets_it_go_on(service: Service) -> None:
    with service.http() as http:
        name = create(http, epochs=300).json()["name"]
        point = service.home / "runs" / name.rpartition("/")[2] / "resume" / "resume.safetensors"
        wait_for(point.exists)
        set_state(http, "DISABLED")
        paused = wait_for(lambda: state_is(http, name, "JOB_STATE_PAUSED"), 2 * LEASE_SECONDS)
        assert paused["error"]["code"] == 9 and "DISABLED" in paused["error"]["message"]
        assert list(place_for(service.home).glob("*/*/job")) == []
        set_state(http, "ENABLED")
        going = wait_for(lambda: state_is(http, name, "JOB_STATE_RUNNING"), 3 * LEASE_SECONDS)
        assert "error" not in going
        job = ended(http, name)
        assert job["startTime"] == paused["startTime"]
        assert any("resumed after step" in told for told in events(http, name)), events(http, name)
        set_state(http, "DISABLED")
        waiting = create(http)
        assert waiting.status_code == 400 and "DISABLED" in waiting.text


def test_what_is_wrong_with_sealed_data_is_in_the_sealed_report_alone(service: Service) -> None:
    with service.http() as http:
        good, bad = rows(110), f'{{"contents": [{{"role": "{CANARY}", "parts": []}}]}}\n'.encode() * 30
        upload(http, "sealed-data", "train.jsonl", good + bad)
        name = create(http).json()["name"]
        job = wait_for(lambda: state_is(http, name, "JOB_STATE_FAILED"))
        assert CANARY not in json.dumps(job) and "30 of 140 rows cannot be used" in job["error"]["message"]
        assert CANARY in http.get(f"/v1/{name}/dataReport").text
        assert open_files(service.home) == []


def test_exports_and_predictions_of_a_keyed_model_are_sealed_and_so_are_answers_about_its_data(
    service: Service,
) -> None:
    with service.http() as http:
        job = ended(http, create(http).json()["name"])
        model = job["tunedModel"]["model"]
        shown = http.get(f"/v1/{job['name']}:showExample", params={"row": "2"})
        assert shown.status_code == 200 and CANARY in shown.text, shown.text
        check = {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": "gs://sealed-data/train.jsonl"}
        checked = http.post(f"/v1/{PARENT}:checkDataset", json=check)
        assert checked.status_code == 200, checked.text
        requests = [{"request": {"contents": [{"role": "user", "parts": [{"text": CANARY}]}]}}]
        http.post("/storage/v1/b", params={"project": "demo"}, json={"name": "plain"}).raise_for_status()
        source = upload(http, "sealed-data", "ask.jsonl", "".join(json.dumps(r) + "\n" for r in requests).encode())
        batch = {
            "displayName": "b",
            "model": model,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [source]}},
            "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://plain/out"}},
        }
        # a model without a key too: the answers repeat the sealed input
        for answers in (model, "publishers/google/models/gemini-2.0-flash-001"):
            made = http.post(f"/v1/{PARENT}/batchPredictionJobs", json=batch | {"model": answers})
            assert made.status_code == 200, made.text
            name = made.json()["name"]
            wait_for(lambda name=name: state_is(http, name, "JOB_STATE_SUCCEEDED"))
        target = {"outputUriPrefix": "gs://plain/exports"}
        exported = http.post(
            f"/v1/{model}:export",
            json={"outputConfig": {"exportFormatId": "merged-safetensors", "artifactDestination": target}},
        )
        assert exported.status_code == 200, exported.text
        done = wait_for(lambda: (found := http.get(f"/v1/{exported.json()['name']}").json()).get("done") and found)
        assert "error" not in done, done
        objects = http.get("/storage/v1/b/plain/o").json()["items"]
        assert len(objects) > 3 and all(one["kmsKeyName"].endswith("/cryptoKeys/key") for one in objects)
        assert open_files(service.home) == []
        for one in objects:
            read = http.get(f"/storage/v1/b/plain/o/{one['name'].replace('/', '%2F')}", params={"alt": "media"})
            assert read.status_code == 200 and str(len(read.content)) == one["size"]
        further = create(http, preTunedModel={"tunedModelName": model})
        assert further.status_code == 200, further.text
        ended(http, further.json()["name"])
        spec = {"trainingDatasetUri": upload(http, "plain", "train.jsonl", rows())}
        body = {"preTunedModel": {"tunedModelName": model}, "supervisedTuningSpec": spec}
        other = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body)
        assert other.status_code == 400 and "under its own key" in other.text
        assert open_files(service.home) != []  # the scan sees what lies open


def test_pairs_under_a_key_lie_nowhere_open_and_full_tuning_under_one_is_refused(service: Service) -> None:
    with service.http() as http:
        spec = {
            "trainingDatasetUri": upload(http, "sealed-data", "pairs.jsonl", pairs()),
            "validationDatasetUri": upload(http, "sealed-data", "held-out.jsonl", pairs(6)),
            "hyperParameters": {"epochCount": "2", "adapterSize": "ADAPTER_SIZE_FOUR"},
        }
        body = {"baseModel": "gemini-2.0-flash-001", "encryptionSpec": {"kmsKeyName": KEY}}
        made = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body | {"preferenceOptimizationSpec": spec})
        assert made.status_code == 200, made.text
        job = ended(http, made.json()["name"])
        stats = job["tuningDataStats"]["preferenceOptimizationDataStats"]
        assert stats["tuningDatasetExampleCount"] == "40" and not stats.get("userDatasetExamples")
        assert ask(http, job["tunedModel"]["endpoint"]).status_code == 200
        assert CANARY in http.get(f"/v1/{job['name']}:showExample", params={"row": "2"}).text
        full = {"trainingDatasetUri": "gs://sealed-data/train.jsonl", "tuningMode": "TUNING_MODE_FULL"}
        body |= {"baseModel": "qwen/qwen3@qwen3-0.6b", "outputUri": "gs://sealed-data/out"}
        refused = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body | {"supervisedTuningSpec": full})
        assert refused.status_code in (400, 501) and "Full tuning under a customer key" in refused.text
    assert open_files(service.home) == []
    assert service.stop() == 0
    assert open_files(service.home) == []


def test_a_keyed_distillation_leaves_no_answer_of_its_teacher_open(service: Service) -> None:
    with service.http() as http:
        made = create(http, epochs=60, tunedModelDisplayName="teacher")
        assert made.status_code == 200, made.text
        teacher = ended(http, made.json()["name"])["tunedModel"]["model"]
        spec = {
            "promptDatasetUri": "gs://sealed-data/train.jsonl",
            "tunedTeacherModelSource": teacher,
            "hyperParameters": {"epochCount": "1"},
        }
        body = {"baseModel": "gemini-2.0-flash-001", "distillationSpec": spec}
        bare = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body)
        assert bare.status_code == 400 and "The teacher is encrypted under" in bare.text
        made = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body | {"encryptionSpec": {"kmsKeyName": KEY}})
        assert made.status_code == 200, made.text
        job = ended(http, made.json()["name"])
        stats = job["tuningDataStats"]["distillationDataStats"]["trainingDatasetStats"]
        assert stats["tuningDatasetExampleCount"] == "12" and not stats.get("userDatasetExamples")
        assert job["tuningJobMetadata"]["effectiveParameters"]["distillationLevel"] == "token"
        [words] = [words for words in events(http, job["name"]) if words.startswith("The labelled data is at gs://")]
        bucket, _, name = words.split()[5].rstrip(",").removeprefix("gs://").partition("/")
        path = f"/storage/v1/b/{bucket}/o/{name.replace('/', '%2F')}"
        assert http.get(path, params={"alt": "media"}).text.count(f"{CANARY}-") == 12
    assert open_files(service.home) == []
    assert service.stop() == 0
    assert open_files(service.home) == []


@pytest.mark.slow
def test_a_key_in_a_vault_seals_a_job_and_pauses_it_when_the_vault_refuses(tmp_path: Path) -> None:
    with Vault() as vault:
        home = tmp_path / "home"
        service = Service(home)
        (home / "config.toml").write_text(
            f'vault_token = "root"\n[external_keys]\n"{KEY}" = "hcvault+http://{vault.address}/transit/keys/sarto"\n'
        )
        service.start(SARTO_LEASE_SECONDS="2", SARTO_RESUME_SECONDS="0.2")
        try:
            with service.http() as http:
                number = http.get("/v3/projects/demo").json()["projectNumber"]
                agent = f"serviceAccount:service-{number}@gcp-sa-vertex-tune.iam.gserviceaccount.com"
                policy = http.post("/v1/projects/demo:getIamPolicy", json={}).json()
                policy["bindings"].append({"role": ROLE, "members": [agent]})
                http.post("/v1/projects/demo:setIamPolicy", json={"policy": policy}).raise_for_status()
                upload(http, "sealed-data", "train.jsonl", rows())
                upload(http, "sealed-data", "validation.jsonl", rows(4))
                made = create(http, epochs=300)
                assert made.status_code == 200, made.text
                name = made.json()["name"]
                wait_for((home / "runs" / name.rpartition("/")[2] / "resume" / "resume.safetensors").exists)
                vault.refuses = True
                paused = wait_for(lambda: state_is(http, name, "JOB_STATE_PAUSED"), 3 * LEASE_SECONDS)
                assert paused["error"]["code"] == 9 and "hcvault" in paused["error"]["message"]
                vault.refuses = False
                job = ended(http, name)
                assert ask(http, job["tunedModel"]["endpoint"]).status_code == 200
            assert open_files(home / "runs", home / "adapters") == [] and vault.calls > 10
        finally:
            service.stop()
