"""A thread pool that does not delay the end of the process.

Python joins the threads of `ThreadPoolExecutor` at exit, and a call of another service may take arbitrarily long.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(Executor):
    """At most `count` concurrent calls; further ones wait. Each thread is started when it is first needed."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._changing = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._in_hand = 0
        """Number of waiting or running calls."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        answer: Future[T] = Future()
        self._work.put((answer, partial(fn, *args, **kwargs)))
        with self._changing:
            self._in_hand += 1
            if len(self._threads) < min(self._in_hand, self._count):
                name = f"{self._name}_{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._live, name=name, daemon=True))
                self._threads[-1].start()
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads after their present calls; waiting calls are run first, or cancelled."""
        if cancel_futures:
            with suppress(queue.Empty):
                while (waiting := self._work.get_nowait()) is not None:
                    waiting[0].cancel()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _live(self) -> None:
        while (taken := self._work.get()) is not None:
            settle(*taken)
            del taken  # so that its objects are not kept until the next call
            with self._changing:
                self._in_hand -= 1


def settle(answer: Future[Any], call: Callable[[], Any]) -> None:
    """Call, unless the answer was cancelled, and give the answer its result or its fault."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(call())
    except BaseException as error:
        answer.set_exception(error)
