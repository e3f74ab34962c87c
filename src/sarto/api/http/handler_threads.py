"""Threads for blocking calls. Under the GIL one thread for short reads, and one for short writes, is faster than many.

When a call takes over 5 ms, the calls queued behind it move to other threads.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from sarto.serving.preparation.pool import ProjectSlots
from sarto.storage.database.group_commit import GroupWriter
from sarto.system.daemon_threads import DaemonThreads, settle

T = TypeVar("T")
COMPUTING_THREADS, MOST_COMPUTATIONS = 2, 256
LONG_SECONDS = 0.005
"""Duration from which a call delays the queue behind it."""


class _Lane:
    """One thread for short calls, and the start time of its present call. Used from the event loop."""

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
        """Move the calls behind a long call to other threads."""
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
        """The oldest waiting call, unless another thread took it."""
        try:
            work = self._queue.popleft()
        except IndexError:
            return
        work()


class HandlerThreads:
    def __init__(self, others: int, writer: GroupWriter | None) -> None:
        self._writer = writer
        self._others = ThreadPoolExecutor(others, "handler")
        self._computing = ThreadPoolExecutor(COMPUTING_THREADS, "computing")
        self._turns = ProjectSlots(COMPUTING_THREADS, MOST_COMPUTATIONS)
        self._reads, self._writes = _Lane("reader", self._others), _Lane("writer", self._others)

    def read(self, call: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()
        self._reads.put(partial(settle, answer, call))
        return answer

    def write(self, call: Callable[[], T]) -> Future[T]:
        if self._writer is None:  # no turns to take
            return self._others.submit(call)
        answer: Future[T] = Future()
        self._writer.expect()
        self._writes.put(partial(self._writer.run, call, answer))
        return answer

    async def compute(self, project: str, call: Callable[[], T]) -> T:
        """Run a computation that uses no database and no files. A project has at most half of the threads, including
        those of disconnected callers, and projects take turns. Raises ResourceExhausted when too many calls of a
        project wait."""
        loop = asyncio.get_running_loop()
        await self._turns.enter(project)
        running = self._computing.submit(call)
        running.add_done_callback(lambda _: _tell(loop, partial(self._turns.leave, project)))
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        for pool in (self._computing, self._reads.pool, self._writes.pool, self._others):
            pool.shutdown(cancel_futures=True)


class OutsideThreads:
    """Threads for calls of other services. At most `each` of one project run at once, including those of disconnected
    callers; further ones wait without a thread. They do not delay the end of the process. Used from the event loop."""

    def __init__(self, threads: int, each: int) -> None:
        self._pool = DaemonThreads(threads, "outside")
        self._each = each
        self._rooms: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def call(self, project: str, work: Callable[[], T]) -> T:
        room = self._rooms.get(project)
        if room is None:
            room = self._rooms[project] = asyncio.Semaphore(self._each)
        loop = asyncio.get_running_loop()
        await room.acquire()
        running = self._pool.submit(work)
        running.add_done_callback(lambda _: _tell(loop, room.release))
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop may have ended
        loop.call_soon_threadsafe(what)
