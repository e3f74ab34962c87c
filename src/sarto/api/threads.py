"""Threads for what blocks. Calls share few threads while those keep up, reads one and writes four: threads that take turns
at the interpreter's lock cost more than they bring. Once a call holds its lane up, later ones go elsewhere.

Knows no request; used by `http.in_thread`, made by `app`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
READERS = 1
WRITERS = 4
"""Enough that some wait for the disk, sharing a commit, while one works."""
LONG_SECONDS = 0.005
"""A call that takes longer holds the others up."""


class _Lane:
    """A few threads, and since when each of their calls has been running."""

    def __init__(self, name: str, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads, name)
        self._began: dict[object, float] = {}

    def is_held_up(self) -> bool:
        return any(time.monotonic() - began > LONG_SECONDS for began in list(self._began.values()))

    def run(self, call: Callable[[], T]) -> Future[T]:
        return self.pool.submit(self._timed, call)

    def _timed(self, call: Callable[[], T]) -> T:
        me = object()
        self._began[me] = time.monotonic()
        try:
            return call()
        finally:
            del self._began[me]


class HandlerThreads:
    def __init__(self, others: int) -> None:
        self._reads = _Lane("reader", READERS)
        self._writes = _Lane("writer", WRITERS)
        self._others = ThreadPoolExecutor(others, "handler")

    def read(self, call: Callable[[], T]) -> Future[T]:
        return self._others.submit(call) if self._reads.is_held_up() else self._reads.run(call)

    def write(self, call: Callable[[], T]) -> Future[T]:
        return self._others.submit(call) if self._writes.is_held_up() else self._writes.run(call)

    def close(self) -> None:
        for pool in (self._reads.pool, self._writes.pool, self._others):
            pool.shutdown(cancel_futures=True)
