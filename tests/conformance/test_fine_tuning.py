"""OpenAI's fine-tuning API through its clients for Python and Node, beside the tuning API on the same jobs."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import PARENT
from .fine_tuning_flow import rows
from .service import Service

HERE = Path(__file__).parent
OLDER = HERE.parents[1] / ".venv-genai3" / "bin" / "python"
JOBS = f"/v1/{PARENT}/tuningJobs"
KEYS = "/v1/projects/-/serviceAccounts/{}/apiKeys"


@pytest.fixture(scope="module")
def key(service: Service, http: httpx.Client) -> str:
    made = http.post(KEYS.format(service.key["client_email"]), json={"project": "demo", "displayName": "tests"})
    return str(made.raise_for_status().json()["keyString"])


@pytest.fixture(scope="module", params=["3.", "1."])
def seen(request: pytest.FixtureRequest, service: Service, key: str, tuned: dict[str, Any]) -> dict[str, Any]:
    python = OLDER if request.param == "1." else Path(sys.executable)
    assert python.exists(), "`make test` makes .venv-genai3"
    place = "/openai/v1" if request.param == "3." else f"/v1/{PARENT}/endpoints/openapi"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE_", "OPENAI_"))}
    command = [str(python), str(HERE / "fine_tuning_flow.py"), service.address + place, key]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith(request.param)
    return found


def test_a_supervised_job_from_files_to_answers(seen: dict[str, Any]) -> None:
    made, job = seen["made"], seen["job"]
    assert made["status"] in ("validating_files", "queued") and made["object"] == "fine_tuning.job"
    assert made["hyperparameters"] == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": "auto"}
    assert made["error"] == {"code": None, "message": None, "param": None} and made["fine_tuned_model"] is None
    assert job["status"] == "succeeded" and job["seed"] == 7 and job["user_provided_suffix"] == "flow"
    assert job["method"]["supervised"]["hyperparameters"]["batch_size"] == 4
    assert job["metadata"] == {"team": "a b", "run": "1"} and job["trained_tokens"] > 0
    assert job["finished_at"] >= job["created_at"] and job["training_file"] == made["training_file"]
    assert job["validation_file"] in seen["files"] and job["organization_id"] == "demo"
    head, base, project, suffix, code = job["fine_tuned_model"].split(":")
    assert (head, base, project, suffix, len(code)) == ("ft", "gemini-2.0-flash-001", "demo", "flow", 8)
    assert seen["same"] == job
    assert job["fine_tuned_model"] in seen["models"] and seen["retrieved"]["id"] == job["fine_tuned_model"]
    assert all(name == answered for name, answered in seen["texts"].items()) and len(seen["texts"]) == 3


def test_a_dpo_job_continues_a_tuned_model(seen: dict[str, Any]) -> None:
    dpo = seen["dpo"]
    assert dpo["status"] == "succeeded" and dpo["model"] == seen["job"]["fine_tuned_model"]
    assert dpo["method"]["type"] == "dpo" and dpo["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    assert dpo["fine_tuned_model"].split(":")[3] == "" and dpo["metadata"] is None
    assert dpo["id"] in seen["without_metadata"] and dpo["id"] not in seen["by_metadata"]


def test_faulty_data_fail_the_job_with_code_and_parameter(seen: dict[str, Any]) -> None:
    bad = seen["bad"]
    assert bad["status"] == "failed" and bad["error"]["param"] == "training_file"
    assert bad["error"]["code"] == "invalid_file_format" and "line 1" in bad["error"]["message"]
    assert bad["fine_tuned_model"] is None and bad["result_files"] == []


def test_the_same_jobs_in_both_apis(seen: dict[str, Any], http: httpx.Client, tuned: dict[str, Any]) -> None:
    ours = http.get(f"{JOBS}/{seen['job']['id'].removeprefix('ftjob-')}").json()
    assert ours["state"] == "JOB_STATE_SUCCEEDED" and ours["tunedModelDisplayName"] == "flow"
    assert ours["supervisedTuningSpec"]["hyperParameters"]["epochCount"] == "2"
    assert ours["tuningJobMetadata"]["effectiveParameters"]["batchSize"] == 4
    assert f"ftjob-{tuned['name'].rpartition('/')[2]}" in seen["jobs"]
    assert seen["jobs"] == sorted(seen["jobs"], reverse=True) and len(seen["jobs"]) == len(set(seen["jobs"]))


def test_events_checkpoints_and_the_result_file(seen: dict[str, Any]) -> None:
    messages = [one["message"] for one in seen["events"]]
    assert messages[0] == "The job has successfully completed"
    assert messages[-1] == f"Created fine-tuning job: {seen['job']['id']}"
    assert f"New fine-tuned model created: {seen['job']['fine_tuned_model']}" in messages
    steps = [one for one in seen["events"] if one["type"] == "metrics"]
    assert len(steps) == 8 and steps[0]["message"].startswith("Step 8/8: training loss=")
    assert {"step", "total_steps", "train_loss", "train_mean_token_accuracy"} <= steps[0]["data"].keys()
    assert len({one["id"] for one in seen["events"]}) == len(seen["events"])
    checkpoints = seen["checkpoints"]
    assert [one["step_number"] for one in checkpoints] == [8, 4]
    assert checkpoints[0]["fine_tuned_model_checkpoint"].endswith(":ckpt-step-8")
    assert "full_valid_loss" in checkpoints[0]["metrics"] and "train_loss" in checkpoints[1]["metrics"]
    table = list(csv.DictReader(io.StringIO(base64.b64decode(seen["results"]).decode())))
    assert [row["step"] for row in table] == [str(step) for step in range(1, 9)]
    assert float(table[0]["train_loss"]) > 0 and table[-1]["valid_loss"] != "" == table[0]["valid_loss"]
    file = seen["result_file"]
    assert file["purpose"] == "fine-tune-results" and file["bytes"] == len(base64.b64decode(seen["results"]))
    assert file["id"] in seen["of_results"] and file["id"] in seen["files"]


def test_files_and_uploads(seen: dict[str, Any]) -> None:
    assert seen["made"]["training_file"] in seen["files"] and len(set(seen["files"])) == len(seen["files"])
    assert len(seen["content"].splitlines()) == 16
    assert seen["upload"]["made"] == "pending" and seen["upload"]["done"] == "completed"
    assert seen["upload"]["short"]["status"] == 400 and seen["upload"]["ended"] == "cancelled"
    assert [one["deleted"] for one in seen["deleted"]] == [True, True]
    assert len(seen["later"]) >= 3


def test_errors_have_code_parameter_and_request_id(seen: dict[str, Any]) -> None:
    found = seen["errors"]
    assert seen["cancelled"][0] == "cancelled"
    shown = [(one["status"], one["param"], one["code"]) for one in found]
    assert shown == [
        (400, None, "failed_precondition"),
        (400, "model", "model_not_found"),
        (400, "training_file", "invalid_argument"),
        (400, "training_file", "invalid_argument"),
        (400, "hyperparameters.n_epochs", "invalid_argument"),
        (400, None, "unimplemented"),
        (400, "suffix", "invalid_argument"),
        (400, "model", "model_not_found"),
        (404, None, "not_found"),
        (400, "purpose", "invalid_argument"),
        (400, None, "unimplemented"),
        (401, None, "unauthenticated"),
        (404, None, "not_found"),
        (404, None, "not_found"),
    ]
    assert all(one["id"] and one["message"] for one in found)


def test_the_command_line_of_the_older_client(seen: dict[str, Any], service: Service, key: str) -> None:
    if not seen["version"].startswith("1."):
        pytest.skip("3.x has no command line")
    environ = {**os.environ, "OPENAI_API_KEY": key, "OPENAI_BASE_URL": f"{service.address}/openai/v1"}

    def openai(verb: str, *more: str) -> Any:
        command = [str(OLDER.with_name("openai")), "api", f"fine_tuning.jobs.{verb}", *more]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    file = seen["made"]["training_file"]
    made = openai("create", "-m", "gemini-2.0-flash-001", "-F", file, "-s", "cli", "-H", '{"n_epochs": 1}')
    assert made["user_provided_suffix"] == "cli" and made["hyperparameters"]["n_epochs"] == 1
    assert openai("retrieve", "-i", made["id"])["id"] == made["id"]
    assert openai("list_events", "-i", made["id"])["data"]
    assert openai("list", "-l", "1")["data"][0]["id"] == made["id"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_client_for_node(service: Service, key: str, tmp_path: Path) -> None:
    assert (HERE / "node" / "node_modules").exists(), "`make test` installs the packages of tests/conformance/node"
    file = tmp_path / "train.jsonl"
    file.write_bytes(rows(8))
    program = str(HERE / "node" / "tuning_openai.mjs")
    command = ["node", program, f"{service.address}/openai/v1", key, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    job = found["job"]
    assert job["status"] == "succeeded" and job["metadata"] == {"from": "node"} and found["jobs"] == [job["id"]]
    assert found["events"][0] == "The job has successfully completed"
    assert found["answered"] == found["model"] == job["fine_tuned_model"]
    assert base64.b64decode(found["results"]).startswith(b"step,train_loss,") and found["deleted"]["deleted"]
    shown = [(one["status"], one["param"], one["code"]) for one in found["faults"]]
    assert shown == [(400, None, "failed_precondition"), (400, "model", "model_not_found")]
    assert all(one["id"] for one in found["faults"])
