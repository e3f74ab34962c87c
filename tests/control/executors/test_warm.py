"""Runs forked from a resident process: the same numbers, an early first step, and nothing outlives its reason."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sarto.contract.common import BaseWeights, Files
from sarto.contract.tuning_run import RunResult, RunSpec
from sarto.control.executors.executor import clean_environment
from sarto.control.executors.local import LocalRun
from sarto.control.executors.warm import WarmExecutor
from tests.engine.programs.test_tune import POLL_SECONDS, finish, make_spec, progress, steps
from tests.specs import launch
from tests.tiny import make_tiny_base

HANDLE = "job-1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def files(folder: Path) -> Files:
    return Files(read=[], write=[str(folder)])


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[WarmExecutor]:
    executor = WarmExecutor(clean_environment(os.environ), idle_seconds=60.0, files=files(tmp_path))
    yield executor
    executor.close()


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(POLL_SECONDS)


def start(executor: WarmExecutor, spec: RunSpec) -> LocalRun:
    folder = Path(spec.run_folder)
    return executor.start(launch(HANDLE, folder / "spec.json", folder / "run.log"))


def wait(run: LocalRun) -> int:
    until(lambda: run.poll() is not None)
    code = run.poll()
    assert code is not None
    run.stop(0.0)
    return code


def endless(base: BaseWeights, folder: Path) -> RunSpec:
    return make_spec(base, folder, parameters={"epoch_count": 100_000})


def residents() -> list[int]:
    """Resident processes and runs started by this one, by the command line they share."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"sarto.engine.programs.warm_process" in path.read_bytes():
                parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
                found.append((int(path.parent.name), parent))
        except OSError:
            continue
    mine = {pid for pid, parent in found if parent == os.getpid()}
    return [pid for pid, parent in found if pid in mine or parent in mine]


def test_a_forked_run_gives_the_numbers_of_a_started_one_and_starts_at_once(
    tiny: BaseWeights, tmp_path: Path, warm: WarmExecutor
) -> None:
    cold = make_spec(tiny, tmp_path / "cold")
    finish(cold)
    found = []
    for name in ("first", "second"):
        spec = make_spec(tiny, tmp_path / name)
        started = time.time()
        assert wait(start(warm, spec)) == 0
        assert RunResult.model_validate_json((Path(spec.run_folder) / "result.json").read_bytes()).error is None
        assert steps(spec) == steps(cold)
        found.append(next(line.time for line in progress(spec) if line.step) - started)
    assert found[1] < 1.5  # a process that imports torch takes longer than that before it does anything


def test_runs_beside_and_after_one_another_keep_out_of_each_others_adapters(
    tiny: BaseWeights, tmp_path: Path, warm: WarmExecutor
) -> None:
    """The first lays a large adapter around the base where it is, and is killed there."""

    def spec(name: str, **parameters: object) -> RunSpec:
        return make_spec(tiny, tmp_path / name, parameters=parameters, dtype="auto")

    small: dict[str, object] = {"rank": 1, "target_modules": ["q_proj", "down_proj"]}
    cold, small_cold = spec("cold"), spec("small-cold", **small)
    finish(cold)
    finish(small_cold)
    doomed, beside = spec("doomed", rank=32, epoch_count=100_000), spec("beside")
    hopeless = start(warm, doomed)
    until(lambda: steps(doomed))
    assert wait(start(warm, beside)) == 0
    assert steps(beside) == steps(cold)
    hopeless.stop(0.0)
    for name, given, expected in (("after", small, small_cold), ("last", {}, cold)):
        again = spec(name, **given)
        assert wait(start(warm, again)) == 0
        assert steps(again) == steps(expected)


def test_a_fault_of_the_machine_keeps_its_code_and_its_words(
    tiny: BaseWeights, tmp_path: Path, warm: WarmExecutor
) -> None:
    spec = make_spec(tiny, tmp_path / "job")
    Path(spec.training_dataset.path).unlink()
    assert wait(start(warm, spec)) not in (0, 143)
    assert not (Path(spec.run_folder) / "result.json").exists()
    assert "train.jsonl" in (Path(spec.run_folder) / "run.log").read_text()


def test_stopping_a_run_takes_only_this_run(tiny: BaseWeights, tmp_path: Path, warm: WarmExecutor) -> None:
    doomed, other = endless(tiny, tmp_path / "doomed"), endless(tiny, tmp_path / "other")
    first, second = start(warm, doomed), start(warm, other)
    until(lambda: steps(doomed) and steps(other))
    assert len(residents()) == 3
    first.stop(0.0)
    assert len(residents()) == 2
    said = len(steps(other))
    until(lambda: len(steps(other)) > said)
    assert second.poll() is None
    second.stop(0.0)
    assert len(residents()) == 1


def test_a_killed_resident_ends_its_runs_as_lost_and_the_next_run_gets_a_new_one(
    tiny: BaseWeights, tmp_path: Path, warm: WarmExecutor
) -> None:
    spec = endless(tiny, tmp_path / "job")
    run = start(warm, spec)
    until(lambda: steps(spec))
    resident = min(residents())
    os.kill(resident, 9)
    assert wait(run) not in (0, None)
    until(lambda: residents() in ([], [resident]))
    again = make_spec(tiny, tmp_path / "again")
    assert wait(start(warm, again)) == 0


def test_an_idle_resident_ends_and_the_next_run_starts_all_the_same(tiny: BaseWeights, tmp_path: Path) -> None:
    executor = WarmExecutor(clean_environment(os.environ), idle_seconds=0.2, files=files(tmp_path))
    for name in ("first", "second"):
        spec = make_spec(tiny, tmp_path / name)
        assert wait(start(executor, spec)) == 0
        until(lambda: all(_is_zombie(pid) for pid in residents()))
    executor.close()


def _is_zombie(pid: int) -> bool:
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


SERVICE = """
import os, sys, time
from pathlib import Path
from sarto.control.executors.executor import clean_environment
from sarto.control.executors.warm import WarmExecutor
from sarto.contract.common import Files
from tests.specs import launch
folder = Path(sys.argv[1])
executor = WarmExecutor(clean_environment(os.environ), 60.0, Files(read=[], write=[str(folder.parent)]))
run = executor.start(launch("job", folder / "spec.json", folder / "run.log"))
time.sleep(600)
"""


def test_resident_and_runs_die_with_a_killed_service(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = endless(tiny, tmp_path / "job")
    with subprocess.Popen([sys.executable, "-c", SERVICE, spec.run_folder]) as service:
        until(lambda: steps(spec))
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        service.kill()
    until(lambda: not any((Path("/proc") / pid).exists() and not _is_zombie(int(pid)) for pid in children))
    path = Path(spec.run_folder) / "progress.jsonl"
    sizes: list[int] = []
    until(lambda: sizes.append(path.stat().st_size) or (len(sizes) > 20 and sizes[-1] == sizes[-20]))  # type: ignore[func-returns-value]
    assert not (Path(spec.run_folder) / "result.json").exists()
