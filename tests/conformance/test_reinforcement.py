"""Reinforcement tuning through google-genai 2.x and 3.x, @google/genai and plain REST in both spellings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import httpx
import pytest

from sarto.schema.tuning_jobs import FINAL_STATES

from .conftest import PARENT, Dataset, ended
from .service import Service, upload, wait_for
from .test_preference import HERE, JOBS, NEWEST, lines

SPEC = "reinforcementTuningSpec"
PATH = "reinforcement_tuning_spec.hyper_parameters"


def prompt(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": f"q{number}"}]}],
        "references": {"letter": "abcdefgh"[number % 8]},
    } | changes


def matching(expression: str, operation: str = "REGEX_CONTAINS") -> dict[str, Any]:
    match = {"matchOperation": operation, "expression": expression}
    return {"stringMatchRewardScorer": {"correctAnswerReward": 1.0, "stringMatchExpression": match}}


def spec_of(prompts: str, reward: dict[str, Any], **numbers: Any) -> dict[str, Any]:
    given = {"epochCount": "1", "batchSize": 4, "samplesPerPrompt": 4, "maxOutputTokens": 4} | numbers
    parameters = {name: value for name, value in given.items() if value is not None}
    return {"trainingDatasetUri": prompts, "hyperParameters": parameters, "singleRewardConfig": reward}


def create(http: httpx.Client, spec: dict[str, Any], **fields: Any) -> httpx.Response:
    return http.post(JOBS, json={"baseModel": "gemini-2.0-flash-001", SPEC: spec} | fields)


def over(http: httpx.Client, name: str) -> dict[str, Any]:
    """The job once it has ended in any way."""

    def read() -> dict[str, Any] | None:
        job: dict[str, Any] = http.get(f"/v1/{name}").json()
        return job if job["state"] in FINAL_STATES else None

    return wait_for(read)


@pytest.fixture(scope="module")
def prompts(http: httpx.Client) -> str:
    return upload(http, "tuning-data", "prompts.jsonl", lines([prompt(number) for number in range(16)]))


@pytest.fixture(scope="module", params=["2.", "3."])
def seen(request: pytest.FixtureRequest, service: Service, dataset: Dataset, prompts: str) -> dict[str, Any]:
    python = NEWEST if request.param == "3." else sys.executable
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GOOGLE_")}
    environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(service.key_file)
    command = [str(python), str(HERE / "reinforcement_flow.py"), service.address, prompts, dataset.training]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith(request.param)
    return found


def test_the_official_client_tunes_by_rewards_and_reads_the_outcome(seen: dict[str, Any]) -> None:
    made, job = seen["made"], seen["job"]
    assert made["state"] == "JOB_STATE_PENDING"
    spec = job["reinforcement_tuning_spec"]
    assert spec["hyper_parameters"] == {
        "adapter_size": "ADAPTER_SIZE_TWO", "batch_size": 4, "checkpoint_interval": 4, "epoch_count": 1,
        "evaluate_interval": 2, "learning_rate_multiplier": 2.0, "max_output_tokens": 4, "samples_per_prompt": 4,
    }  # fmt: skip
    scorer = spec["single_reward_config"]["string_match_reward_scorer"]
    assert (scorer["correct_answer_reward"], scorer["wrong_answer_reward"]) == (1.0, -1.0)
    assert [(one["checkpoint_id"], one["step"]) for one in job["tuned_model"]["checkpoints"]] == [("1", 4)]
    assert job["tuning_job_metadata"]["completed_step_count"] == 4
    stats = job["tuning_data_stats"]["reinforcement_tuning_data_stats"]
    assert stats["tuning_dataset_example_count"] == 16 and stats["tuning_step_count"] == 4
    assert stats["total_billable_token_count"] == stats["user_input_token_distribution"]["sum"]
    shown = stats["reinforcement_tuning_user_dataset_examples"]["user_dataset_examples"][0]
    assert shown["contents"][0]["parts"][0]["text"] == "q0"
    assert seen["text"] is not None


def test_a_model_tuned_on_examples_is_tuned_further_by_a_composite_reward(seen: dict[str, Any]) -> None:
    taught, then = seen["chain"]
    assert then["pre_tuned_model"]["tuned_model_name"] == taught["tuned_model"]["model"]
    parts = then["reinforcement_tuning_spec"]["composite_reward_config"]["weighted_reward_configs"]
    assert [part["weight"] for part in parts] == [1.0, 0.5]


def test_what_does_not_fit_is_refused_by_its_name(seen: dict[str, Any]) -> None:
    without, answers, interval, reward, rows, expression, thoughts = [words for _, _, words in seen["errors"]]
    for code, status, _ in seen["errors"]:
        assert (code, status) == (400, "INVALID_ARGUMENT")
    assert "already set" in without and "reinforcementTuningSpec.hyperParameters.samplesPerPrompt" in without
    assert f"{PATH}.samples_per_prompt" in answers and "multiple of 16" in answers
    assert f"{PATH}.checkpoint_interval" in interval and "evaluateInterval" in interval
    assert "single_reward_config" in reward and "Required field is not set" in reward
    assert "a model turn at the end" in rows
    assert "match_expression.expression" in expression and "RE2" in expression
    assert f"{PATH}.thinking_level" in thoughts and "MINIMAL" in thoughts


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_client_for_node_tunes_by_rewards(service: Service, prompts: str) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("GOOGLE_", "GCE_", "CLOUDSDK_"))}
    environ |= {"HOME": "/nonexistent", "GCE_METADATA_HOST": f"127.0.0.1:{service.port}"}
    command = ["node", str(HERE / "node" / "reinforcement.mjs"), service.address, prompts]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["job"]["state"] == "JOB_STATE_SUCCEEDED", found["job"].get("error")
    assert found["twoSpecs"]["status"] == found["withoutReward"]["status"] == 400
    assert "samplesPerPrompt" in found["twoSpecs"]["message"]


@pytest.fixture(scope="module")
def plain(http: httpx.Client, prompts: str) -> dict[str, Any]:
    """A whole job by REST without numbers of steps, in snake_case."""
    match = {"match_operation": "PARTIAL_MATCH", "expression": "{{references.letter}}"}
    scorer = {"string_match_reward_scorer": {"correct_answer_reward": 1, "string_match_expression": match}}
    parameters = {"step_count": 3, "batch_size": 4, "samples_per_prompt": 4, "max_output_tokens": 4}
    spec = {"training_dataset_uri": prompts, "single_reward_config": scorer, "hyper_parameters": parameters}
    made = http.post(JOBS, json={"base_model": "gemini-2.0-flash-001", "reinforcement_tuning_spec": spec})
    assert made.status_code == 200, made.text
    assert made.json()[SPEC]["hyperParameters"] == {
        "stepCount": "3", "batchSize": 4, "samplesPerPrompt": 4, "maxOutputTokens": 4,
    }  # fmt: skip
    return ended(http, made.json()["name"])


def test_a_job_publishes_what_it_chose_and_why(plain: dict[str, Any]) -> None:
    assert plain["state"] == "JOB_STATE_SUCCEEDED", plain["error"]
    metadata = plain["tuningJobMetadata"]
    chosen = metadata["effectiveParameters"]
    assert (chosen["klWeight"], chosen["temperature"], chosen["seed"]) == (0.01, 1.0, 0)
    assert "times 0.1 for reinforcement tuning" in chosen["reasons"]["learningRate"]
    assert "once in each pass" in chosen["reasons"]["evaluateInterval"]
    assert metadata["completedStepCount"] == metadata["totalStepCount"] == "3"
    assert "completedEpochCount" not in metadata
    assert "reward" in metadata["throughput"] and "loss" not in metadata["throughput"]
    assert plain[SPEC]["hyperParameters"] == {
        "stepCount": "3", "batchSize": 4, "samplesPerPrompt": 4, "maxOutputTokens": 4, "evaluateInterval": 2,
        "checkpointInterval": 2, "learningRateMultiplier": 1.0,
        "adapterSize": plain[SPEC]["hyperParameters"]["adapterSize"],
    }  # fmt: skip


def test_the_series_of_a_job_are_rewards_and_no_loss(http: httpx.Client, plain: dict[str, Any]) -> None:
    events = [event["message"] for event in http.get(f"/v1/{plain['name']}/events").json()["events"]]
    assert any("8 of 16 prompts are held out" in words for words in events)
    assert any("mean reward" in words and "\nLine " in words for words in events)
    store = plain["experiment"].partition("/contexts/")[0]
    query = f'schema_title="system.ExperimentRun" AND parent_contexts:"{plain["experiment"]}"'
    [run] = http.get(f"/v1/{store}/contexts", params={"filter": query}).json()["contexts"]
    artifact = http.get(f"/v1/{store}/artifacts/{run['name'].rpartition('/')[2]}-tb-run").json()
    series = http.get(f"/v1/{artifact['metadata']['resourceName']}/timeSeries").json()["tensorboardTimeSeries"]
    names = {each["displayName"] for each in series}
    documented = (
        "mean_reward", "generation_length", "thinking_token_length", "mean_reward_latency", "p95_reward_latency",
        "mean_sampling_latency", "p95_sampling_latency",
    )  # fmt: skip
    assert {f"/{phase}_{name}" for phase in ("train", "eval") for name in documented} <= names
    assert {"/learnable_prompt_ratio", "/train_kl", "/train_sampler_mismatch"} <= names
    assert not any("loss" in name for name in names)


def test_the_model_of_a_job_says_by_which_method_it_was_made(http: httpx.Client, plain: dict[str, Any]) -> None:
    model = http.get(f"/v1/{plain['tunedModel']['model']}").json()
    assert model["labels"]["tune-type"] == "reinforcement"


def test_a_model_tuned_by_rewards_is_tuned_by_rewards_again(
    http: httpx.Client, plain: dict[str, Any], prompts: str
) -> None:
    source = {"preTunedModel": {"tunedModelName": plain["tunedModel"]["model"]}}
    spec = spec_of(prompts, matching("[a-z]"), epochCount=None, stepCount="1")
    made = http.post(JOBS, json={SPEC: spec} | source)
    assert made.status_code == 200, made.text
    job = ended(http, made.json()["name"])
    assert job["state"] == "JOB_STATE_SUCCEEDED", job["error"]
    assert job["tunedModel"]["model"].partition("@")[0] == plain["tunedModel"]["model"].partition("@")[0]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"stepCount": "3"}, "tuning_length"),
        ({"epochCount": None, "stepCount": "501"}, f"{PATH}.step_count"),
        ({"learningRateMultiplier": 5}, f"{PATH}.learning_rate_multiplier"),
        ({"maxOutputTokens": 32_769}, f"{PATH}.max_output_tokens"),
        ({"samplesPerPrompt": 1}, f"{PATH}.samples_per_prompt"),
        ({"batchSize": 4096}, f"{PATH}.samples_per_prompt"),
        ({"thinkingBudget": -1}, f"{PATH}.thinking_budget"),
        ({"learningRate": 1e-3}, "Cannot find field"),
        ({"beta": 0.1}, "Cannot find field"),
    ],
)
def test_numbers_outside_their_range_are_refused(
    http: httpx.Client, prompts: str, numbers: dict[str, Any], words: str
) -> None:
    answer = create(http, spec_of(prompts, matching("x"), **numbers))
    assert answer.status_code == 400 and words in answer.text, answer.text


def test_a_row_whose_reference_is_no_string_and_one_without_it_are_named(http: httpx.Client) -> None:
    rows = [prompt(number) for number in range(20)]
    rows[0]["references"] = {"letter": 4}
    uri = upload(http, "tuning-data", "no-string.jsonl", lines(rows[:4]))
    answer = create(http, spec_of(uri, matching("x")))
    assert answer.status_code == 400 and "line 1: references.letter: saw the number 4" in answer.text
    del rows[0]["references"]
    uri = upload(http, "tuning-data", "no-reference.jsonl", lines(rows))
    job = over(http, create(http, spec_of(uri, matching("{{references.letter}}"))).json()["name"])
    assert job["state"] == "JOB_STATE_FAILED" and job["error"]["code"] == 3
    assert "line 1 has no references.letter" in job["error"]["message"]


def test_a_job_is_cancelled_while_it_samples(http: httpx.Client, prompts: str) -> None:
    spec = spec_of(prompts, matching("x"), epochCount=None, stepCount="500", maxOutputTokens=64)
    name = create(http, spec).json()["name"]

    def sampled() -> bool:
        job = http.get(f"/v1/{name}").json()
        assert job["state"] not in FINAL_STATES, job.get("error")
        return bool(job.get("tuningJobMetadata", {}).get("completedStepCount"))

    wait_for(sampled, 60)
    assert http.post(f"/v1/{name}:cancel").status_code == 200
    assert over(http, name)["state"] == "JOB_STATE_CANCELLED"


def test_a_data_report_reads_prompts(http: httpx.Client, prompts: str) -> None:
    body = {"baseModel": "gemini-2.0-flash-001", "method": "REINFORCEMENT_TUNING", "trainingDatasetUri": prompts}
    report = http.post(f"/v1/{PARENT}:checkDataset", json=body).json()
    assert report["isUsable"] is True and report["dataset"]["usedRows"] == 16
    assert not [finding for finding in report["findings"] if finding["level"] == "error"]
    assert report["automatic"]["samplesPerPrompt"] == 8
