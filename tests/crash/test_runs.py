"""The real run program on the tiny base, killed at its own named places: the next attempt leaves the same bytes."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from sarto.contract.tuning_run import Progress, RunResult, RunSpec
from sarto.system.failpoints import VARIABLE
from tests.control.homes import wait_until
from tests.engine.programs.test_tune import PROGRAM, arguments_of, make_spec
from tests.tiny import make_tiny_base

IS_ALL = os.environ.get("SARTO_CRASH") == "all"
SOME, OFTEN = 3, 4
INTERVAL_SECONDS = 0.4
KILLS = int(os.environ.get("SARTO_STORM_KILLS", "4"))
SEED = int(os.environ.get("SARTO_STORM_SEED", "7"))


def run(spec: RunSpec, failpoint: str = "") -> int:
    environment = {**os.environ, VARIABLE: failpoint, "OMP_NUM_THREADS": "1"}
    command = [*PROGRAM, *arguments_of(spec)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as child:
        return child.wait(120)


def adapters(spec: RunSpec) -> dict[str, bytes]:
    result = RunResult.model_validate_json((Path(spec.run_folder) / "result.json").read_bytes())
    assert result.error is None
    found = {}
    for record in result.checkpoints:
        found[record.checkpoint_id] = (Path(spec.run_folder) / record.folder / "adapter_model.safetensors").read_bytes()
    return found


def test_a_run_killed_anywhere_is_finished_by_the_next_with_the_same_bytes(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "tiny")
    fields = {"parameters": {"epoch_count": 2}, "validation_dataset": None}
    whole = make_spec(base, tmp_path / "whole", **fields)
    log = tmp_path / "places"
    assert run(whole, f">{log}") == 0
    expected = adapters(whole)
    counts = Counter(log.read_text().splitlines())
    found = [(name, time) for name, count in counts.items() for time in range(1, min(count, OFTEN) + 1)]
    tried = found if IS_ALL else found[:: max(1, len(found) // SOME)]

    def survive(numbered: tuple[int, tuple[str, int]]) -> str:
        number, (name, time) = numbered
        first = make_spec(base, tmp_path / f"job-{number}", 1, **fields)
        code = run(first, f"{name}*{time}")
        if code != -signal.SIGKILL:
            return f"{name}*{time}: the run ended with {code}"
        second = make_spec(base, tmp_path / f"job-{number}", 2, **fields)
        code = run(second)
        return "" if code == 0 and adapters(second) == expected else f"{name}*{time}: another result ({code})"

    with ThreadPoolExecutor(2) as pool:
        wrong = [words for words in pool.map(survive, enumerate(tried)) if words]
    print(f"\nrun: {len(tried) - len(wrong)} of {len(tried)} deaths survived, {len(found)} points known")
    assert wrong == []


@pytest.mark.parametrize("how", ["torn", "flipped", "empty"])
def test_a_damaged_resume_point_is_not_used(tmp_path: Path, how: str) -> None:
    base = make_tiny_base(tmp_path / "tiny")
    fields = {"parameters": {"epoch_count": 2}, "validation_dataset": None}
    first = make_spec(base, tmp_path / "job", 1, **fields)
    assert run(first, "rename engine.tuning.checkpoint_files.save_resume_point after*3") == -signal.SIGKILL
    point = tmp_path / "job" / "resume" / "resume.safetensors"
    content = bytearray(point.read_bytes())
    if how == "torn":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) * 3 // 4] ^= 0x10
    else:
        content = bytearray()
    point.write_bytes(content)
    second = make_spec(base, tmp_path / "job", 2, **fields)
    assert run(second) == 0
    whole = make_spec(base, tmp_path / "whole", **fields)
    assert run(whole) == 0
    assert adapters(second) == adapters(whole)


def test_a_run_killed_again_and_again_loses_no_more_than_the_interval_each_time(tmp_path: Path) -> None:
    """A storm on the real engine: killed at random moments, each attempt goes on where the resume point was, and at the
    end the bytes are those of a run that was left alone."""
    base = make_tiny_base(tmp_path / "tiny")
    fields = {
        "parameters": {"epoch_count": 50}, "validation_dataset": None, "export_last_checkpoint_only": True,
        "resume_seconds": INTERVAL_SECONDS,
    }  # fmt: skip
    whole = make_spec(base, tmp_path / "whole", **fields)
    assert run(whole) == 0
    chance, lost = random.Random(SEED), []
    for attempt in range(1, KILLS + 1):
        spec = make_spec(base, tmp_path / "job", attempt, **fields)
        run_until_killed(spec, chance.uniform(0.1, 3 * INTERVAL_SECONDS))
        lost.append(spec)
    last = make_spec(base, tmp_path / "job", KILLS + 1, **fields)
    assert run(last) == 0
    assert adapters(last) == adapters(whole)
    found = [loss(before, after) for before, after in pairwise([*lost, last])]
    steps, seconds = [steps for steps, _, _ in found], [seconds for _, seconds, _ in found]
    print(f"\nreal runs: {KILLS} kills, steps lost {steps}, seconds of work lost {[round(one, 2) for one in seconds]}")
    assert max(steps) > 0, "no kill cost anything: they came too early to measure"
    for _, lost_seconds, slowest in found:
        assert lost_seconds <= INTERVAL_SECONDS + 2 * slowest


def run_until_killed(spec: RunSpec, seconds: float) -> None:
    """For so long after its first new step; a run that ends before is killed too late and ends as it would."""
    with subprocess.Popen(
        [*PROGRAM, *arguments_of(spec)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:  # fmt: skip
        wait_until(lambda: steps_of(spec, is_new=True) != [], 60.0)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()


def steps_of(spec: RunSpec, *, is_new: bool = False) -> list[tuple[int, float]]:
    """Number and time of every step an attempt has told; with `is_new` without what it told again."""
    told, resumed = [], 0
    path = Path(spec.run_folder) / "progress.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            said = Progress.model_validate_json(line)
        except ValueError:
            break  # it is being written
        resumed = max(resumed, resumed_after(said))
        if said.step is not None:
            told.append((said.step.step, said.time))
    return [one for one in told if not is_new or one[0] > resumed]


def resumed_after(said: Progress) -> int:
    found = re.fullmatch(r"resumed after step (\d+)", said.message)
    return int(found[1]) if found else 0


def loss(before: RunSpec, after: RunSpec) -> tuple[int, float, float]:
    """Steps and seconds of work that a kill cost, and the slowest step of the killed attempt, in seconds."""
    told = steps_of(before, is_new=True)
    lines = (Path(after.run_folder) / "progress.jsonl").read_bytes().splitlines()
    kept = max(resumed_after(Progress.model_validate_json(line)) for line in lines)
    times = dict(told)
    last, at = told[-1]
    slowest = max((b[1] - a[1] for a, b in pairwise(told)), default=0.0)
    return last - kept, at - times.get(kept, told[0][1]), slowest
