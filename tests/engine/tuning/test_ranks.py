"""One run on several devices: here two processes on the processor, which meet over gloo as GPUs do over NCCL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sarto.contract.common import BaseWeights, EvaluationPlan
from sarto.contract.tuning_run import RunResult, RunSpec
from sarto.control.executors.executor import clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.tuning.packing import TokenizedExample, plan, shares
from tests.engine.programs.test_tune import POLL_SECONDS, finish, kill_after, make_spec, progress, start, steps
from tests.specs import launch
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def step_told(spec: RunSpec, child: subprocess.Popen[bytes]) -> None:
    while not steps(spec):
        assert child.poll() is None
        time.sleep(POLL_SECONDS)


def adapter(spec: RunSpec, step: int) -> dict[str, torch.Tensor]:
    return load_file(Path(spec.run_folder) / "checkpoints" / str(step) / "adapter_model.safetensors")


def test_the_examples_of_a_step_are_shared_out_evenly_and_each_once() -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 256, 40) for _ in range(2)]
    rows = []
    for line in range(1, 33):
        tokens = np.concatenate([prompts[line % 2], random.integers(0, 256, random.integers(5, 60))])
        rows.append(TokenizedExample(tokens.astype(np.uint32), np.arange(len(tokens)) > 42, line))
    parts = shares(rows, 4)
    assert sorted(row.line for part in parts for row in part) == list(range(1, 33))
    computed = [sum(len(batch.tokens) for batch in plan(part, 4096)) for part in parts]
    assert max(computed) < 1.25 * sum(computed) / 4
    assert sum(len({row.line % 2 for row in part}) for part in parts) <= 5  # what begins alike stays together
    assert [len(part) for part in shares(rows[:1], 3)] in ([1, 0, 0], [0, 1, 0], [0, 0, 1])


def test_two_ranks_learn_what_one_learns(tiny: BaseWeights, tmp_path: Path) -> None:
    alone, shared = make_spec(tiny, tmp_path / "alone"), make_spec(tiny, tmp_path / "shared", ranks=2)
    expected, result = finish(alone), finish(shared)
    assert result.error is None and result.parameters is not None
    assert result.parameters.details["ranks"] == 2
    np.testing.assert_allclose(steps(shared), steps(alone), rtol=2e-5)
    for mine, theirs in zip(progress(shared), progress(alone), strict=True):
        assert mine.kind == theirs.kind
        if mine.step is not None and theirs.step is not None:
            assert (mine.step.tokens, mine.step.supervised_tokens) == (
                theirs.step.tokens,
                theirs.step.supervised_tokens,
            )
            assert mine.step.accuracy == pytest.approx(theirs.step.accuracy, abs=0.02)
        if mine.evaluation is not None and theirs.evaluation is not None:
            assert mine.evaluation.loss == pytest.approx(theirs.evaluation.loss, rel=2e-5)
    assert [c.step for c in result.checkpoints] == [c.step for c in expected.checkpoints]
    for name, tensor in adapter(shared, 6).items():
        torch.testing.assert_close(tensor, adapter(alone, 6)[name], rtol=1e-3, atol=1e-4)


def test_ranks_meet_where_a_run_has_no_network_and_all_end_with_it(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job", ranks=2)
    folder = Path(spec.run_folder)
    executor = LocalExecutor(clean_environment(os.environ))
    run = executor.start(launch("one", folder / "spec.json", folder / "log.txt"))
    while (code := run.poll()) is None:
        time.sleep(POLL_SECONDS)
    assert code == 0, (folder / "log.txt").read_text()
    run.stop(0.0)
    assert RunResult.model_validate_json((folder / "result.json").read_bytes()).error is None
    assert len(steps(spec)) == 18


@pytest.mark.slow
def test_a_run_of_two_ranks_killed_twice_ends_like_one_never_killed(tiny: BaseWeights, tmp_path: Path) -> None:
    whole = make_spec(tiny, tmp_path / "whole", ranks=2)
    finish(whole)
    for epoch, step in ((1, 3), (2, 9)):
        kill_after(make_spec(tiny, tmp_path / "killed", epoch, ranks=2), step)
    last = make_spec(tiny, tmp_path / "killed", 3, ranks=2)
    result = finish(last)
    assert any("resumed after step" in line.message for line in progress(last))
    assert steps(last) == steps(whole)
    for record in result.checkpoints:
        file = Path(record.folder) / "adapter_model.safetensors"
        assert (Path(last.run_folder) / file).read_bytes() == (Path(whole.run_folder) / file).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("victim", ["rank", "run"])
def test_a_rank_that_is_killed_ends_the_run_as_a_fault_of_machinery(
    tiny: BaseWeights, tmp_path: Path, victim: str
) -> None:
    spec = make_spec(tiny, tmp_path / "job", ranks=2, parameters={"epoch_count": 1000})
    with start(spec) as child:
        step_told(spec, child)
        (rank,) = (pid for pid in children(child.pid) if b"tuning.rank" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(rank if victim == "rank" else child.pid, signal.SIGKILL)
        assert child.wait(20) not in (0, 143)
    deadline = time.monotonic() + 20
    while is_alive(rank) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    assert not is_alive(rank)
    assert not (Path(spec.run_folder) / "result.json").exists()


def test_a_number_that_is_not_finite_on_one_rank_fails_the_job_with_its_lines(
    tmp_path: Path,
) -> None:
    base = make_tiny_base(tmp_path / "base")
    folder = Path(base.folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][ChatTokenizer.load(folder).encode("~")[0]] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    spec = make_spec(base, tmp_path / "job", ranks=2, validation_dataset=None)
    path = Path(spec.training_dataset.path)
    path.write_text(path.read_text().replace("order 6?", "order ~?"))
    result = finish(spec)
    assert result.error is not None
    message = result.error["message"]
    assert "the loss is not a finite number" in message
    lines = message.partition("at lines ")[2].partition(" of ")[0].split(", ")
    assert "7" in lines and len(lines) < 4  # of the four examples of the step, those of one rank


@pytest.mark.slow
def test_more_ranks_than_one_share_the_examples_of_small_steps_too(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job", ranks=3, parameters={"batch_size": 2, "epoch_count": 1})
    alone = make_spec(tiny, tmp_path / "alone", parameters={"batch_size": 2, "epoch_count": 1})
    assert finish(spec).error is None and finish(alone).error is None
    np.testing.assert_allclose(steps(spec), steps(alone), rtol=2e-5)


def test_a_base_in_parts_on_two_devices_learns_what_a_whole_one_learns(tiny: BaseWeights, tmp_path: Path) -> None:
    whole = make_spec(tiny, tmp_path / "whole")
    parts = make_spec(tiny, tmp_path / "parts", ranks=2, shard=True, evaluation=EvaluationPlan())
    expected, result = finish(whole), finish(parts)
    assert (
        result.error is None and result.has_report and result.parameters is not None and expected.parameters is not None
    )
    assert "a part of each matrix on each of 2 devices" in result.parameters.details["base_placement"]
    assert "the whole base" in expected.parameters.details["base_placement"]
    np.testing.assert_allclose(steps(parts), steps(whole), rtol=2e-5)
    for mine, theirs in zip(result.checkpoints, expected.checkpoints, strict=True):
        assert mine.evaluation is not None and theirs.evaluation is not None
        assert mine.evaluation.loss == pytest.approx(theirs.evaluation.loss, rel=2e-5)
        assert mine.certificate is not None and mine.certificate.passed


@pytest.mark.slow
def test_ranks_with_unequal_shares_of_a_base_in_parts_wait_for_each_other(tiny: BaseWeights, tmp_path: Path) -> None:
    given = {"parameters": {"batch_size": 1, "epoch_count": 1}, "low_memory": True}
    parts = make_spec(tiny, tmp_path / "parts", ranks=2, shard=True, **given)
    alone = make_spec(tiny, tmp_path / "alone", **given)
    assert finish(parts).error is None and finish(alone).error is None
    np.testing.assert_allclose(steps(parts), steps(alone), rtol=2e-5)
