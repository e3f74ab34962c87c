"""The contract of every executor: with its run on the same disk or on another, control gets the same of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from sarto.configuration import Judge
from sarto.contract.common import BaseWeights, Files
from sarto.contract.places import Places
from sarto.contract.run_folder import ANSWERED_FILE, ASKED_FILE, PROGRESS_FILE, REPORT_FILE, RESULT_FILE, SPEC_FILE
from sarto.contract.tuning_run import Progress, RunResult, RunSpec
from sarto.control.context import JudgeEndpoint
from sarto.control.executors.executor import Executor, Launch, RunTransport, clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.executors.warm import WarmExecutor
from sarto.control.models import registry
from sarto.control.runs import sealed_files
from sarto.control.runs.supervisor import Supervisor
from tests.control.executors.other_disk import OtherDiskExecutor
from tests.control.homes import create, make_control, member, wait_for_end, wait_until
from tests.control.keys.test_key_use import SPEC, all_plain, make_key
from tests.engine.programs.test_tune import make_spec
from tests.judge_server import KEY, judge_server
from tests.tiny import make_tiny_base

ENVIRONMENT = clean_environment(os.environ)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(params=["local", "warm", "other disk"])
def executor(request: pytest.FixtureRequest, tmp_path: Path, tiny: BaseWeights) -> Iterator[Executor]:
    if request.param == "local":
        yield LocalExecutor(ENVIRONMENT)
    elif request.param == "other disk":
        yield OtherDiskExecutor(tmp_path / "other disk", ENVIRONMENT)
    else:
        folders = [str(tmp_path), str(Path(tiny.folder).parent)]
        warm = WarmExecutor(ENVIRONMENT, 60.0, Files(read=folders, write=[str(tmp_path)]))
        yield warm
        warm.close()


def launch(base: BaseWeights, folder: Path, epoch: int = 1, **fields: Any) -> tuple[RunSpec, Launch]:
    """An attempt at the job in that folder: its spec with names, and how to start it."""
    places = Places({"models": Path(base.folder).parent, "workspace": folder, "tokens": folder / "cache"})
    spec = places.named(make_spec(base, folder, epoch, **fields))
    name = f"{spec.run_folder}/{SPEC_FILE}"
    places.path(name).write_text(spec.model_dump_json())
    return spec, Launch(f"{folder.name}-{epoch}", name, places, folder / f"{epoch}.log")


def end(run: RunTransport) -> int:
    wait_until(lambda: run.poll() is not None, 90.0)
    code = run.poll()
    assert code is not None
    run.stop(0.0)
    return code


def adapters(given: Launch, spec: RunSpec) -> list[bytes]:
    folder = given.places.path(spec.run_folder)
    result = RunResult.model_validate_json((folder / RESULT_FILE).read_bytes())
    assert result.error is None, result.error
    for record in result.checkpoints:
        for name, digest in record.files.items():
            assert hashlib.sha256((folder / record.folder / name).read_bytes()).hexdigest() == digest
    return [(folder / record.folder / "adapter_model.safetensors").read_bytes() for record in result.checkpoints]


def test_a_run_reads_its_staged_files_and_everything_that_it_writes_comes_back(
    executor: Executor, tiny: BaseWeights, tmp_path: Path
) -> None:
    spec, given = launch(tiny, tmp_path / "job")
    run = executor.start(given)
    kinds: list[str] = []

    def is_ended() -> bool:
        is_last = run.poll() is not None
        lines = run.lines(f"{spec.run_folder}/{PROGRESS_FILE}")
        kinds.extend(Progress.model_validate_json(line).kind for line in lines)
        return is_last

    wait_until(is_ended, 90.0)
    assert end(run) == 0, given.log.read_text()
    run.stop(0.0)
    run.stop(0.0)
    assert kinds[0] == "phase" and kinds.count("checkpoint") == 3 and kinds[-1] == "phase"
    for name in spec.files().write:
        run.fetch(name)
    assert len(adapters(given, spec)) == 3
    assert given.log.exists()


def test_an_attempt_continues_from_what_came_back_of_a_stopped_one(
    executor: Executor, tiny: BaseWeights, tmp_path: Path
) -> None:
    whole, undisturbed = launch(tiny, tmp_path / "whole")
    first = executor.start(undisturbed)
    assert end(first) == 0
    first.fetch(whole.run_folder)
    spec, given = launch(tiny, tmp_path / "job")
    run = executor.start(given)
    steps = 0

    def is_past_its_first_checkpoint() -> bool:
        nonlocal steps
        lines = run.lines(f"{spec.run_folder}/{PROGRESS_FILE}")
        steps += sum(Progress.model_validate_json(line).kind == "step" for line in lines)
        return steps > 7

    wait_until(is_past_its_first_checkpoint, 60.0)
    run.stop(0.0)
    assert run.poll() is not None
    assert spec.resume_folder is not None
    run.fetch(spec.resume_folder)
    assert not given.places.path(f"{spec.run_folder}/{RESULT_FILE}").exists()
    again, second = launch(tiny, tmp_path / "job", 2)
    run = executor.start(second)
    assert end(run) == 0
    for name in again.files().write:
        run.fetch(name)
    assert adapters(second, again) == adapters(undisturbed, whole)
    notes = [Progress.model_validate_json(line) for line in run.lines(f"{again.run_folder}/{PROGRESS_FILE}")]
    assert any("resumed" in note.message for note in notes)


ECHO = f"""
import sys, time
from pathlib import Path
folder = Path(sys.argv[1]).parent
print("started")
with (folder / "{ASKED_FILE}").open("w") as asked:
    asked.write("one\\ntwo\\nhal")
    asked.flush()
    while not (folder / "{ANSWERED_FILE}").exists():
        time.sleep(0.01)
    asked.write("f " + (folder / "{ANSWERED_FILE}").read_text())
sys.exit(7)
"""


@pytest.mark.parametrize("kind", ["local", "other disk"])
def test_lines_cross_whole_in_both_directions(kind: str, tiny: BaseWeights, tmp_path: Path) -> None:
    program = [sys.executable, "-c", ECHO]
    executors = {
        "local": LocalExecutor(ENVIRONMENT, program),
        "other disk": OtherDiskExecutor(tmp_path / "other disk", ENVIRONMENT, program),
    }
    spec, given = launch(tiny, tmp_path / "job")
    run: RunTransport = executors[kind].start(given)
    name, seen = f"{spec.run_folder}/{ASKED_FILE}", list[bytes]()
    assert run.lines(f"{spec.run_folder}/none.jsonl") == []
    wait_until(lambda: seen.extend(run.lines(name)) or len(seen) == 2)  # type: ignore[func-returns-value]
    assert seen == [b"one", b"two"] and run.poll() is None
    run.send(f"{spec.run_folder}/{ANSWERED_FILE}", b"answer")
    assert end(run) == 7
    assert run.lines(name) == [b"half answer"]
    run.stop(0.0)
    assert "started" in given.log.read_text()


@pytest.mark.parametrize("kind", ["local", "other disk"])
def test_a_program_that_is_not_there_is_an_error_of_the_start(kind: str, tiny: BaseWeights, tmp_path: Path) -> None:
    program = [str(tmp_path / "nothing")]
    executors = {
        "local": LocalExecutor(ENVIRONMENT, program),
        "other disk": OtherDiskExecutor(tmp_path / "other disk", ENVIRONMENT, program),
    }
    with pytest.raises(OSError, match="nothing"):
        executors[kind].start(launch(tiny, tmp_path / "job")[1])


@pytest.fixture(scope="module")
def fair() -> Iterator[JudgeEndpoint]:
    """A judge elsewhere, which a run reaches through the relay only."""
    with judge_server() as address:
        model = {"name": "outside/fair", "kind": "openai", "base_url": f"{address}/v1", "model": "fair"}
        yield JudgeEndpoint(Judge.model_validate({**model, "private_address": True}), KEY)


METRICS = [
    {"exactMatchSpec": {}, "aggregationMetrics": ["AVERAGE"]},
    {"pointwiseMetricSpec": {"metricPromptTemplate": "Rate {response} from 1 to 5"},
     "metadata": {"scoreRange": {"min": 1, "max": 5, "step": 1}}, "aggregationMetrics": ["AVERAGE"]},
]  # fmt: skip


@pytest.mark.parametrize("is_keyed", [False, True], ids=["open", "keyed"])
def test_a_job_is_tuned_evaluated_and_tuned_further_whichever_disk_its_run_has(
    executor: Executor, tmp_path: Path, fair: JudgeEndpoint, is_keyed: bool
) -> None:
    control = replace(make_control(tmp_path / "home"), judges={fair.judge.name: fair})
    folder = control.catalog.folder(control.catalog.find("gemini-2.0-flash-001").weights)
    shutil.rmtree(folder)
    make_tiny_base(folder)
    if is_keyed:
        make_key(control)
    fields: dict[str, Any] = SPEC if is_keyed else {}
    evaluation = {
        "metrics": METRICS,
        "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://data/evaluations"}},
        "autoraterConfig": {"autoraterModel": fair.judge.name, "samplingCount": 1},
    }
    spec: dict[str, Any] = {"validationDatasetUri": "gs://data/train.jsonl", "hyperParameters": {"epochCount": 2}}
    name = create(control, spec={**spec, "evaluationConfig": evaluation}, **fields)
    supervisor = Supervisor(control, executor)
    supervisor.start()
    try:
        job = wait_for_end(control, name, 120)
        assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
        source = {"tunedModelName": job["tunedModel"]["model"]}
        again = create(control, preTunedModel=source, spec={"hyperParameters": {"epochCount": 1}}, **fields)
        further = wait_for_end(control, again, 120)
    finally:
        supervisor.stop()
    assert further["state"] == "JOB_STATE_SUCCEEDED", further.get("error")
    assert [run.get("error") for run in job["evaluateDatasetRuns"]] == [None, None]
    listed = [one.name for one in control.buckets.list("data", "evaluations/").objects]
    assert len([name for name in listed if name.endswith("row_results.jsonl")]) == 2
    assert [one.name for one in control.buckets.list("sarto-demo-models").objects if one.name.endswith("report.html")]
    served = registry.resolve(control, member(control), job["tunedModel"]["endpoint"])
    assert (sealed_files.adapter(control, served.adapter_folder) / "adapter_model.safetensors").exists()
    for one in (name, again):
        written = sealed_files.read(control, one.id, control.job_folder(one.id) / "1" / SPEC_FILE)
        assert str(tmp_path).encode() not in written and b'"/' not in written
    report = sealed_files.read(control, name.id, control.job_folder(name.id) / "1" / REPORT_FILE)
    assert orjson.loads(report)["isUsable"]
    if is_keyed:
        assert all_plain(control, control.home / "runs") == [] == all_plain(control, control.home / "adapters")
    control.sealer.private.close()
    control.database.close()
