"""Runs forked from a resident process: the same numbers, an early first step, and nothing outlives its reason."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sarto.schema.runs import BaseWeights, RunResult, RunSpec
from tests.engine.test_run import POLL_SECONDS, finish, make_spec, progress, steps
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def resident(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    path = tmp_path / "r.sock"
    with subprocess.Popen([sys.executable, "-m", "sarto.engine.resident", str(path)], stdin=subprocess.PIPE) as child:
        while not path.exists():
            assert child.poll() is None
            time.sleep(POLL_SECONDS)
        yield child, path
        if child.stdin is not None and not child.stdin.closed:
            child.stdin.close()
        child.wait(10)


def start(path: Path, spec: RunSpec) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "sarto.engine.warm", str(path), f"{spec.run_folder}/spec.json"])


def test_a_forked_run_gives_the_numbers_of_a_started_one(
    tiny: BaseWeights, tmp_path: Path, resident: tuple[subprocess.Popen[bytes], Path]
) -> None:
    cold = make_spec(tiny, tmp_path / "cold")
    finish(cold)
    found = []
    for name in ("first", "second"):
        spec = make_spec(tiny, tmp_path / name)
        started = time.time()
        with start(resident[1], spec) as client:
            assert client.wait(60) == 0
        assert RunResult.model_validate_json((Path(spec.run_folder) / "result.json").read_bytes()).error is None
        assert steps(spec) == steps(cold)
        first = next(line.time for line in progress(spec) if line.step)
        found.append(first - started)
    assert found[1] < 1.5  # a process that imports torch takes longer than that before it does anything


def test_a_fault_of_the_machine_keeps_its_code(
    tiny: BaseWeights, tmp_path: Path, resident: tuple[subprocess.Popen[bytes], Path]
) -> None:
    spec = make_spec(tiny, tmp_path / "job")
    Path(spec.training_dataset.path).unlink()
    with start(resident[1], spec) as client:
        assert client.wait(60) not in (0, 143)
    assert not (Path(spec.run_folder) / "result.json").exists()


@pytest.mark.parametrize("gone", ["client", "resident"])
def test_a_run_stops_when_who_asked_for_it_is_gone(
    tiny: BaseWeights, tmp_path: Path, resident: tuple[subprocess.Popen[bytes], Path], gone: str
) -> None:
    spec = make_spec(tiny, tmp_path / "job", parameters={"epoch_count": 100_000})
    with start(resident[1], spec) as client:
        while not steps(spec):
            assert client.poll() is None
            time.sleep(POLL_SECONDS)
        if gone == "client":
            client.kill()
        else:
            assert resident[0].stdin is not None
            resident[0].stdin.close()
            assert client.wait(10) != 0
    path = Path(spec.run_folder) / "progress.jsonl"
    size, deadline = -1, time.monotonic() + 10
    while path.stat().st_size != size:
        assert time.monotonic() < deadline
        size = path.stat().st_size
        time.sleep(0.3)
    assert not (Path(spec.run_folder) / "result.json").exists()
