"""Threads for what blocks. Reads share one thread while it keeps up: threads that take turns at the interpreter's lock
cost more than they bring. Once a read holds it up, later ones go elsewhere; writes, which wait for the disk, always do.

Knows no request; used by `http.in_thread`, made by `app`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
LONG_SECONDS = 0.005
"""A read that takes longer holds the others up."""


class HandlerThreads:
    def __init__(self, others: int) -> None:
        self._first = ThreadPoolExecutor(1, "reader")
        self._others = ThreadPoolExecutor(others, "handler")
        self._began = math.inf

    def read(self, call: Callable[[], T]) -> Future[T]:
        if time.monotonic() - self._began > LONG_SECONDS:
            return self._others.submit(call)
        return self._first.submit(self._timed, call)

    def write(self, call: Callable[[], T]) -> Future[T]:
        return self._others.submit(call)

    def close(self) -> None:
        for pool in (self._first, self._others):
            pool.shutdown(cancel_futures=True)

    def _timed(self, call: Callable[[], T]) -> T:
        self._began = time.monotonic()
        try:
            return call()
        finally:
            self._began = math.inf
