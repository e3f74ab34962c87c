"""The unmodified `google-genai` SDK through the flow of the tuning documentation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google import genai
from google.genai import errors, types
from google.oauth2.credentials import Credentials

from .conftest import PARENT, Dataset
from .service import Service, upload

pytestmark = pytest.mark.filterwarnings("ignore", category=UserWarning)
ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[genai.Client]:
    """The key file as credentials: the SDK calls `token_uri` for a token."""
    client = genai.Client(
        vertexai=True,
        project="demo",
        location="us-central1",
        credentials=service.credentials(),
        http_options=types.HttpOptions(base_url=service.address),
    )
    yield client
    client.close()


def awaited(client: genai.Client, job: Any) -> Any:
    deadline = time.monotonic() + 60
    while job.state.name not in ENDED:
        assert job.state.name in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"), "samples stop polling on any other"
        assert time.monotonic() < deadline
        time.sleep(0.2)
        job = client.tunings.get(name=job.name)
    return job


@pytest.fixture(scope="module")
def job(client: genai.Client, dataset: Dataset) -> Any:
    made = client.tunings.tune(
        base_model="gemini-2.5-flash",
        training_dataset=types.TuningDataset(gcs_uri=dataset.training),
        config=types.CreateTuningJobConfig(
            epoch_count=2,
            tuned_model_display_name="genai",
            adapter_size=types.AdapterSize.ADAPTER_SIZE_TWO,
            learning_rate_multiplier=1.5,
            validation_dataset=types.TuningValidationDataset(gcs_uri=dataset.validation),
            description="documented flow",
            labels={"flow": "genai"},
        ),
    )
    assert made.experiment is None and made.state.name == "JOB_STATE_PENDING"
    return awaited(client, made)


def test_tune_and_read_the_outcome(job: Any) -> None:
    assert job.state.name == "JOB_STATE_SUCCEEDED", job.error
    assert job.tuned_model.model.endswith("@1") and "/endpoints/" in job.tuned_model.endpoint
    assert [one.checkpoint_id for one in job.tuned_model.checkpoints] == ["1", "2"]
    assert job.supervised_tuning_spec.hyper_parameters.adapter_size.name == "ADAPTER_SIZE_TWO"
    assert job.supervised_tuning_spec.hyper_parameters.epoch_count == 2
    assert job.tuning_data_stats.supervised_tuning_data_stats.tuning_dataset_example_count == 12
    assert job.tuning_job_metadata.completed_epoch_count == 2
    assert job.has_ended and job.has_succeeded and job.start_time < job.end_time


def test_list_reads_every_job_however_it_was_made(client: genai.Client, job: Any, tuned: dict[str, Any]) -> None:
    names = [one.name for one in client.tunings.list(config={"page_size": 1})]
    assert job.name in names and tuned["name"] in names
    assert len(names) == len(set(names))
    chosen = list(client.tunings.list(config={"filter": 'labels.flow = "genai" AND state = "JOB_STATE_SUCCEEDED"'}))
    assert [one.name for one in chosen] == [job.name]


def test_cancel(client: genai.Client, dataset: Dataset) -> None:
    made = client.tunings.tune(
        base_model="gemini-2.5-flash", training_dataset={"gcs_uri": dataset.training}, config={"epoch_count": 200}
    )
    client.tunings.cancel(name=made.name)
    assert awaited(client, made).state.name == "JOB_STATE_CANCELLED"


def test_generate_stream_and_count_by_endpoint_and_by_model_name(client: genai.Client, job: Any) -> None:
    config = types.GenerateContentConfig(temperature=0, max_output_tokens=6, seed=1)
    by_endpoint = client.models.generate_content(model=job.tuned_model.endpoint, contents="q1", config=config)
    by_model = client.models.generate_content(model=job.tuned_model.model, contents="q1", config=config)
    assert by_endpoint.text == by_model.text
    assert by_endpoint.model_version == "gemini-2.5-flash"
    assert by_endpoint.sdk_http_response.headers["content-encoding"] == "gzip"
    pieces = list(client.models.generate_content_stream(model=job.tuned_model.endpoint, contents="q1", config=config))
    assert "".join(piece.text or "" for piece in pieces) == by_endpoint.text
    assert pieces[-1].usage_metadata.candidates_token_count == by_endpoint.usage_metadata.candidates_token_count
    counted = client.models.count_tokens(model=job.tuned_model.endpoint, contents="q1")
    assert counted.total_tokens == by_endpoint.usage_metadata.prompt_token_count
    assert client.models.compute_tokens(model=job.tuned_model.endpoint, contents="q1").tokens_info[0].token_ids
    assert client.models.generate_content(model="gemini-2.0-flash-001", contents="q1", config=config).usage_metadata


def test_checkpoints_answer_by_their_own_endpoints(client: genai.Client, job: Any) -> None:
    for checkpoint in job.tuned_model.checkpoints:
        answer = client.models.generate_content(
            model=checkpoint.endpoint, contents="q1", config={"max_output_tokens": 2}
        )
        assert answer.candidates


def test_models_list_get_update(client: genai.Client, job: Any) -> None:
    tuned_models = list(client.models.list(config={"query_base": False}))
    plain = job.tuned_model.model.partition("@")[0]
    assert plain in [one.name.partition("@")[0] for one in tuned_models]
    base = [one.name for one in client.models.list(config={"query_base": True})]
    assert "publishers/google/models/gemini-2.0-flash-001" in base
    assert client.models.get(model="gemini-2.5-flash").name == "publishers/google/models/gemini-2.5-flash"
    model = client.models.get(model=job.tuned_model.model)
    assert model.tuned_model_info.base_model == "gemini-2.5-flash"
    assert [one.checkpoint_id for one in model.checkpoints] == ["1", "2"]
    assert {one.name for one in model.endpoints} >= {job.tuned_model.endpoint}
    changed = client.models.update(
        model=job.tuned_model.model, config={"display_name": "renamed", "default_checkpoint_id": "1"}
    )
    assert changed.display_name == "renamed" and changed.default_checkpoint_id == "1"


def test_continuous_tuning_makes_a_version_of_the_same_model(client: genai.Client, job: Any, dataset: Dataset) -> None:
    made = client.tunings.tune(
        base_model=job.tuned_model.model,
        training_dataset=types.TuningDataset(gcs_uri=dataset.training),
        config=types.CreateTuningJobConfig(epoch_count=1, pre_tuned_model_checkpoint_id="2"),
    )
    assert made.pre_tuned_model.checkpoint_id == "2"
    ended = awaited(client, made)
    assert ended.state.name == "JOB_STATE_SUCCEEDED", ended.error
    assert ended.tuned_model.model == job.tuned_model.model.partition("@")[0] + "@2"
    client.models.delete(model=ended.tuned_model.model)
    with pytest.raises(errors.ClientError, match="404"):
        client.models.get(model=ended.tuned_model.model)


def test_batch_prediction_with_a_base_model(client: genai.Client, service: Service) -> None:
    asked = {"contents": [{"role": "user", "parts": [{"text": "q1"}]}], "generationConfig": {"maxOutputTokens": 3}}
    rows = json.dumps({"request": asked}) + "\n"
    with service.http() as http:
        source = upload(http, "tuning-data", "batch/in.jsonl", (rows * 3).encode())
        batch = client.batches.create(
            model="gemini-2.0-flash-001", src=source, config={"dest": "gs://tuning-data/batch/out"}
        )
        deadline = time.monotonic() + 30
        while batch.state.name in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
            batch = client.batches.get(name=batch.name)
        assert batch.state.name == "JOB_STATE_SUCCEEDED", batch.error
        found = http.get("/storage/v1/b/tuning-data/o", params={"prefix": "batch/out/"}).json()["items"]
        assert [one["name"].rpartition("/")[2] for one in found] == ["predictions.jsonl"]
        lines = http.get(found[0]["mediaLink"].removeprefix(service.address)).text.splitlines()
    assert len(lines) == 3 and all('"status":""' in line for line in lines)
    assert batch.name in [one.name for one in client.batches.list()]
    assert client.batches.delete(name=batch.name).done


def test_errors_carry_code_status_and_message(client: genai.Client, dataset: Dataset) -> None:
    with pytest.raises(errors.ClientError) as caught:
        client.tunings.tune(
            base_model="gemini-2.5-flash",
            training_dataset={"gcs_uri": dataset.training},
            config={"adapter_size": "ADAPTER_SIZE_THIRTY_TWO"},
        )
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert "adapter" in caught.value.message
    with pytest.raises(errors.ClientError) as caught:
        client.tunings.get(name=f"{PARENT}/tuningJobs/1234567890123456789")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


@pytest.mark.parametrize("way", ["vertex", "gemini", "suffix"])
def test_settings_from_the_environment_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch, way: str, tuned: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {"project": "demo", "location": "us-central1"}
    if way == "vertex":
        monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", service.address)
        arguments["vertexai"] = True
    else:
        monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service.address)
    if way == "suffix":
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"{service.address}/local.googleapis.com")
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "demo")
        monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "us-central1")
        arguments = {"http_options": types.HttpOptions(api_version="v1")}
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service.key_file))
    with genai.Client(**arguments) as client:
        assert tuned["name"] in [one.name for one in client.tunings.list()]


def test_a_fixed_token_is_enough(service: Service, tuned: dict[str, Any]) -> None:
    with genai.Client(
        vertexai=True,
        project="demo",
        location="us-central1",
        credentials=Credentials(token=service.token()),
        http_options={"base_url": service.address, "api_version": "v1"},
    ) as client:
        assert client.tunings.get(name=tuned["name"]).state.name == "JOB_STATE_SUCCEEDED"
