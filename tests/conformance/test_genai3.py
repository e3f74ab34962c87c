"""One program, two generations of google-genai: the one beside `vertexai`, and the newest in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Dataset
from .service import Service

HERE = Path(__file__).parent
NEWEST = HERE.parents[1] / ".venv-genai3" / "bin" / "python"


@pytest.fixture(scope="module", params=["2.", "3."])
def seen(request: pytest.FixtureRequest, service: Service, dataset: Dataset) -> dict[str, Any]:
    python = NEWEST if request.param == "3." else Path(sys.executable)
    assert python.exists(), "`make test` makes .venv-genai3"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GOOGLE_")}
    environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(service.key_file)
    command = [str(python), str(HERE / "genai_flow.py"), service.address, dataset.training]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith(request.param)
    return found


def test_tune_get_list_and_cancel(seen: dict[str, Any]) -> None:
    made, job = seen["made"], seen["job"]
    assert made["state"] == "JOB_STATE_PENDING" and "experiment" not in made
    assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
    assert job["supervised_tuning_spec"]["hyper_parameters"] == {
        "adapter_size": "ADAPTER_SIZE_TWO", "epoch_count": 2, "learning_rate_multiplier": 1.5,
    }  # fmt: skip
    assert job["tuning_data_stats"]["supervised_tuning_data_stats"]["tuning_dataset_example_count"] == 12
    assert [one["checkpoint_id"] for one in job["tuned_model"]["checkpoints"]] == ["1", "2"]
    assert job["name"] in seen["listed"] and len(seen["listed"]) == len(set(seen["listed"]))
    assert seen["cancelled"] == "JOB_STATE_CANCELLED"


def test_an_evaluation_is_asked_for_and_its_results_are_read(seen: dict[str, Any]) -> None:
    runs = seen["job"]["evaluate_dataset_runs"]
    assert [run["checkpoint_id"] for run in runs] == ["1", "2"] and not any("error" in run for run in runs)
    for run in runs:
        response = run["evaluate_dataset_response"]
        results = response["aggregation_output"]["aggregation_results"]
        aggregations = [result["aggregation_metric"] for result in results]
        # The judge is a tiny random model: of one rating alone, all the others being cut, there is no deviation.
        assert aggregations[:5] == ["AVERAGE", "STANDARD_DEVIATION"] * 2 + ["AVERAGE"]
        assert aggregations[5:] in ([], ["STANDARD_DEVIATION"])
        assert "score" in results[0]["exact_match_metric_value"] and "score" in results[2]["rouge_metric_value"]
        assert "score" in results[4]["pointwise_metric_result"]
        assert response["output_info"]["gcs_output_directory"].startswith("gs://tuning-data/flow/")


def test_generation_unary_and_streamed_agree(seen: dict[str, Any]) -> None:
    assert seen["streamed"] == seen["text"]
    assert seen["counted"] == seen["prompt_tokens"] and seen["computed"]


def test_a_streamed_chat_remembers_what_an_unstreamed_one_remembers(seen: dict[str, Any]) -> None:
    cut, ended = seen["chats"]
    for chat in (cut, ended):
        assert chat["streamed"] == chat["texts"] and chat["streamed_tokens"] == chat["tokens"]
        assert chat["history"] == [True, True] and chat["last_parts"] == [True, True]
    assert (cut["finish"][0], ended["finish"][0]) == ("MAX_TOKENS", "STOP")


def test_models_are_listed_read_and_renamed(seen: dict[str, Any]) -> None:
    assert seen["job"]["tuned_model"]["model"].partition("@")[0] in [name.partition("@")[0] for name in seen["tuned"]]
    assert "publishers/google/models/gemini-2.5-flash" in seen["base"]
    assert (seen["checkpoints"], seen["renamed"]) == (["1", "2"], ["renamed", "1"])


def test_errors_carry_code_status_and_message(seen: dict[str, Any]) -> None:
    unknown, adapter = seen["errors"]
    assert unknown[:2] == [404, "NOT_FOUND"]
    assert adapter[:2] == [400, "INVALID_ARGUMENT"] and "adapter" in adapter[2]
