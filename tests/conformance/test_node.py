"""The unmodified `@google/genai` on Node, through the documented flow and the three ways it can sign in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import Dataset
from .service import Service

FOLDER = Path(__file__).with_name("node")

if shutil.which("node") is None or shutil.which("npm") is None:
    pytest.skip("node and npm are not installed", allow_module_level=True)


def run(service: Service, way: str, dataset: Dataset, *more: str, **environment: str) -> dict[str, Any]:
    """What the program printed, signed in by what `environment` says and nothing else."""
    assert (FOLDER / "node_modules").exists(), "`make test` installs the packages of tests/conformance/node"
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("GOOGLE_", "GCE_", "CLOUDSDK_"))}
    environ |= {"HOME": "/nonexistent", "CLOUDSDK_CONFIG": "/nonexistent", **environment}
    command = ["node", str(FOLDER / "flow.mjs"), way, service.address, dataset.training, *more]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def seen(service: Service, dataset: Dataset, tuned: dict[str, Any]) -> dict[str, Any]:
    return run(service, "default", dataset, "whole", GCE_METADATA_HOST=f"127.0.0.1:{service.port}")


def test_it_signs_in_by_the_metadata_server(seen: dict[str, Any], tuned: dict[str, Any]) -> None:
    assert tuned["name"] in seen["jobs"]


def test_it_signs_in_by_an_external_account_file(
    service: Service, dataset: Dataset, tuned: dict[str, Any], tmp_path: Path
) -> None:
    subject, file = tmp_path / "subject.json", tmp_path / "external.json"
    subject.write_text(json.dumps({"token": service.token()}))
    account = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/locations/global/workforcePools/sarto/providers/sarto",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{service.address}/sts/token",
        "credential_source": {
            "file": str(subject),
            "format": {"type": "json", "subject_token_field_name": "token"},
        },
    }
    file.write_text(json.dumps(account))
    assert tuned["name"] in run(service, "default", dataset, GOOGLE_APPLICATION_CREDENTIALS=str(file))["jobs"]


def test_it_signs_in_by_a_fixed_token(service: Service, dataset: Dataset, tuned: dict[str, Any]) -> None:
    assert tuned["name"] in run(service, "client", dataset, TOKEN=service.token())["jobs"]


def test_tune_get_list_and_cancel(seen: dict[str, Any]) -> None:
    made, job = seen["made"], seen["job"]
    assert made["state"] == "JOB_STATE_PENDING" and "experiment" not in made
    assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
    assert job["supervisedTuningSpec"]["hyperParameters"]["adapterSize"] == "ADAPTER_SIZE_TWO"
    assert [one["checkpointId"] for one in job["tunedModel"]["checkpoints"]] == ["1", "2"]
    assert seen["chosen"] == [job["name"]]
    assert seen["cancelled"] == "JOB_STATE_CANCELLED"


def test_models_are_listed_and_read(seen: dict[str, Any]) -> None:
    assert seen["job"]["tunedModel"]["model"].partition("@")[0] in [name.partition("@")[0] for name in seen["models"]]
    assert any(name.endswith("/gemini-2.5-flash") for name in seen["base"])
    assert seen["checkpoints"] == ["1", "2"]


def test_generation_unary_and_streamed_agree(seen: dict[str, Any]) -> None:
    assert seen["streamed"] == seen["text"]
    assert seen["counted"] == seen["promptTokens"] and seen["computed"]


def test_a_streamed_chat_remembers_what_an_unstreamed_one_remembers(seen: dict[str, Any]) -> None:
    for chat in seen["chats"]:
        assert chat["streamed"] == chat["texts"] and chat["streamedTokens"] == chat["tokens"]
        assert chat["history"] == [True, True]


def test_errors_carry_status_and_message(seen: dict[str, Any]) -> None:
    assert seen["badAdapter"]["status"] == 400 and "adapter" in seen["badAdapter"]["message"]
    assert seen["noJob"]["status"] == 404 and "NOT_FOUND" in seen["noJob"]["message"]
