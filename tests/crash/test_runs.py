"""The real run program on the tiny base, killed at its own named places: the next attempt leaves the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sarto.failpoints import VARIABLE
from sarto.schema.runs import RunResult, RunSpec
from tests.engine.test_run import PROGRAM, make_spec
from tests.tiny import make_tiny_base

IS_ALL = os.environ.get("SARTO_CRASH") == "all"
SOME, OFTEN = 3, 4


def run(spec: RunSpec, failpoint: str = "") -> int:
    environment = {**os.environ, VARIABLE: failpoint, "OMP_NUM_THREADS": "1"}
    command = [*PROGRAM, f"{spec.run_folder}/spec.json"]
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
    assert run(first, "rename engine.tuning.checkpoint.save_resume_point after*3") == -signal.SIGKILL
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
