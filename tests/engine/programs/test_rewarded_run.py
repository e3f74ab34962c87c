"""A run that learns from rewards, as the service starts it: killed while it samples, scores or steps, it ends the
same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sarto.contract.common import BaseWeights, DatasetRef, ReinforcementParameters, TuningParameters
from sarto.contract.tuning_run import RunSpec
from sarto.system.failpoints import VARIABLE
from tests.engine.programs.test_tune import PROGRAM, arguments_of, finish, kill_after, make_spec, progress
from tests.tiny import make_tiny_base

EASY = {
    "singleRewardConfig": {
        "rewardName": "letters",
        "stringMatchRewardScorer": {
            "correctAnswerReward": 1.0,
            "stringMatchExpression": {"matchOperation": "REGEX_CONTAINS", "expression": "[a-n]"},
        },
    }
}
BY_REFERENCE: dict[str, Any] = {
    "singleRewardConfig": {
        "stringMatchRewardScorer": {
            "correctAnswerReward": 1.0,
            "stringMatchExpression": {"matchOperation": "PARTIAL_MATCH", "expression": "{{references.letter}}"},
        },
    }
}

SCORED = "engine.reinforcement.rollout.RewardedRollout._scored"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def write_prompts(path: Path, count: int, **fields: Any) -> DatasetRef:
    rows = [
        {
            "systemInstruction": {"parts": [{"text": "Name a letter."}]},
            "contents": [{"role": "user", "parts": [{"text": f"Letter {number}?"}]}],
            "references": {"letter": "abcdefghij"[number % 10]},
        }
        | fields
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetRef(uri=f"gs://bucket/{path.name}", path=str(path), size_bytes=path.stat().st_size)


def prompt_spec(
    base: BaseWeights, folder: Path, epoch: int = 1, reward: dict[str, Any] = EASY, steps: int = 6, **fields: object
) -> RunSpec:
    folder.mkdir(exist_ok=True)
    sampling = ReinforcementParameters(
        reward=reward, step_count=steps, samples_per_prompt=8, max_output_tokens=6, evaluate_interval=2,
        checkpoint_interval=4,
    )  # fmt: skip
    parameters = TuningParameters(rank=4, alpha=8.0, batch_size=4, learning_rate=5e-3, reinforcement=sampling)
    given: dict[str, object] = {
        "method": "reinforcement",
        "data_format": "reinforcement",
        "training_dataset": write_prompts(folder / "prompts.jsonl", 20),
        "validation_dataset": write_prompts(folder / "held-out.jsonl", 6),
        "parameters": parameters.model_dump(),
        "cache_folder": str(folder / "cache"),
    }
    return make_spec(base, folder, epoch, **(given | fields))


def measured(spec: RunSpec) -> list[Any]:
    """Numbers of steps and evaluations that do not depend on the clock."""
    steps = [(s.step, s.loss, s.gradient_norm, s.reward, s.kl) for line in progress(spec) if (s := line.step)]
    found = [(e.step, e.loss, e.reward, e.generation_length) for line in progress(spec) if (e := line.evaluation)]
    return [steps, found]


def adapters(spec: RunSpec) -> list[bytes]:
    found = sorted((Path(spec.run_folder) / "checkpoints").glob("*/adapter_model.safetensors"))
    return [path.read_bytes() for path in found]


def kill_in(spec: RunSpec, failpoint: str) -> None:
    environment = {**os.environ, VARIABLE: failpoint}
    command = [*PROGRAM, *arguments_of(spec)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        child.wait(120)
    assert child.returncode == -signal.SIGKILL


def test_a_run_reports_rewards_samples_and_the_chosen_numbers(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = prompt_spec(tiny, tmp_path / "job")
    result = finish(spec)
    assert result.error is None, result.error
    assert result.parameters is not None and result.data is not None
    assert result.data.example_count == 20 and result.data.step_count == 6
    assert (result.parameters.samples_per_prompt, result.parameters.kl_weight) == (8, 0.01)
    assert [(c.step, c.evaluation is not None) for c in result.checkpoints] == [(4, True), (6, True)]
    assert all(c.certificate is not None and c.certificate.passed for c in result.checkpoints)
    assert result.best_checkpoint_id is not None and "validation reward" in result.best_reason
    steps, evaluations = measured(spec)
    assert [each[0] for each in steps] == list(range(1, 7))
    assert [each[0] for each in evaluations] == [2, 4, 6]
    last = [line.step for line in progress(spec) if line.step][-1]
    assert last.learnable is not None and 0 < last.learnable <= 1
    assert last.mismatch is not None and last.mismatch < 1e-4
    assert last.sampling_latency and last.failed_share == 0
    notes = [line.message for line in progress(spec) if line.kind == "note"]
    assert any(note.startswith("Step 2: mean reward") and "reward" in note.splitlines()[1] for note in notes)
    assert any("not forecast" in note for note in notes)
    assert not list((tmp_path / "job" / "resume").glob("answers-*")), "a resume point has them all"


def test_prompts_are_held_out_when_there_is_no_validation_data(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = prompt_spec(tiny, tmp_path / "job", validation_dataset=None, steps=1)
    result = finish(spec)
    assert result.error is None, result.error
    notes = [line.message for line in progress(spec) if line.kind == "note"]
    assert any("10 of 20 prompts are held out for it, half of them instead of 50" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("resume_seconds", [0.0, 3600.0])
def test_a_killed_run_ends_like_one_that_never_was(tiny: BaseWeights, tmp_path: Path, resume_seconds: float) -> None:
    whole = prompt_spec(tiny, tmp_path / "whole", reward=BY_REFERENCE)
    assert finish(whole).error is None
    killed = tmp_path / "killed"

    def attempt(epoch: int) -> RunSpec:
        return prompt_spec(tiny, killed, epoch, reward=BY_REFERENCE, resume_seconds=resume_seconds)

    kill_in(attempt(1), f"sample {SCORED} after*2")
    kill_in(attempt(2), f"score {SCORED} after*3")
    kill_after(attempt(3), 3)
    kill_in(attempt(4), "rename engine.reinforcement.rollout.RewardedRollout._store after*1")
    last = attempt(5)
    assert finish(last).error is None
    assert measured(last) == measured(whole)
    assert adapters(last) == adapters(whole)


def test_rows_without_a_reference_of_the_reward_are_named(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = prompt_spec(tiny, tmp_path / "job", reward=BY_REFERENCE)
    path = Path(spec.training_dataset.path)
    lines = path.read_text().splitlines()
    lines[6] = json.dumps(json.loads(lines[6]) | {"references": {"other": "x"}})
    path.write_text("\n".join(lines) + "\n")
    error = finish(spec).error
    assert error is not None and error["code"] == 3
    assert "line 7 has no references.letter" in error["message"]


def test_a_step_in_which_most_rewards_fail_ends_the_job_with_code_3(tiny: BaseWeights, tmp_path: Path) -> None:
    reward = json.loads(json.dumps(BY_REFERENCE))
    scorer = reward["singleRewardConfig"]["stringMatchRewardScorer"]
    scorer["stringMatchExpression"] = {"matchOperation": "REGEX_CONTAINS", "expression": "{{references.letter}}"}
    broken = write_prompts(tmp_path / "broken.jsonl", 20, references={"letter": "("})
    error = finish(prompt_spec(tiny, tmp_path / "job", reward=reward, training_dataset=broken)).error
    assert error is not None and error["code"] == 3
    assert "Step 1: 100% of the rewards failed: unusable 32" in error["message"]


def test_a_base_that_never_does_what_is_rewarded_is_a_finding(tiny: BaseWeights, tmp_path: Path) -> None:
    reward = json.loads(json.dumps(EASY))
    reward["singleRewardConfig"]["stringMatchRewardScorer"]["stringMatchExpression"]["expression"] = "wonderful"
    spec = prompt_spec(tiny, tmp_path / "job", reward=reward, steps=1)
    assert finish(spec).error is None
    assert any("Tune it on examples first" in line.message for line in progress(spec) if line.kind == "warning")
