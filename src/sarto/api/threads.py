"""Threads for what blocks. Reads share one while it keeps up, and writes another: threads that take turns at the
interpreter's lock cost more than they bring. Once a call holds its lane up, later ones go elsewhere.

Knows no request; used by `http.in_thread`, made by `app`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sarto.storage.group_writer import GroupWriter

T = TypeVar("T")
LONG_SECONDS = 0.005
"""A call that takes longer holds the others up."""


class _Lane:
    """One thread, and since when its call has been running."""

    def __init__(self, name: str) -> None:
        self.pool = ThreadPoolExecutor(1, name)
        self._began = math.inf

    @property
    def is_held_up(self) -> bool:
        return time.monotonic() - self._began > LONG_SECONDS

    def submit(self, call: Callable[[], T]) -> Future[T]:
        return self.pool.submit(self._timed, call)

    def _timed(self, call: Callable[[], T]) -> T:
        self._began = time.monotonic()
        try:
            return call()
        finally:
            self._began = math.inf


class HandlerThreads:
    def __init__(self, others: int, writer: GroupWriter | None) -> None:
        self._writer = writer
        self._reads, self._writes = _Lane("reader"), _Lane("writer")
        self._others = ThreadPoolExecutor(others, "handler")

    def read(self, call: Callable[[], T]) -> Future[T]:
        return self._others.submit(call) if self._reads.is_held_up else self._reads.submit(call)

    def write(self, call: Callable[[], T]) -> Future[T]:
        if self._writer is None or self._writes.is_held_up:
            return self._others.submit(call)
        answer: Future[T] = Future()
        self._writer.expect()
        self._writes.submit(partial(self._writer.run, call, answer))
        return answer

    def close(self) -> None:
        for pool in (self._reads.pool, self._writes.pool, self._others):
            pool.shutdown(cancel_futures=True)
