"""Full tuning over a real port: google-genai and vertexai create it, a stock library opens its files, it is served,
continued, exported and deleted like any other model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from google import genai
from google.genai import types

from .conftest import PARENT, Dataset
from .conftest import ended as job_ended
from .service import Service, upload, wait_for
from .test_custom_base import violations
from .test_exports import body as export_body
from .test_exports import download, ended
from .test_google_genai import awaited

pytestmark = pytest.mark.filterwarnings("ignore")  # both clients announce their own removal
OPEN = "qwen/qwen3@qwen3-0.6b"
OUTPUT = "gs://full-weights/out"
CHECKPOINTS = f"{OUTPUT}/postprocess/node-0/checkpoints"


@pytest.fixture(scope="module")
def client(service: Service, http: httpx.Client) -> Any:
    upload(http, "full-weights", "here", b"")
    with genai.Client(
        vertexai=True,
        project="demo",
        location="us-central1",
        credentials=service.credentials(),
        http_options=types.HttpOptions(base_url=service.address),
    ) as made:
        yield made


@pytest.fixture(scope="module")
def job(client: genai.Client, dataset: Dataset) -> Any:
    made = client.tunings.tune(
        base_model=OPEN,
        training_dataset=types.TuningDataset(gcs_uri=dataset.training),
        config=types.CreateTuningJobConfig(
            epoch_count=2,
            learning_rate=1e-2,
            batch_size=2,
            tuning_mode=types.TuningMode.TUNING_MODE_FULL,
            validation_dataset=types.TuningValidationDataset(gcs_uri=dataset.validation),
            tuned_model_display_name="whole",
            output_uri=OUTPUT,
        ),
    )
    return awaited(client, made)


@pytest.fixture(scope="module")
def resource(http: httpx.Client, job: Any) -> dict[str, Any]:
    assert job.state.name == "JOB_STATE_SUCCEEDED", job.error
    found: dict[str, Any] = http.get(f"/v1/{job.name}").json()
    return found


def create(http: httpx.Client, dataset: Dataset, mode: Any = "TUNING_MODE_FULL", **fields: Any) -> httpx.Response:
    given = {"epochCount": 1, **fields.pop("hyperParameters", {})}
    spec = {"trainingDatasetUri": dataset.training, "hyperParameters": given, "tuningMode": mode}
    body = {"baseModel": OPEN, "outputUri": OUTPUT, "supervisedTuningSpec": spec, **fields}
    return http.post(f"/v1beta1/{PARENT}/tuningJobs", json={k: v for k, v in body.items() if v})


def answer(http: httpx.Client, name: str) -> str:
    body = {
        "contents": [{"role": "user", "parts": [{"text": "q1"}]}],
        "generationConfig": {"maxOutputTokens": 8, "temperature": 0},
    }
    found = http.post(f"/v1/{name}:generateContent", json=body)
    assert found.status_code == 200, found.text
    return str(found.json()["candidates"][0].get("content", {}).get("parts", [{}])[0].get("text", ""))


def test_the_job_says_what_was_tuned(http: httpx.Client, resource: dict[str, Any], job: Any) -> None:
    assert job.supervised_tuning_spec.tuning_mode.name == "TUNING_MODE_FULL"
    chosen = resource["tuningJobMetadata"]["effectiveParameters"]
    assert chosen["tuningMode"] == "TUNING_MODE_FULL" and "rank" not in chosen and "alpha" not in chosen
    assert chosen["learningRate"] == 1e-2 and chosen["details"]["trained_parameters"] > 10_000
    assert "adapterSize" not in resource["supervisedTuningSpec"]["hyperParameters"]
    model = http.get(f"/v1/{resource['tunedModel']['model']}").json()
    assert model["metadata"]["tuningMode"] == "TUNING_MODE_FULL" and model["labels"]["tune-type"] == "sft"
    assert [one["id"] for one in model["supportedExportFormats"]] == ["merged-safetensors", "gguf-f16", "gguf-q8-0"]
    assert all(found["passed"] for found in model["metadata"]["parityCertificates"].values())
    assert len(model["checkpoints"]) == 2


def test_a_stock_library_opens_the_weights_in_the_output_folder_and_answers_as_served(
    http: httpx.Client, resource: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = download(http, f"{CHECKPOINTS}/final", tmp_path / "final")
    assert (download(http, f"{CHECKPOINTS}/checkpoint-2", tmp_path / "2") / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    chat = [{"role": "user", "content": "q1"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=8, do_sample=False)[0][ids["input_ids"].shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True) == answer(http, resource["tunedModel"]["endpoint"])


def test_each_checkpoint_is_served_and_they_differ_from_the_base(http: httpx.Client, resource: dict[str, Any]) -> None:
    said = {one["checkpointId"]: answer(http, one["endpoint"]) for one in resource["tunedModel"]["checkpoints"]}
    assert set(said) == {"1", "2"}
    assert answer(http, resource["tunedModel"]["model"]) == said["2"]
    assert (
        answer(http, f"projects/demo/locations/us-central1/publishers/qwen/models/{OPEN.partition('/')[2]}")
        != said["2"]
    )


def test_a_batch_is_answered_by_the_whole_model(http: httpx.Client, resource: dict[str, Any]) -> None:
    request = {
        "contents": [{"role": "user", "parts": [{"text": "q1"}]}],
        "generationConfig": {"maxOutputTokens": 8, "temperature": 0},
    }
    source = upload(http, "full-weights", "ask.jsonl", json.dumps({"request": request}).encode())
    made = http.post(
        f"/v1/{PARENT}/batchPredictionJobs",
        json={
            "displayName": "b", "model": resource["tunedModel"]["model"],
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [source]}},
            "outputConfig": {
                "predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://full-weights/answers"},
            },
        },
    )  # fmt: skip
    assert made.status_code == 200, made.text
    job = wait_for(lambda: (found := http.get(f"/v1/{made.json()['name']}").json()).get("endTime") and found)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    [name] = [
        one["name"]
        for one in http.get("/storage/v1/b/full-weights/o", params={"prefix": "answers"}).json()["items"]
        if one["name"].endswith("predictions.jsonl")
    ]
    stored = http.get(f"/storage/v1/b/full-weights/o/{name.replace('/', '%2F')}", params={"alt": "media"})
    [row] = [json.loads(line) for line in stored.text.splitlines()]
    [part] = row["response"]["candidates"][0]["content"]["parts"]
    assert part["text"] == answer(http, resource["tunedModel"]["endpoint"])


def test_it_is_exported_whole(http: httpx.Client, resource: dict[str, Any], tmp_path: Path) -> None:
    name = resource["tunedModel"]["model"].partition("@")[0]
    refused = http.post(f"/v1/{name}:export", json=export_body("adapter"))
    assert refused.status_code == 400 and "was tuned whole" in refused.text
    for form in ("merged-safetensors", "gguf-f16"):
        done = ended(http, http.post(f"/v1/{name}:export", json=export_body(form)).json())
        assert "error" not in done, done
        assert done["metadata"]["comparison"]["passed"]
    from transformers import AutoModelForCausalLM

    merged = http.post(f"/v1/{name}:export", json=export_body("merged-safetensors")).json()
    uri = ended(http, merged)["metadata"]["outputInfo"]["artifactOutputUri"]
    assert AutoModelForCausalLM.from_pretrained(download(http, uri, tmp_path / "merged")).dtype == torch.bfloat16


def test_it_is_tuned_further_and_deleted_with_its_files(
    http: httpx.Client, service: Service, resource: dict[str, Any], dataset: Dataset
) -> None:
    source = {"preTunedModel": {"tunedModelName": resource["tunedModel"]["model"]}, "baseModel": ""}
    adapter = create(http, dataset, "TUNING_MODE_PEFT_ADAPTER", **source)
    assert adapter.json()["error"]["status"] == "UNIMPLEMENTED" and "was tuned whole" in adapter.text
    further = create(http, dataset, 1, tunedModelDisplayName="further", outputUri=f"{OUTPUT}/further", **source)
    assert further.status_code == 200, further.text
    again = job_ended(http, further.json()["name"])
    answer(http, again["tunedModel"]["endpoint"])
    before = {path.name for path in (service.home / "adapters").iterdir()}
    name = again["tunedModel"]["model"].partition("@")[0]
    assert http.delete(f"/v1/{name}").status_code == 200
    after = {path.name for path in (service.home / "adapters").iterdir()}
    assert len(before - after) == 1
    gone = http.post(f"/v1/{again['tunedModel']['endpoint']}:generateContent", json={"contents": []})
    assert gone.status_code in (400, 404)


def test_vertexai_sends_the_number(
    service: Service, http: httpx.Client, client: genai.Client, dataset: Dataset
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vertexai
        from vertexai.tuning import sft
    vertexai.init(
        project="demo", location="us-central1", api_endpoint=service.address, api_transport="rest",
        credentials=service.credentials(),
    )  # fmt: skip
    made = sft.train(
        source_model=OPEN, train_dataset=dataset.training, tuning_mode="FULL", epochs=1, learning_rate=1e-3,
        output_uri=f"{OUTPUT}/vertexai",
    )  # fmt: skip
    done = job_ended(http, made.resource_name)
    assert done["supervisedTuningSpec"]["tuningMode"] == "TUNING_MODE_FULL"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_client_for_node_tunes_whole(service: Service, client: genai.Client, dataset: Dataset) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("GOOGLE_", "GCE_", "CLOUDSDK_"))}
    environ |= {"HOME": "/nonexistent", "GCE_METADATA_HOST": f"127.0.0.1:{service.port}"}
    command = ["node", str(Path(__file__).with_name("node") / "full.mjs"), service.address, dataset.training]
    done = subprocess.run([*command, f"{OUTPUT}/node"], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["job"]["state"] == "JOB_STATE_SUCCEEDED", found["job"].get("error")
    assert found["job"]["supervisedTuningSpec"]["tuningMode"] == "TUNING_MODE_FULL"
    assert found["sized"]["status"] == 400 and "no adapter" in found["sized"]["message"]


def test_what_does_not_fit_is_refused_by_name(http: httpx.Client, client: genai.Client, dataset: Dataset) -> None:
    sized = violations(create(http, dataset, hyperParameters={"adapterSize": "ADAPTER_SIZE_FOUR"}))
    assert "no adapter" in sized["tuning_job.supervised_tuning_spec.hyper_parameters.adapter_size"][0]
    hosted = violations(create(http, dataset, baseModel="gemini-2.0-flash-001", outputUri=""))
    assert "open models" in hosted["tuning_job.supervised_tuning_spec.tuning_mode"][0]
    nowhere = violations(create(http, dataset, outputUri=""))
    assert "required" in nowhere["tuning_job.output_uri"][0]
    quantised = violations(create(http, dataset, labels={"sarto-quantisation": "int8"}))
    assert "leave the label out" in quantised["tuning_job.labels[sarto-quantisation]"][0]


def test_the_default_rate_is_that_of_full_tuning(http: httpx.Client, client: genai.Client, dataset: Dataset) -> None:
    done = job_ended(http, create(http, dataset, outputUri=f"{OUTPUT}/default").json()["name"])
    chosen = done["tuningJobMetadata"]["effectiveParameters"]
    assert chosen["learningRate"] == 1e-5
    assert "full tuning" in chosen["reasons"]["learningRate"]
