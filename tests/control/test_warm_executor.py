"""Runs forked from a resident process: the same numbers, an early first step, and nothing outlives its reason."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sarto.control.executors import clean_environment
from sarto.control.warm_executor import WarmExecutor
from sarto.schema.runs import BaseWeights, RunResult, RunSpec
from tests.engine.test_run import POLL_SECONDS, finish, make_spec, progress, steps
from tests.tiny import make_tiny_base

HANDLE = "job-1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def warm() -> Iterator[WarmExecutor]:
    executor = WarmExecutor(clean_environment(os.environ), idle_seconds=60.0)
    yield executor
    executor.close()


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(POLL_SECONDS)


def start(executor: WarmExecutor, spec: RunSpec, handle: str = HANDLE) -> None:
    executor.start(handle, Path(spec.run_folder) / "spec.json", Path(spec.run_folder) / "run.log")


def wait(executor: WarmExecutor, handle: str = HANDLE) -> int:
    until(lambda: executor.poll(handle) is not None)
    code = executor.poll(handle)
    assert code is not None
    executor.stop(handle, 0.0)
    return code


def endless(base: BaseWeights, folder: Path) -> RunSpec:
    return make_spec(base, folder, parameters={"epoch_count": 100_000})


def residents() -> list[int]:
    """Resident processes and runs started by this one, by the command line they share."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"sarto.engine.resident" in path.read_bytes():
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
        start(warm, spec)
        assert wait(warm) == 0
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
    start(warm, doomed, "doomed")
    until(lambda: steps(doomed))
    start(warm, beside)
    assert wait(warm) == 0
    assert steps(beside) == steps(cold)
    warm.stop("doomed", 0.0)
    for name, given, expected in (("after", small, small_cold), ("last", {}, cold)):
        again = spec(name, **given)
        start(warm, again)
        assert wait(warm) == 0
        assert steps(again) == steps(expected)


def test_a_fault_of_the_machine_keeps_its_code_and_its_words(
    tiny: BaseWeights, tmp_path: Path, warm: WarmExecutor
) -> None:
    spec = make_spec(tiny, tmp_path / "job")
    Path(spec.training_dataset.path).unlink()
    start(warm, spec)
    assert wait(warm) not in (0, 143)
    assert not (Path(spec.run_folder) / "result.json").exists()
    assert "train.jsonl" in (Path(spec.run_folder) / "run.log").read_text()


def test_stopping_a_run_takes_only_this_run(tiny: BaseWeights, tmp_path: Path, warm: WarmExecutor) -> None:
    doomed, other = endless(tiny, tmp_path / "doomed"), endless(tiny, tmp_path / "other")
    start(warm, doomed, "doomed")
    start(warm, other, "other")
    until(lambda: steps(doomed) and steps(other))
    assert len(residents()) == 3
    warm.stop("doomed", 0.0)
    assert len(residents()) == 2
    said = len(steps(other))
    until(lambda: len(steps(other)) > said)
    assert warm.poll("other") is None
    warm.stop("other", 0.0)
    assert len(residents()) == 1


def test_a_killed_resident_ends_its_runs_as_lost_and_the_next_run_gets_a_new_one(
    tiny: BaseWeights, tmp_path: Path, warm: WarmExecutor
) -> None:
    spec = endless(tiny, tmp_path / "job")
    start(warm, spec)
    until(lambda: steps(spec))
    resident = min(residents())
    os.kill(resident, 9)
    assert wait(warm) not in (0, None)
    until(lambda: residents() in ([], [resident]))
    again = make_spec(tiny, tmp_path / "again")
    start(warm, again)
    assert wait(warm) == 0


def test_an_idle_resident_ends_and_the_next_run_starts_all_the_same(tiny: BaseWeights, tmp_path: Path) -> None:
    executor = WarmExecutor(clean_environment(os.environ), idle_seconds=0.2)
    for name in ("first", "second"):
        spec = make_spec(tiny, tmp_path / name)
        start(executor, spec)
        assert wait(executor) == 0
        until(lambda: all(_is_zombie(pid) for pid in residents()))
    executor.close()


def _is_zombie(pid: int) -> bool:
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


SERVICE = """
import os, sys, time
from pathlib import Path
from sarto.control.executors import clean_environment
from sarto.control.warm_executor import WarmExecutor
executor = WarmExecutor(clean_environment(os.environ), 60.0)
folder = Path(sys.argv[1])
executor.start("job", folder / "spec.json", folder / "run.log")
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
