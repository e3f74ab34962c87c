"""Snippets of users: their numbers, their failures, and workers that stay warm."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sarto.rewards.code_workers import GIVE_UP, CodeLimits, CodeWorkers
from sarto.rewards.failures import CODE_FAILURE, LIMIT, NO_NUMBER
from sarto.rewards.scoring import Scored
from sarto.system.sandbox import computing_faults

pytestmark = pytest.mark.skipif(bool(computing_faults()), reason="user code needs Landlock and seccomp")
EXAMPLE = {"contents": [{"role": "user", "parts": [{"text": "6 times 7?"}]}], "references": {"answer": "42"}}


def response(text: str) -> dict[str, object]:
    return {"role": "model", "parts": [{"text": text}]}


@pytest.fixture(scope="module")
def workers() -> Iterator[CodeWorkers]:
    made = CodeWorkers(1, CodeLimits(seconds=2.0, memory_bytes=256 << 20), keep=True)
    yield made
    made.close()


def run(workers: CodeWorkers, snippet: str, *texts: str) -> list[Scored]:
    return asyncio.run(workers.execute(snippet, [(EXAMPLE, response(text)) for text in texts or ("42",)]))


def body(line: str) -> str:
    return f"import math, sys, os\ndef evaluate(example, response):\n    {line}\n"


COMPARING = """
import dataclasses, json, re
@dataclasses.dataclass
class Right:
    text: str

def evaluate(example, response) -> float:
    text = "".join(part["text"] for part in response["parts"])
    return 1.0 if Right(text) == Right(example["references"]["answer"]) else -0.5
"""


def test_evaluate_gets_the_row_and_the_answer(workers: CodeWorkers) -> None:
    scored = run(workers, COMPARING, "42", "41", "4\ud800")
    assert [one.reward for one in scored] == [1.0, -0.5, -0.5]
    assert all(one.failure is None and one.seconds > 0 for one in scored)


@pytest.mark.parametrize(
    ("line", "reward"),
    [
        ("return 7", 7.0),
        ("return True", 1.0),
        ("return -math.inf", float("-inf")),
        ("import fractions; return fractions.Fraction(1, 4)", 0.25),
    ],
)
def test_what_is_a_number(workers: CodeWorkers, line: str, reward: float) -> None:
    assert run(workers, body(line))[0].reward == reward


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("return None", NO_NUMBER, "returned None"),
        ("return '1'", NO_NUMBER, "returned text"),
        ("return math.nan", NO_NUMBER, "NaN"),
        ("return [1]", CODE_FAILURE, "TypeError"),
        ("return 1j", CODE_FAILURE, "TypeError"),
        ("return example['nothing']", CODE_FAILURE, "KeyError: 'nothing' (line 3)"),
        ("sys.exit(0)", CODE_FAILURE, "SystemExit"),
        ("os._exit(3)", CODE_FAILURE, "exit code 3"),
        ("while True: pass", LIMIT, "2 seconds"),
        ("return len(bytearray(1 << 30))", LIMIT, "memory"),
        ("raise KeyboardInterrupt", CODE_FAILURE, "KeyboardInterrupt"),
        ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()", CODE_FAILURE, "without words"),
    ],
)
def test_a_failure_has_a_kind_and_words_and_the_next_call_succeeds(
    workers: CodeWorkers, line: str, kind: str, words: str
) -> None:
    snippet = (
        "import math, sys, os\ndef evaluate(example, response):\n"
        f"    if response['parts'][0]['text'] == '42': return 1\n    {line}\n"
    )
    bad, good = run(workers, snippet, "no", "42")
    assert (bad.reward, bad.failure) == (None, kind) and words.replace("line 3", "line 4") in bad.message
    assert good.reward == 1.0


@pytest.mark.parametrize(
    ("snippet", "words"),
    [
        ("def evaluate(:", "SyntaxError"),
        ("evaluate = 1", "defines no function"),
        ("import nothing_of_that_name\ndef evaluate(e, r): return 1", "ModuleNotFoundError"),
        ("def evaluate(e, r): return 1\nwhile True: pass", "2 seconds"),
        ("(" * 5000 + "evaluate", ""),
    ],
)
def test_a_snippet_that_cannot_be_loaded_fails_every_call_and_is_tried_once(
    workers: CodeWorkers, snippet: str, words: str
) -> None:
    began = time.monotonic()
    scored = run(workers, snippet, *["42"] * 20)
    assert all(one.reward is None and words in one.message for one in scored)
    assert time.monotonic() - began < 15


def test_a_worker_stays_warm_and_keeps_the_variables_of_its_snippet() -> None:
    counting = "import os\nseen = 0\ndef evaluate(e, r):\n    global seen\n    seen += 1\n    return seen"
    for keep, counts in ((True, [1.0, 2.0, 3.0]), (False, [1.0, 1.0, 1.0])):
        workers = CodeWorkers(1, CodeLimits(), keep=keep)
        assert [one.reward for one in run(workers, counting, "a", "b", "c")] == counts
        workers.close()


def test_calls_that_all_run_into_a_limit_are_given_up() -> None:
    workers = CodeWorkers(4, CodeLimits(seconds=0.3), keep=True)
    scored = run(workers, body("while True: pass"), *["a"] * 64)
    assert {one.failure for one in scored} == {LIMIT}
    assert GIVE_UP <= sum("0.3 seconds" in one.message for one in scored) <= GIVE_UP + 4
    workers.close()


def test_the_words_of_a_user_are_cut(workers: CodeWorkers) -> None:
    assert len(run(workers, body("raise ValueError('x' * 1_000_000)"))[0].message) < 600


def test_a_cancelled_batch_leaves_no_process() -> None:
    workers = CodeWorkers(2, CodeLimits(seconds=60), keep=True)

    async def cancelled() -> list[int]:
        task = asyncio.create_task(workers.execute(body("while True: pass"), [(EXAMPLE, response("a"))] * 4))
        while not (pids := workers.pids) or len(pids) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return pids

    pids = asyncio.run(cancelled())
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_numpy_can_be_imported_where_it_is_installed(workers: CodeWorkers) -> None:
    assert run(workers, "import numpy\ndef evaluate(e, r): return numpy.float32(0.5)")[0].reward == 0.5


RUN = """
import asyncio, socket, sys
from sarto.rewards.code_workers import CodeLimits, CodeWorkers
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1)
    sys.exit("the run has the network")
except OSError:
    pass
workers = CodeWorkers(2, CodeLimits(seconds=2), keep=True)
snippet = "import os\\ndef evaluate(e, r):\\n    if r['text'] == 'fork': os.fork()\\n    return len(r['text']) / 10"
calls = [({}, {"text": text}) for text in ("one", "fork", "three")] * 20
print([one.reward for one in asyncio.run(workers.execute(snippet, calls))][-3:])
workers.close()
"""


def test_a_run_that_is_in_the_sandbox_starts_workers_too(tmp_path: Path) -> None:
    """Under the limits of a run: no namespaces of its own, a first filter, and few files."""
    (tmp_path / "scoring_run.py").write_text(RUN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        confine = [sys.executable, "-P", "-m", "sarto.engine.programs.sandbox", f"--data-bytes={2 << 30}"]
        command = [*confine, f"--write={tmp_path / 'own'}", "scoring_run", port]
        environ = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[0.3, None, 0.5]", done.stderr
