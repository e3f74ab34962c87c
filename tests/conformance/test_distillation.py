"""Distillation through google-genai 2.x and 3.x, @google/genai, google-cloud-aiplatform and plain REST."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import PARENT, Dataset, ended
from .service import ANSWERS, Service, upload, wait_for
from .test_preference import NEWEST, lines

HERE = Path(__file__).parent
JOBS = f"/v1/{PARENT}/tuningJobs"
SPEC = "distillationSpec"
MODEL = "gemini-2.0-flash-001"


def asked(number: int) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": f"q{number % 4}"}]}]}


def answered(number: int, text: str) -> dict[str, Any]:
    return {"contents": [*asked(number)["contents"], {"role": "model", "parts": [{"text": text}]}]}


@pytest.fixture(scope="module")
def prompts(http: httpx.Client) -> str:
    return upload(http, "tuning-data", "prompts.jsonl", lines([asked(number) for number in range(8)]))


@pytest.fixture(scope="module")
def teacher(http: httpx.Client) -> str:
    """A tuned model that answers each of four questions with its word."""
    rows = [answered(number, ANSWERS[number]) for number in range(4)]
    spec = {
        "trainingDatasetUri": upload(http, "tuning-data", "lesson.jsonl", lines(rows)),
        "hyperParameters": {"epochCount": "80", "adapterSize": "ADAPTER_SIZE_EIGHT"},
        "exportLastCheckpointOnly": True,
    }
    made = http.post(JOBS, json={"baseModel": MODEL, "supervisedTuningSpec": spec})
    assert made.status_code == 200, made.text
    model: str = ended(http, made.json()["name"])["tunedModel"]["model"]
    return model


def create(http: httpx.Client, spec: dict[str, Any], **fields: Any) -> httpx.Response:
    return http.post(JOBS, json={"baseModel": MODEL, SPEC: spec} | fields)


def labelled(http: httpx.Client, folder: str, role: str = "training") -> list[dict[str, Any]]:
    bucket, _, name = folder.removeprefix("gs://").partition("/")
    path = f"{name}/{role}.jsonl".replace("/", "%2F")
    found = http.get(f"/storage/v1/b/{bucket}/o/{path}", params={"alt": "media"})
    assert found.status_code == 200, found.text
    return [json.loads(line) for line in found.text.splitlines()]


def place_of_labels(http: httpx.Client, job: dict[str, Any]) -> str:
    messages = [event["message"] for event in http.get(f"/v1/{job['name']}/events").json()["events"]]
    [words] = [message for message in messages if message.startswith("The labelled data is at ")]
    return words.split()[5].removesuffix("/training.jsonl,")


@pytest.fixture(scope="module", params=["2.", "3."])
def seen(
    request: pytest.FixtureRequest, service: Service, dataset: Dataset, prompts: str, teacher: str
) -> dict[str, Any]:
    python = NEWEST if request.param == "3." else Path(sys.executable)
    assert python.exists(), "`make test` makes .venv-genai3"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GOOGLE_")}
    environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(service.key_file)
    command = [str(python), str(HERE / "distillation_flow.py"), service.address, prompts, dataset.training, teacher]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith(request.param)
    return found


def test_the_official_client_distils_and_reads_the_outcome(
    seen: dict[str, Any], prompts: str, teacher: str, http: httpx.Client
) -> None:
    made, job = seen["made"], seen["job"]
    assert made["state"] == "JOB_STATE_PENDING"
    spec = job["distillation_spec"]
    assert spec["prompt_dataset_uri"] == prompts and spec["tuned_teacher_model_source"] == teacher
    assert spec["hyper_parameters"] == {
        "adapter_size": "ADAPTER_SIZE_EIGHT", "epoch_count": 3, "learning_rate_multiplier": 2.0,
    }  # fmt: skip
    assert "supervised_tuning_spec" not in job and job["name"] in seen["listed"]
    assert len(job["tuned_model"]["checkpoints"]) == 1
    stats = job["tuning_data_stats"]["distillation_data_stats"]["training_dataset_stats"]
    assert stats["tuning_dataset_example_count"] == 8
    assert "user_output_token_distribution" not in stats
    assert stats["user_input_token_distribution"]["sum"] == stats["total_billable_token_count"] > 0
    assert stats["user_dataset_examples"][0] == {"parts": [{"text": "q0"}], "role": "user"}
    raw = http.get(f"/v1/{job['name']}").json()
    assert raw[SPEC]["hyperParameters"]["sftLossWeightMultiplier"] == 0.5
    chosen = raw["tuningJobMetadata"]["effectiveParameters"]
    assert chosen["teacher"] == teacher and chosen["distillationLevel"] == "token"
    assert chosen["sftLossWeightMultiplier"] == 0.5 and chosen["teacherTemperature"] == 0
    rows = labelled(http, place_of_labels(http, raw))
    assert rows == [answered(number, ANSWERS[number % 4]) for number in range(8)]
    assert "supervised_tuning_spec" in seen["again"]
    assert seen["again"]["pre_tuned_model"]["tuned_model_name"] == job["tuned_model"]["model"]


def test_what_a_wrong_setting_sends_is_refused_by_its_field(seen: dict[str, Any]) -> None:
    none, both, unknown, wrong_field, without, elsewhere, negative = seen["errors"]
    for code, status, _ in seen["errors"]:
        assert (code, status) == (400, "INVALID_ARGUMENT")
    assert "distillation_spec.base_teacher_model; Message: Give one teacher" in none[2] and "neither is set" in none[2]
    assert "not both" in both[2]
    assert "distillation_spec.base_teacher_model" in unknown[2] and "no-such-model" in unknown[2]
    assert "outside/teacher" in unknown[2]
    assert "name it in tunedTeacherModelSource" in wrong_field[2]
    assert "already set" in without[2] and "distillationSpec.baseTeacherModel" in without[2]
    assert "sft_loss_weight_multiplier" in elsewhere[2] and "outside/teacher is not on this server" in elsewhere[2]
    assert "sft_loss_weight_multiplier" in negative[2] and "from 0 to 1000" in negative[2]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_client_for_node_distils(service: Service, prompts: str, teacher: str) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("GOOGLE_", "GCE_", "CLOUDSDK_"))}
    environ |= {"HOME": "/nonexistent", "GCE_METADATA_HOST": f"127.0.0.1:{service.port}"}
    command = ["node", str(HERE / "node" / "distillation.mjs"), service.address, prompts, teacher]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["job"]["state"] == "JOB_STATE_SUCCEEDED", found["job"].get("error")
    assert found["job"][SPEC]["tunedTeacherModelSource"] == teacher
    assert found["noTeacher"]["status"] == found["wrongMethod"]["status"] == 400
    assert "neither is set" in found["noTeacher"]["message"]


def test_the_deprecated_form_runs_as_google_cloud_aiplatform_sends_it(
    http: httpx.Client, prompts: str, teacher: str
) -> None:
    spec = {
        "trainingDatasetUri": prompts, "hyperParameters": {"epochCount": "1", "adapterSize": 2},
        "studentModel": MODEL, "tunedTeacherModelSource": teacher, "pipelineRootDirectory": "gs://tuning-data/root",
    }  # fmt: skip
    made = http.post(f"/v1beta1/{PARENT}/tuningJobs", json={"tunedModelDisplayName": "d", SPEC: spec})
    assert made.status_code == 200, made.text
    job = ended(http, made.json()["name"])
    assert job["baseModel"] == MODEL and job[SPEC]["studentModel"] == MODEL
    assert job[SPEC]["hyperParameters"]["adapterSize"] == "ADAPTER_SIZE_FOUR"
    assert "promptDatasetUri" not in job[SPEC]
    folder = f"gs://tuning-data/root/{job['name'].rpartition('/')[2]}"
    assert place_of_labels(http, job) == folder and len(labelled(http, folder)) == 8
    model = http.get(f"/v1/{job['tunedModel']['model']}").json()
    assert model["labels"]["tune-type"] == "distillation"
    reference = {"tunedModelRef": {"tuningJob": job["name"]}, "tuningJob": {"baseModel": "gemini-2.5-flash"}}
    again = http.post(f"/v1beta1/{PARENT}/tuningJobs:rebaseTunedModel", json=reference)
    assert again.status_code == 200, again.text
    rebased = ended(http, again.json()["response"]["name"])
    assert rebased["baseModel"] == "gemini-2.5-flash" and rebased[SPEC]["tunedTeacherModelSource"] == teacher


def test_a_teacher_elsewhere_answers_and_a_prompt_may_have_several_answers(
    http: httpx.Client, prompts: str, teacher: str
) -> None:
    held_out = upload(http, "tuning-data", "half.jsonl", lines([answered(0, "yes"), asked(1), asked(2)]))
    spec = {"promptDatasetUri": prompts, "validationDatasetUri": held_out, "baseTeacherModel": "outside/teacher",
            "hyperParameters": {"epochCount": "1"}}  # fmt: skip
    made = create(http, spec)
    assert made.status_code == 200, made.text
    job = ended(http, made.json()["name"])
    chosen = job["tuningJobMetadata"]["effectiveParameters"]
    assert chosen["distillationLevel"] == "sequence"
    assert "outside/teacher is not on this server" in chosen["reasons"]["distillationLevel"]
    place = place_of_labels(http, job)
    assert labelled(http, place) == [answered(number, "yes") for number in range(8)]
    assert labelled(http, place, "validation") == [answered(number, "yes") for number in range(3)]
    report = http.get(f"/v1/{job['name']}/evaluation").json()
    assert report["rows"] == 3
    config = {"temperature": 0.4, "candidateCount": 2}
    spec = {"prompt_dataset_uri": prompts, "tuned_teacher_model_source": teacher,
            "hyper_parameters": {"epoch_count": 1, "generation_config": config}}  # fmt: skip
    made = http.post(
        JOBS, json={"base_model": MODEL, "distillation_spec": spec, "labels": {"sarto-distillation": "sequence"}}
    )
    assert made.status_code == 200, made.text
    job = ended(http, made.json()["name"])
    chosen = job["tuningJobMetadata"]["effectiveParameters"]
    assert (chosen["candidateCount"], chosen["distillationLevel"]) == (2, "sequence")
    assert 14 <= len(labelled(http, place_of_labels(http, job))) <= 16


@pytest.mark.parametrize(
    ("parameters", "path", "words"),
    [
        ({"generationConfig": {"candidateCount": 3}}, "generation_config.candidate_count", "temperature above 0"),
        ({"generationConfig": {"candidateCount": 9, "temperature": 1}}, "candidate_count", "from 1 to 8"),
        ({"generationConfig": {"temperature": 2.5}}, "generation_config.temperature", "from 0 to 2"),
        ({"generationConfig": {"maxOutputTokens": 9}}, "max_output_tokens", "leave it out"),
        ({"epochCount": 0}, "hyper_parameters.epoch_count", "from 1 to 1000"),
        ({"learningRate": 0.1}, "hyper_parameters.learning_rate", "open models"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(
    http: httpx.Client, prompts: str, parameters: dict[str, Any], path: str, words: str
) -> None:
    spec = {"promptDatasetUri": prompts, "baseTeacherModel": "gemini-2.5-flash", "hyperParameters": parameters}
    refused = create(http, spec)
    assert refused.status_code == 400 and path in refused.text and words in refused.text


def test_faults_of_form_are_refused_by_name(http: httpx.Client, prompts: str) -> None:
    good = {"promptDatasetUri": prompts, "baseTeacherModel": "gemini-2.5-flash"}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"trainingDatasetUri": prompts}, {}, "deprecated name of promptDatasetUri"),
        ({"studentModel": "gemini-2.5-flash-lite"}, {}, "deprecated name of the job's baseModel"),
        ({"pipelineRootDirectory": "here"}, {}, "pipeline_root_directory"),
        ({}, {"labels": {"sarto-distillation": "both"}}, "sequence or token"),
        ({"tuningMode": "TUNING_MODE_FULL"}, {}, "TUNING_MODE_FULL is for open models"),
        ({"promptDatasetUri": ""}, {}, "distillation_spec.prompt_dataset_uri"),
    ]
    for spec, fields, words in cases:
        refused = create(http, good | spec, **fields)
        assert refused.status_code == 400 and words in refused.text, refused.text
    translated = create(http, good, baseModel="translation-llm-002")
    assert translated.status_code == 400 and "DISTILLATION is not for translation-llm-002" in translated.text


def test_prompts_are_checked_and_shown_before_a_job(http: httpx.Client, prompts: str) -> None:
    rows = [asked(number) for number in range(20)]
    rows[3] = answered(3, "old")
    rows[8] = {"contents": []}
    uri = upload(http, "tuning-data", "mixed.jsonl", lines(rows))
    body = {"baseModel": MODEL, "method": "DISTILLATION", "promptDatasetUri": uri}
    report = http.post(f"/v1/{PARENT}:checkDataset", json=body).json()
    assert report["isUsable"] is True
    assert (report["dataset"]["rows"], report["dataset"]["usedRows"]) == (20, 19)
    findings = [finding["message"] for finding in report["findings"]]
    assert any("1 row has a reply, which is left out" in message for message in findings)
    assert any("nor the time in which it gives them" in message for message in findings)
    assert not any("no token to learn" in message or "serving stops" in message for message in findings)
    proof = http.post(f"/v1/{PARENT}:showExample", json=body | {"row": 4}).json()
    assert proof["isSame"] is True and proof["contents"][-1]["role"] == "user"
    assert not any(token["learned"] for row in proof["training"] for token in row["tokens"])
    for row in rows[:5]:
        row["contents"] = []
    faulty = upload(http, "tuning-data", "no-prompts.jsonl", lines(rows))
    refused = create(http, {"promptDatasetUri": faulty, "baseTeacherModel": "gemini-2.5-flash"})
    assert refused.status_code == 400 and "line 1: contents" in refused.text


def test_the_series_have_the_divergence(http: httpx.Client, prompts: str, teacher: str) -> None:
    spec = {"promptDatasetUri": prompts, "tunedTeacherModelSource": teacher, "hyperParameters": {"epochCount": 1}}
    job = ended(http, create(http, spec).json()["name"])
    store = job["experiment"].partition("/contexts/")[0]
    query = f'schema_title="system.ExperimentRun" AND parent_contexts:"{job["experiment"]}"'
    [run] = http.get(f"/v1/{store}/contexts", params={"filter": query}).json()["contexts"]
    artifact = http.get(f"/v1/{store}/artifacts/{run['name'].rpartition('/')[2]}-tb-run").json()
    series = http.get(f"/v1/{artifact['metadata']['resourceName']}/timeSeries").json()["tensorboardTimeSeries"]
    assert {"/train_total_loss", "/train_kl_loss"} <= {each["displayName"] for each in series}


def test_a_job_that_labels_can_be_cancelled(http: httpx.Client) -> None:
    many = lines([{"prompt": f"What is number {number}?"} for number in range(400)])
    spec = {"promptDatasetUri": upload(http, "tuning-data", "many.jsonl", many), "baseTeacherModel": "gemini-2.5-flash"}
    name = create(http, spec).json()["name"]

    def labels() -> bool:
        events = http.get(f"/v1/{name}/events").json()["events"]
        return any("answers 400 times" in event["message"] for event in events)

    wait_for(labels)
    assert http.get(f"/v1/{name}").json()["tuningJobState"] == "TUNING_JOB_STATE_PROCESSING_DATASET"
    assert http.post(f"/v1/{name}:cancel").status_code == 200
    wait_for(lambda: http.get(f"/v1/{name}").json()["state"] == "JOB_STATE_CANCELLED")
