"""Exports of a tuned model over a real port: every format, read by transformers and peft; refusals, cancels."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from google.cloud import aiplatform

from sarto.engine.weights.gguf_reader import open_gguf

from .conftest import Dataset
from .service import Service, wait_for
from .test_serving import children

FORMATS = ("adapter", "merged-safetensors", "gguf-f16", "gguf-q8-0")


def body(format: str, uri: str = "gs://tuning-data/exports") -> dict[str, Any]:
    return {"outputConfig": {"exportFormatId": format, "artifactDestination": {"outputUriPrefix": uri}}}


def ended(http: httpx.Client, operation: dict[str, Any]) -> dict[str, Any]:
    def read() -> Any:
        found = http.post(f"/v1/{operation['name']}:wait", json={"timeout": "20s"}).json()
        return found if found.get("done") else None

    return dict(wait_for(read, 120))


def download(http: httpx.Client, uri: str, target: Path) -> Path:
    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    target.mkdir(parents=True)
    listed = http.get(f"/storage/v1/b/{bucket}/o", params={"prefix": f"{prefix}/"}).json()["items"]
    for item in listed:
        answer = http.get(f"/storage/v1/b/{bucket}/o/{item['name'].replace('/', '%2F')}", params={"alt": "media"})
        answer.raise_for_status()
        (target / item["name"].rpartition("/")[2]).write_bytes(answer.content)
    return target


@pytest.fixture(scope="module")
def exported(
    http: httpx.Client, tuned: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], Path]]:
    """Every format: the ended operation, and its files."""
    made = {}
    for name in FORMATS:
        answer = http.post(f"/v1/{tuned['tunedModel']['model']}:export", json=body(name))
        assert answer.status_code == 200, answer.text
        assert not answer.json().get("done")
        made[name] = answer.json()
    found = {}
    for name, operation in made.items():
        done = ended(http, operation)
        assert "error" not in done, done
        uri = done["metadata"]["outputInfo"]["artifactOutputUri"]
        found[name] = (done, download(http, uri, tmp_path_factory.mktemp("exports") / name))
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_is_compared_with_the_served_model_and_says_what_it_is(
    exported: dict[str, tuple[dict[str, Any], Path]], dataset: Dataset, tuned: dict[str, Any], name: str
) -> None:
    done, folder = exported[name]
    compared = done["metadata"]["comparison"]
    assert compared["passed"] and compared["rows"] == 4
    assert compared["mean_kl_nats"] <= compared["kl_tolerance_nats"]
    card = (folder / "README.md").read_text()
    for fact in (tuned["name"], dataset.training, "sha256: ", "learningRate", "license"):
        assert fact in card, fact


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_transformers_and_peft_load_adapter_and_merged_weights_alike(
    exported: dict[str, tuple[dict[str, Any], Path]], service: Service
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(service.home / "models" / "tiny", dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(base, exported["adapter"][1]).eval()
    merged = AutoModelForCausalLM.from_pretrained(exported["merged-safetensors"][1], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported["merged-safetensors"][1])
    chat = [{"role": "user", "content": "q1"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        one, other = with_adapter(**ids).logits, merged(**ids).logits
    assert (one - other).abs().max() < 0.05 * one.abs().max()
    assert (one[0, -1].argmax() == other[0, -1].argmax()).item()


def test_gguf_carries_template_and_tokenizer(exported: dict[str, tuple[dict[str, Any], Path]]) -> None:
    for name, form in (("gguf-f16", "F16"), ("gguf-q8-0", "Q8_0")):
        with open_gguf(exported[name][1] / "model.gguf") as file:
            assert "assistant" in file.metadata["tokenizer.chat_template"]
            assert len(file.metadata["tokenizer.ggml.tokens"]) == 259
            assert file.tensors["blk.0.attn_q.weight"].format.name == form


def test_the_official_client_exports(service: Service, http: httpx.Client, tuned: dict[str, Any]) -> None:
    aiplatform.init(
        project="demo", location="us-central1", api_endpoint=service.address, api_transport="rest",
        credentials=service.credentials(),
    )  # fmt: skip
    model = aiplatform.Model(tuned["tunedModel"]["model"])
    assert set(model.supported_export_formats) == set(FORMATS)
    info = model.export_model("adapter", artifact_destination="gs://tuning-data/by-client")
    assert info["artifactOutputUri"].startswith("gs://tuning-data/by-client/")


def test_what_cannot_be_exported_is_refused_before_anything_is_queued(
    http: httpx.Client, tuned: dict[str, Any]
) -> None:
    url = f"/v1/{tuned['tunedModel']['model']}:export"
    for asked, named in (
        (body("onnx"), "export_format_id"),
        (body("adapter", ""), "output_uri_prefix"),
        (body("adapter", "s3://bucket/x"), "output_uri_prefix"),
    ):
        answer = http.post(url, json=asked)
        assert answer.status_code == 400 and named in answer.text, answer.text
    assert http.post(url, json=body("adapter", "gs://no-such-bucket/x")).status_code == 404
    assert http.post(url, json=body("adapter") | {"checkpointId": "99"}).status_code == 404


def test_a_cancelled_export_ends_and_writes_nothing(http: httpx.Client, tuned: dict[str, Any]) -> None:
    url = f"/v1/{tuned['tunedModel']['model']}:export"
    made = http.post(url, json=body("gguf-f16", "gs://tuning-data/cancelled")).json()
    assert http.post(f"/v1/{made['name']}:cancel").json() == {}
    done = ended(http, made)
    assert done["error"]["code"] == 1
    listed = http.get("/storage/v1/b/tuning-data/o", params={"prefix": "cancelled/"}).json()
    assert not listed.get("items")


def test_a_killed_exporter_ends_the_operation_with_the_reason_and_leaves_nothing(
    service: Service, http: httpx.Client, tuned: dict[str, Any]
) -> None:
    url = f"/v1/{tuned['tunedModel']['model']}:export"
    made = http.post(url, json=body("merged-safetensors", "gs://tuning-data/killed")).json()
    (exporter,) = wait_for(lambda: children(service.pid, "sarto.engine.programs.export"))
    os.kill(exporter, signal.SIGKILL)
    done = ended(http, made)
    assert done["error"]["code"] == 14
    assert "process ended unexpectedly (exit code -9" in done["error"]["message"]
    listed = http.get("/storage/v1/b/tuning-data/o", params={"prefix": "killed/"}).json()
    assert not listed.get("items")
    assert not list((service.home / "runs").glob("export-*"))


def test_the_parity_certificate_is_kept_with_the_model(http: httpx.Client, tuned: dict[str, Any]) -> None:
    found = http.get(f"/v1/{tuned['tunedModel']['model']}").json()["metadata"]["parityCertificates"]
    assert set(found) == {one["checkpointId"] for one in tuned["tunedModel"]["checkpoints"]}
    assert all(one["passed"] and one["replyTokens"] > 0 for one in found.values())
