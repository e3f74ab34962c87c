"""customBaseModel over a real port: weights of a user's own from a bucket, tuned, served, tuned further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.tiny import make_tiny_base

from .conftest import PARENT, Dataset, ended
from .service import Service, upload

OPEN = "qwen/qwen3@qwen3-0.6b"
"""Its architecture is the tiny base's, a llama, in this service's catalogue."""
FOLDER = "gs://custom-weights/mine"


@pytest.fixture(scope="module")
def weights(http: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights than the service's, uploaded as a hub repository has them."""
    folder = tmp_path_factory.mktemp("mine") / "base"
    make_tiny_base(folder, seed=7)
    template = (folder / "chat_template.jinja").read_text()
    upload(http, "custom-weights", "mine/tokenizer_config.json", json.dumps({"chat_template": template}).encode())
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        upload(http, "custom-weights", f"mine/{name}", (folder / name).read_bytes())
    upload(http, "custom-weights", "mine/README.md", b"of no interest")
    return folder


def create(http: httpx.Client, dataset: Dataset, **fields: Any) -> httpx.Response:
    spec = {"trainingDatasetUri": dataset.training, "hyperParameters": {"epochCount": 1}}
    body = {"baseModel": OPEN, "outputUri": "gs://custom-weights/out", "supervisedTuningSpec": spec, **fields}
    return http.post(f"/v1beta1/{PARENT}/tuningJobs", json={k: v for k, v in body.items() if v})


def violations(answer: httpx.Response) -> dict[str, list[str]]:
    assert answer.status_code == 400, answer.text
    found: dict[str, list[str]] = {}
    for row in answer.json()["error"]["details"][0]["fieldViolations"]:
        found.setdefault(row["field"], []).append(row["description"])
    return found


def test_own_weights_are_tuned_served_and_tuned_further(
    http: httpx.Client, service: Service, dataset: Dataset, weights: Path
) -> None:
    made = create(http, dataset, customBaseModel=FOLDER)
    assert made.status_code == 200, made.text
    job = ended(http, made.json()["name"])
    assert job["customBaseModel"] == FOLDER and job["baseModel"] == OPEN
    [base] = (service.home / "models").glob("custom-*")
    assert (base / "model.safetensors").read_bytes() == (weights / "model.safetensors").read_bytes()
    model = http.get(f"/v1/{job['tunedModel']['model']}").json()
    assert model["metadata"]["weights"] == base.name
    body = {"contents": [{"role": "user", "parts": [{"text": "q1"}]}], "generationConfig": {"maxOutputTokens": 4}}
    answer = http.post(f"/v1/{job['tunedModel']['endpoint']}:generateContent", json=body)
    assert answer.status_code == 200 and answer.json()["usageMetadata"]["candidatesTokenCount"] > 0
    further = create(http, dataset, baseModel="", preTunedModel={"tunedModelName": job["tunedModel"]["model"]})
    assert further.status_code == 200, further.text
    again = ended(http, further.json()["name"])
    spec = json.loads((service.home / "runs" / again["name"].rpartition("/")[2] / "1" / "spec.json").read_bytes())
    assert spec["base"]["folder"] == f"models/{base.name}" and spec["parent_adapter"]


def test_a_folder_that_cannot_be_a_base_is_refused_with_everything_it_lacks(
    http: httpx.Client, dataset: Dataset, weights: Path
) -> None:
    upload(http, "custom-weights", "half/config.json", b'{"model_type": "mamba"}')
    upload(http, "custom-weights", "half/pytorch_model.bin", b"pickle")
    found = violations(create(http, dataset, customBaseModel="gs://custom-weights/half/"))
    told = found["tuning_job.custom_base_model"]
    for words in ("only safetensors", "no tokenizer.json", "no chat template", 'model_type "mamba"'):
        assert any(words in one for one in told), told
    for uri in ("gs://not-there/x", "file:///etc", "gs://custom-weights/empty"):
        assert "tuning_job.custom_base_model" in violations(create(http, dataset, customBaseModel=uri)), uri


def test_own_weights_are_for_open_models(http: httpx.Client, dataset: Dataset, weights: Path) -> None:
    closed = create(http, dataset, baseModel="gemini-2.0-flash-001", outputUri="", customBaseModel=FOLDER)
    assert "open models" in violations(closed)["tuning_job.custom_base_model"][0]
