"""Threads for what blocks. Reads share one while it keeps up, and writes another: threads that take turns at the
interpreter's lock cost more than they bring. Once a call holds its lane up, those behind it go elsewhere.

Knows no request; used by `http.in_thread`, made by `app`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from sarto.storage.group_writer import GroupWriter

T = TypeVar("T")
LONG_SECONDS = 0.005
"""A call that takes longer holds the others up."""


class _Lane:
    """One thread for short calls, and since when its call has been running. Used from the event loop."""

    def __init__(self, name: str, others: ThreadPoolExecutor) -> None:
        self.pool = ThreadPoolExecutor(1, name)
        self._others = others
        self._queue: deque[Callable[[], None]] = deque()
        self._began = math.inf
        self._is_watched = False

    def put(self, work: Callable[[], None]) -> None:
        self._queue.append(work)
        if self._is_held_up:
            self._others.submit(self._next)
            return
        self.pool.submit(self._timed_next)
        if not self._is_watched:
            self._is_watched = True
            asyncio.get_running_loop().call_later(LONG_SECONDS, self._relieve)

    @property
    def _is_held_up(self) -> bool:
        return time.monotonic() - self._began > LONG_SECONDS

    def _relieve(self) -> None:
        """Others take over what lies behind a long call."""
        if self._is_held_up:
            for _ in range(len(self._queue)):
                self._others.submit(self._next)
        self._is_watched = bool(self._queue)
        if self._is_watched:
            asyncio.get_running_loop().call_later(LONG_SECONDS, self._relieve)

    def _timed_next(self) -> None:
        self._began = time.monotonic()
        try:
            self._next()
        finally:
            self._began = math.inf

    def _next(self) -> None:
        """The oldest of what waits, unless another thread was there first."""
        try:
            work = self._queue.popleft()
        except IndexError:
            return
        work()


class HandlerThreads:
    def __init__(self, others: int, writer: GroupWriter | None) -> None:
        self._writer = writer
        self._others = ThreadPoolExecutor(others, "handler")
        self._reads, self._writes = _Lane("reader", self._others), _Lane("writer", self._others)

    def read(self, call: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()
        self._reads.put(partial(_settle, call, answer))
        return answer

    def write(self, call: Callable[[], T]) -> Future[T]:
        if self._writer is None:  # no turns to take
            return self._others.submit(call)
        answer: Future[T] = Future()
        self._writer.expect()
        self._writes.put(partial(self._writer.run, call, answer))
        return answer

    def close(self) -> None:
        for pool in (self._reads.pool, self._writes.pool, self._others):
            pool.shutdown(cancel_futures=True)


def _settle(call: Callable[[], Any], answer: Future[Any]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(call())
    except BaseException as error:
        answer.set_exception(error)
