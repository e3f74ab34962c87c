"""A loop calls its function now and then, soon after a wake, and not at all after its stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from sarto.system.loop import Loop

FOREVER = 3600.0


class Calls:
    """Counts calls, each of which may do something; `reach` waits for so many."""

    def __init__(self, do: Callable[[int], float | None] = lambda _: None) -> None:
        self._do, self._changed, self.times = do, threading.Condition(), list[float]()

    def __call__(self) -> float | None:
        with self._changed:
            self.times.append(time.monotonic())
            self._changed.notify_all()
        return self._do(len(self.times))

    def reach(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.times) >= count, 20)


def test_it_is_called_every_so_many_seconds() -> None:
    calls = Calls()
    loop = Loop("test", calls, 0.01)
    loop.start()
    calls.reach(5)
    loop.stop()
    count = len(calls.times)
    loop.wake()
    assert len(calls.times) == count
    assert all(after - before > 0.009 for before, after in zip(calls.times, calls.times[1:], strict=False))


def test_a_wake_calls_it_soon_but_many_wakes_no_more_often_than_it_allows() -> None:
    calls = Calls()
    loop = Loop("test", calls, FOREVER, least=0.1)
    loop.start()
    calls.reach(1)
    for _ in range(1000):
        loop.wake()
    calls.reach(2)
    for _ in range(1000):
        loop.wake()
    calls.reach(3)
    loop.stop()
    assert calls.times[1] - calls.times[0] > 0.09 and calls.times[2] - calls.times[1] > 0.09


def test_a_wake_during_a_call_is_not_lost() -> None:
    calls = Calls(lambda count: loop.wake() if count == 1 else None)
    loop = Loop("test", calls, FOREVER)
    loop.start()
    calls.reach(2)
    loop.stop()


def test_it_is_called_again_when_it_wants_to_be() -> None:
    calls = Calls(lambda count: 0.0 if count < 3 else None)
    loop = Loop("test", calls, FOREVER)
    loop.start()
    calls.reach(3)
    loop.stop()


def test_a_first_call_may_be_put_off() -> None:
    calls = Calls()
    loop = Loop("test", calls, FOREVER, first=FOREVER)
    loop.start()
    loop.wake()
    calls.reach(1)
    loop.stop()
    assert len(calls.times) == 1


def test_it_goes_on_after_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    def fail(count: int) -> None:
        if count == 1:
            raise ValueError("first")

    calls = Calls(fail)
    loop = Loop("test", calls, 0.01)
    loop.start()
    calls.reach(2)
    loop.stop()
    assert [record.message for record in caplog.records] == ["loop failed"]


def test_threads_work_side_by_side_when_the_one_at_work_wakes_another() -> None:
    together = threading.Barrier(3)

    def meet(count: int) -> None:
        loop.wake()
        if count <= 3:
            together.wait(20)

    calls = Calls(meet)
    loop = Loop("test", calls, FOREVER, threads=3)
    loop.start()
    calls.reach(3)
    loop.stop()
    assert together.n_waiting == 0


def test_stop_ends_a_long_call_that_looks_and_waits_no_longer_than_asked_for_one_that_does_not() -> None:
    is_let_go = threading.Event()
    looks = Loop("looks", lambda: looks.stopping.wait(20) and None, FOREVER)
    deaf = Loop("deaf", lambda: is_let_go.wait(20) and None, FOREVER)
    looks.start()
    deaf.start()
    looks.stop()
    began = time.monotonic()
    deaf.stop(0.05)
    assert time.monotonic() - began < 10
    is_let_go.set()
    deaf.stop()
