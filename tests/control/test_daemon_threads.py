"""Threads for calls of other services: as many at once as there are, and none that holds the process up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from sarto.system.daemon_threads import DaemonThreads


def test_calls_run_as_many_at_once_as_there_are_threads_and_the_others_in_their_turn() -> None:
    pool, go, begun = DaemonThreads(2, "test"), threading.Event(), threading.Semaphore(0)

    def wait(number: int) -> int:
        begun.release()
        go.wait(10)
        return number

    answers = [pool.submit(wait, number) for number in range(5)]
    for _ in range(2):
        assert begun.acquire(timeout=10)
    assert not begun.acquire(timeout=0.1)
    assert answers[4].cancel()
    go.set()
    assert [answer.result(10) for answer in answers[:4]] == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(10)
    pool.shutdown()


def test_what_waits_is_cancelled_at_the_end_where_that_is_asked_for() -> None:
    pool, go = DaemonThreads(1, "test"), threading.Event()
    running, waiting = pool.submit(go.wait, 10), pool.submit(int)
    while not running.running():
        time.sleep(0.001)  # until its thread has it
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        waiting.result(10)
    go.set()
    assert running.result(10)


def test_a_call_that_never_ends_does_not_hold_the_process_up() -> None:
    program = (
        "import threading\n"
        "from sarto.system.daemon_threads import DaemonThreads\n"
        "pool, begun = DaemonThreads(2, 'test'), threading.Event()\n"
        "pool.submit(lambda: (begun.set(), threading.Event().wait()))\n"
        "begun.wait()\n"
        "pool.shutdown(wait=False, cancel_futures=True)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
