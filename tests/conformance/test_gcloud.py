"""gcloud's `ai models` and `ai endpoints` commands against our address, signed in by the key file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from .conftest import PARENT, Dataset, ended
from .service import Service

if shutil.which("gcloud") is None:
    pytest.skip("gcloud is not installed", allow_module_level=True)

Gcloud = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def gcloud(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Gcloud:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("CLOUDSDK_", "GOOGLE_"))}
    environ |= {
        "CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("gcloud")),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_PROJECT": "demo",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"{service.address}/",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["gcloud", *arguments], env=environ, capture_output=True, text=True, timeout=60)

    done = run("auth", "activate-service-account", f"--key-file={service.key_file}")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def ai(gcloud: Gcloud) -> Callable[..., Any]:
    """An `ai` command in our region; gives its answer."""

    def run(*arguments: str) -> Any:
        done = gcloud("ai", *arguments, "--region=us-central1", "--format=json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or "null")

    return run


@pytest.fixture(scope="module")
def job(http: httpx.Client, dataset: Dataset) -> dict[str, Any]:
    """A tuned model that may be deleted."""
    body = {"baseModel": "gemini-2.5-flash", "supervisedTuningSpec": {"trainingDatasetUri": dataset.training}}
    made = http.post(f"/v1/{PARENT}/tuningJobs", json=body | {"tunedModelDisplayName": "for gcloud"})
    return ended(http, made.json()["name"])


def test_the_printed_token_is_ours(gcloud: Gcloud, service: Service) -> None:
    token = gcloud("auth", "print-access-token").stdout.strip()
    answer = httpx.get(f"{service.address}/v1/{PARENT}/tuningJobs", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text


def test_models_are_listed_and_described(ai: Callable[..., Any], job: dict[str, Any]) -> None:
    name = job["tunedModel"]["model"].partition("@")[0]
    assert name in [one["name"] for one in ai("models", "list")]
    described = ai("models", "describe", name.rpartition("/")[2])
    assert described["displayName"] == "for gcloud" and described["name"].partition("@")[0] == name


def test_endpoints_are_listed_described_and_asked(ai: Callable[..., Any], gcloud: Gcloud, job: dict[str, Any]) -> None:
    name = job["tunedModel"]["endpoint"]
    assert name in [one["name"] for one in ai("endpoints", "list")]
    described = ai("endpoints", "describe", name.rpartition("/")[2])
    assert described["deployedModels"][0]["model"].partition("@")[0] == job["tunedModel"]["model"].partition("@")[0]
    asked = gcloud("ai", "endpoints", "raw-predict", name.rpartition("/")[2], "--region=us-central1", "--request={}")
    assert asked.returncode != 0 and "generateContent" in asked.stderr, asked.stderr


def test_what_is_deleted_is_gone(ai: Callable[..., Any], gcloud: Gcloud, job: dict[str, Any]) -> None:
    name = job["tunedModel"]["model"].partition("@")[0].rpartition("/")[2]
    ai("models", "delete", name)
    missing = gcloud("ai", "models", "describe", name, "--region=us-central1")
    assert missing.returncode != 0 and "NOT_FOUND" in missing.stderr, missing.stderr
