"""Preference tuning through google-genai 2.x and 3.x, @google/genai and plain REST in both spellings."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import PARENT, Dataset, ended
from .service import ANSWERS, Service, upload

HERE = Path(__file__).parent
NEWEST = HERE.parents[1] / ".venv-genai3" / "bin" / "python"
JOBS = f"/v1/{PARENT}/tuningJobs"
SPEC = "preferenceOptimizationSpec"
OURS = ("reward_accuracy", "reward_margin", "chosen_log_probability", "rejected_log_probability")


def pair(number: int, **changes: Any) -> dict[str, Any]:
    """A question, a short answer that is preferred, and a longer one."""
    word = ANSWERS[number % len(ANSWERS)]
    scored = [(1.0, word), (0.0, f"I would say {word}, {word}.")][:: 1 if number % 2 else -1]
    completions = [
        {"score": score, "completion": {"role": "model", "parts": [{"text": text}]}} for score, text in scored
    ]
    return {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": f"q{number}"}]}],
        "completions": completions,
    } | changes


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def pairs(http: httpx.Client) -> str:
    return upload(http, "tuning-data", "pairs.jsonl", lines([pair(number) for number in range(16)]))


@pytest.fixture(scope="module", params=["2.", "3."])
def seen(request: pytest.FixtureRequest, service: Service, dataset: Dataset, pairs: str) -> dict[str, Any]:
    python = NEWEST if request.param == "3." else Path(sys.executable)
    assert python.exists(), "`make test` makes .venv-genai3"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GOOGLE_")}
    environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(service.key_file)
    command = [str(python), str(HERE / "preference_flow.py"), service.address, pairs, dataset.training]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith(request.param)
    return found


def test_the_official_client_tunes_on_pairs_and_reads_the_outcome(seen: dict[str, Any]) -> None:
    made, job = seen["made"], seen["job"]
    assert made["state"] == "JOB_STATE_PENDING"
    spec = job["preference_optimization_spec"]
    assert spec["hyper_parameters"] == {
        "adapter_size": "ADAPTER_SIZE_TWO", "beta": 0.2, "epoch_count": 2, "learning_rate_multiplier": 1.5,
    }  # fmt: skip
    assert spec["training_dataset_uri"] == spec["validation_dataset_uri"] == "gs://tuning-data/pairs.jsonl"
    assert "supervised_tuning_spec" not in job
    assert [one["checkpoint_id"] for one in job["tuned_model"]["checkpoints"]] == ["1", "2"]
    stats = job["tuning_data_stats"]["preference_optimization_data_stats"]
    assert stats["tuning_dataset_example_count"] == 16
    assert stats["scores_distribution"]["sum"] == 16 and stats["scores_distribution"]["mean"] == 0.5
    assert stats["score_variance_per_example_distribution"]["mean"] == 0.25
    inputs, outputs = stats["user_input_token_distribution"]["sum"], stats["user_output_token_distribution"]["sum"]
    assert stats["total_billable_token_count"] == 2 * inputs + outputs
    shown = stats["user_dataset_examples"][0]
    assert [one["score"] for one in shown["completions"]] == [1.0, 0.0]
    assert shown["completions"][0]["completion"]["parts"][0]["text"] == "yes"
    assert seen["text"] is not None
    assert job["name"] in seen["listed"]


def test_supervised_then_preference_then_preference_again(seen: dict[str, Any]) -> None:
    taught, then, again = seen["chain"]
    assert "supervised_tuning_spec" in taught
    for one, before in ((then, taught), (again, then)):
        assert one["pre_tuned_model"]["tuned_model_name"] == before["tuned_model"]["model"]
        assert "preference_optimization_spec" in one
    assert again["preference_optimization_spec"]["hyper_parameters"]["beta"] == 0.5


def test_what_a_wrong_method_sends_is_refused_by_the_setting_that_caused_it(seen: dict[str, Any]) -> None:
    beta_without, samples_beside, unknown, too_large, examples, pairs_as_examples = seen["errors"]
    for code, status, _ in seen["errors"]:
        assert (code, status) == (400, "INVALID_ARGUMENT")
    assert "already set" in beta_without[2] and "preferenceOptimizationSpec.hyperParameters.beta" in beta_without[2]
    assert "already set" in samples_beside[2]
    assert "reinforcementTuningSpec.hyperParameters.samplesPerPrompt" in samples_beside[2]
    for name in ("SUPERVISED_FINE_TUNING", "PREFERENCE_TUNING", "DISTILLATION", "REINFORCEMENT_TUNING"):
        assert name in unknown[2]
    assert "preference_optimization_spec.hyper_parameters.beta" in too_large[2] and "from 0 to 10" in too_large[2]
    assert "completions" in examples[2] and "exactly two completions" in examples[2]
    assert "use preference tuning for pairs" in pairs_as_examples[2]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_client_for_node_tunes_on_pairs(service: Service, pairs: str) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("GOOGLE_", "GCE_", "CLOUDSDK_"))}
    environ |= {"HOME": "/nonexistent", "GCE_METADATA_HOST": f"127.0.0.1:{service.port}"}
    command = ["node", str(HERE / "node" / "preference.mjs"), service.address, pairs]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    job = found["job"]
    assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
    assert job[SPEC]["hyperParameters"]["beta"] == 0.3
    assert len(job["tunedModel"]["checkpoints"]) == 1
    assert found["twoSpecs"]["status"] == found["tooLarge"]["status"] == 400
    assert "hyperParameters.beta" in found["twoSpecs"]["message"] and "beta" in found["tooLarge"]["message"]


@pytest.fixture(scope="module", params=["camel", "snake"])
def plain(request: pytest.FixtureRequest, http: httpx.Client, pairs: str) -> dict[str, Any]:
    """A whole job by REST in one spelling."""
    if request.param == "camel":
        parameters: dict[str, Any] = {"epochCount": "2", "adapterSize": "ADAPTER_SIZE_FOUR", "beta": 0.25}
        spec: dict[str, Any] = {
            "trainingDatasetUri": pairs,
            "validationDatasetUri": pairs,
            "hyperParameters": parameters,
        }
        body: dict[str, Any] = {"baseModel": "gemini-2.0-flash-001", SPEC: spec}
    else:
        parameters = {"epoch_count": 2, "adapter_size": "ADAPTER_SIZE_FOUR", "beta": "0.25"}
        spec = {"training_dataset_uri": pairs, "validation_dataset_uri": pairs, "hyper_parameters": parameters}
        body = {"base_model": "gemini-2.0-flash-001", "preference_optimization_spec": spec}
    made = http.post(JOBS, json=body)
    assert made.status_code == 200, made.text
    assert made.json()[SPEC]["hyperParameters"]["beta"] == 0.25
    return ended(http, made.json()["name"])


def test_a_job_publishes_what_it_chose_and_why(plain: dict[str, Any]) -> None:
    metadata = plain["tuningJobMetadata"]
    chosen = metadata["effectiveParameters"]
    assert chosen["beta"] == 0.25 and "beta" not in chosen["reasons"]
    assert chosen["learningRate"] == pytest.approx(1e-3)  # a tenth of the rate of the base model
    assert "times 0.1 for preference tuning" in chosen["reasons"]["learningRate"]
    assert plain[SPEC]["hyperParameters"] == {
        "epochCount": "2", "adapterSize": "ADAPTER_SIZE_FOUR", "learningRateMultiplier": 1.0, "beta": 0.25,
    }  # fmt: skip
    assert metadata["throughput"]["rewardAccuracy"] >= 0


def test_the_model_of_a_job_says_by_which_method_it_was_made(http: httpx.Client, plain: dict[str, Any]) -> None:
    model = http.get(f"/v1/{plain['tunedModel']['model']}").json()
    assert model["labels"]["tune-type"] == "preference"
    found = http.get(f"/v1/{PARENT}/models", params={"filter": 'labels.tune-type="preference"'}).json()["models"]
    assert plain["tunedModel"]["model"].partition("@")[0] in [one["name"] for one in found]


def test_the_series_of_a_job_are_those_of_its_method(http: httpx.Client, plain: dict[str, Any]) -> None:
    events = http.get(f"/v1/{plain['name']}/events").json()["events"]
    assert any("beta 0.25" in event["message"] for event in events)
    store = plain["experiment"].partition("/contexts/")[0]
    query = f'schema_title="system.ExperimentRun" AND parent_contexts:"{plain["experiment"]}"'
    [run] = http.get(f"/v1/{store}/contexts", params={"filter": query}).json()["contexts"]
    artifact = http.get(f"/v1/{store}/artifacts/{run['name'].rpartition('/')[2]}-tb-run").json()
    series = http.get(f"/v1/{artifact['metadata']['resourceName']}/timeSeries").json()["tensorboardTimeSeries"]
    names = {each["displayName"] for each in series}
    assert {"/preference_optimization_train_loss", "/eval_total_loss", "/eval_reward_accuracy"} <= names
    assert {f"/train_{name}" for name in OURS} | {f"/eval_{name}" for name in OURS} <= names
    assert not any(name.startswith("/train_total_loss") for name in names)


def test_the_report_has_the_share_of_pairs_with_its_interval(http: httpx.Client, plain: dict[str, Any]) -> None:
    report = http.get(f"/v1/{plain['name']}/evaluation").json()
    base, *checkpoints = report["systems"]
    assert base["preference"] is None and base["tokenAccuracy"] is None
    for system in checkpoints:
        found = system["preference"]
        assert found["rows"] == 16 and 0 <= found["interval"]["low"] <= found["mean"] <= found["interval"]["high"] <= 1
        assert system["tokenAccuracy"] is None and system["validationLoss"] < 1
    assert report["rows"] == 16  # the preferred completions are the references
    page = http.get(f"/v1/{plain['name']}/evaluation", params={"alt": "html"}).text
    assert "Preference accuracy" in page and "Token accuracy" not in page


def test_a_data_report_and_the_proof_of_both_completions(http: httpx.Client, pairs: str) -> None:
    body = {"baseModel": "gemini-2.0-flash-001", "method": "PREFERENCE_TUNING", "trainingDatasetUri": pairs}
    report = http.post(f"/v1/{PARENT}:checkDataset", json=body | {"hyperParameters": {"beta": 0}}).json()
    assert report["isUsable"] is True
    assert report["dataset"]["rows"] == report["dataset"]["usedRows"] == 16
    assert report["dataset"]["pairs"]["chosenIsShorter"] == 1.0
    assert report["automatic"]["beta"] == 0
    findings = [finding["message"] for finding in report["findings"]]
    assert any(message.startswith("beta is 0") for message in findings)
    assert any("the preferred reply is the shorter one in 100%" in message for message in findings)
    assert report["duplicates"]["samePromptCount"] == 0
    proof = http.post(f"/v1/{PARENT}:showExample", json=body | {"row": 2}).json()
    assert proof["isSame"] is True and len(proof["training"]) == len(proof["serving"]) == 2
    learned = ["".join(t["text"] for t in row["tokens"] if t["learned"]) for row in proof["training"]]
    assert learned[0].startswith("no<") and learned[1].startswith("I would say no, no.<")
    assert [one["score"] for one in proof["completions"]] == [1.0, 0.0]
    wrong = http.post(f"/v1/{PARENT}:checkDataset", json=body | {"method": "DPO"})
    assert wrong.status_code == 400 and "PREFERENCE_TUNING" in wrong.text


def test_rows_that_cannot_be_used_are_dropped_by_line_and_too_many_fail_the_job(http: httpx.Client) -> None:
    rows = [pair(number) for number in range(20)]
    rows[4]["completions"][0]["score"] = rows[4]["completions"][1]["score"]
    uri = upload(http, "tuning-data", "one-fault.jsonl", lines(rows))
    spec = {"trainingDatasetUri": uri, "hyperParameters": {"epochCount": 1}}
    made = http.post(JOBS, json={"baseModel": "gemini-2.0-flash-001", SPEC: spec})
    stats = ended(http, made.json()["name"])["tuningDataStats"]["preferenceOptimizationDataStats"]
    assert stats["tuningDatasetExampleCount"] == "19" and stats["droppedExampleIndices"] == ["5"]
    assert "two completions with score" in stats["droppedExampleReasons"][0]
    for row in rows[:5]:
        row["completions"].pop()
    spec["trainingDatasetUri"] = upload(http, "tuning-data", "faults.jsonl", lines(rows))
    refused = http.post(JOBS, json={"baseModel": "gemini-2.0-flash-001", SPEC: spec})
    assert refused.status_code == 400 and "line 1: completions" in refused.text


@pytest.mark.parametrize("beta", [-0.1, 10.5, "NaN", "Infinity"])
def test_a_beta_outside_its_range_is_refused(http: httpx.Client, pairs: str, beta: Any) -> None:
    spec = {"trainingDatasetUri": pairs, "hyperParameters": {"beta": beta}}
    answer = http.post(JOBS, json={"baseModel": "gemini-2.0-flash-001", SPEC: spec})
    assert answer.status_code == 400
    assert "preference_optimization_spec.hyper_parameters.beta" in answer.text and "from 0 to 10" in answer.text


@pytest.mark.parametrize("name", ["tuningMode", "hyperParameters.batchSize", "hyperParameters.learningRate"])
def test_settings_that_the_method_does_not_have_are_unknown(http: httpx.Client, pairs: str, name: str) -> None:
    spec: dict[str, Any] = {"trainingDatasetUri": pairs, "hyperParameters": {}}
    outer, _, inner = name.partition(".")
    if inner:
        spec[outer][inner] = 1
    else:
        spec[outer] = "TUNING_MODE_FULL"
    answer = http.post(JOBS, json={"baseModel": "gemini-2.0-flash-001", SPEC: spec})
    assert answer.status_code == 400 and "Cannot find field" in answer.text


def test_a_model_that_translates_learns_from_no_pairs(http: httpx.Client, pairs: str) -> None:
    answer = http.post(JOBS, json={"baseModel": "translation-llm-002", SPEC: {"trainingDatasetUri": pairs}})
    assert answer.status_code == 400 and "PREFERENCE_TUNING is not for translation-llm-002" in answer.text


def test_an_open_model_learns_from_pairs(http: httpx.Client, pairs: str) -> None:
    spec = {"trainingDatasetUri": pairs, "hyperParameters": {"epochCount": 1}}
    body = {"baseModel": "qwen/qwen3@qwen3-0.6b", "outputUri": "gs://tuning-data/open-pairs", SPEC: spec}
    made = http.post(JOBS, json=body)
    assert made.status_code == 200, made.text
    job = ended(http, made.json()["name"])
    assert "batchSize" not in job[SPEC]["hyperParameters"] and job[SPEC]["hyperParameters"]["beta"] == 0.1
    assert "0.1, the usual value" in job["tuningJobMetadata"]["effectiveParameters"]["reasons"]["beta"]
    found = http.get("/storage/v1/b/tuning-data/o", params={"prefix": "open-pairs/"}).json()["items"]
    assert any(item["name"].endswith("adapter_model.safetensors") for item in found)


def test_a_beta_of_zero_tunes_and_the_job_warns(http: httpx.Client, pairs: str) -> None:
    spec = {"trainingDatasetUri": pairs, "hyperParameters": {"epochCount": 1, "beta": 0}}
    job = ended(http, http.post(JOBS, json={"baseModel": "gemini-2.0-flash-001", SPEC: spec}).json()["name"])
    assert job["tuningJobMetadata"]["throughput"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert job["tuningJobMetadata"]["effectiveParameters"]["beta"] == 0
    assert any("beta is 0" in words for words in job["tuningJobMetadata"]["warnings"])
