"""A background loop: a function that is called in threads of its own, now and then and soon after a wake."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)
SOON_SECONDS = 0.02
"""From a wake to the call, so that a request whose commit wakes several loops sends its answer before they compute."""
LONGEST_SECONDS = 3600.0


class Loop:
    """`start` and `stop` once each; the other methods at any time, from any thread.

    `act` gives the seconds until it wants to be called again, at most `every`, which None stands for. After `wake` it
    is called soon, but `least` seconds after the call before. What it raises is logged, and it is called again after
    `least` seconds, or `every` if that is 0. Each call is made on one of the threads that have none to do."""

    def __init__(
        self,
        name: str,
        act: Callable[[], float | None],
        every: float,
        *,
        least: float = 0.0,
        first: float = 0.0,
        threads: int = 1,
    ) -> None:
        """`first`: seconds from `start` to the first call."""
        self._name, self._act, self._every, self._least = name, act, every, least
        self._first, self._last = first, 0.0
        self._changed = threading.Condition()
        self._due = 0.0
        """When the next call is to be made, by the monotonic clock."""
        self._is_woken = False
        self.stopping = threading.Event()
        """For an `act` that takes long."""
        names = [name] if threads == 1 else [f"{name}-{number}" for number in range(threads)]
        self._threads = [threading.Thread(target=self._live, name=one, daemon=True) for one in names]

    def start(self) -> None:
        self._due = time.monotonic() + self._first
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """No call begins after this. Waits for those that run, at most `seconds`; None: until they end."""
        self.stopping.set()
        with self._changed:
            self._changed.notify_all()
        until = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def wake(self) -> None:
        """There may be something to do. Costs nearly nothing where that is known."""
        if self._is_woken:  # the call that is to come begins later than this
            return
        with self._changed:
            self._is_woken = True
            self._due = min(self._due, max(time.monotonic() + SOON_SECONDS, self._last + self._least))
            self._changed.notify()

    def _live(self) -> None:
        while self._has_turn():
            try:
                pause = self._act()
            except Exception:
                logger.exception("loop failed", extra={"loop": self._name})
                pause = self._least or None
            if pause is not None:
                with self._changed:
                    self._due = min(self._due, time.monotonic() + pause)

    def _has_turn(self) -> bool:
        """Wait until this thread is to make the next call; False when the loop ends."""
        with self._changed:
            while not self.stopping.is_set():
                now = time.monotonic()
                if self._due <= now:
                    self._last, self._due, self._is_woken = now, now + self._every, False
                    return True
                self._changed.wait(min(self._due - now, LONGEST_SECONDS))
        return False
