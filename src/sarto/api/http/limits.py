"""Limits of one caller: bytes of a request's head, requests per second, and resources held at once.

Each principal has a token bucket. The limit is per process: n servers allow n times the rate.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sarto.errors import RETRY_INFO, HeadersTooLarge, ResourceExhausted

MOST_HEADERS = 100
MOST_HEADER_BYTES = 64 * 1024
MOST_CALLERS = 10_000
LOOKS_PER_SECOND = 100


def check_head(headers: Iterable[tuple[bytes, bytes]], url_bytes: int = 0) -> None:
    """Raises HeadersTooLarge with the limit."""
    count, size = 0, url_bytes
    for name, value in headers:
        count += 1
        size += len(name) + len(value)
    if count > MOST_HEADERS or size > MOST_HEADER_BYTES:
        raise HeadersTooLarge(
            f"The request has a URL and {count} headers of {size} bytes together: at most {MOST_HEADERS} headers and"
            f" {MOST_HEADER_BYTES} bytes are accepted."
        )


class ConcurrencyLimit:
    """Limit of resources held at once: at most `each` for one caller, `most` for all. Not thread-safe: for one event
    loop."""

    def __init__(self, noun: str, each: int, most: int) -> None:
        self._noun, self._each, self._most = noun, each, most
        self._held: Counter[str] = Counter()
        self.total = 0

    def take(self, caller: str, amount: int = 1) -> None:
        """Raises ResourceExhausted with the limit."""
        if self._held[caller] + amount > self._each:
            raise ResourceExhausted(
                f"Too many {self._noun} at once: {self._each} for each caller. Retry a little later."
            )
        if self.total + amount > self._most:
            raise ResourceExhausted(
                f"Too many {self._noun} at once: {self._most} for all callers. Retry a little later."
            )
        self._held[caller] += amount
        self.total += amount

    def give_back(self, caller: str, amount: int = 1) -> None:
        self._held[caller] -= amount
        self.total -= amount
        if not self._held[caller]:
            del self._held[caller]


class LongPolls:
    """Requests that poll for an event. The rate of all polls together has a limit, for any number of requests."""

    def __init__(self, each: int, most: int) -> None:
        self._shares = ConcurrencyLimit("waits and streams of events", each, most)

    @contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """Take a place for a long poll. Raises ResourceExhausted when the caller has too many."""
        self._shares.take(caller)
        try:
            yield
        finally:
            self._shares.give_back(caller)

    def seconds(self, least: float) -> float:
        """Seconds until the next poll."""
        return max(least, self._shares.total / LOOKS_PER_SECOND)


class RateLimit:
    """`per_second` requests for each caller, also as a burst; 0 has no limit. Not thread-safe: for one event loop."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Raises ResourceExhausted with the time to retry."""
        if not self._per_second:
            return
        now, most = time.monotonic(), max(self._per_second, 1.0)
        tokens, then = self._buckets.pop(caller, (most, now))
        tokens = min(most, tokens + (now - then) * self._per_second)
        is_allowed = tokens >= 1.0
        self._buckets[caller] = (tokens - 1.0 if is_allowed else tokens, now)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        if not is_allowed:
            seconds = (1.0 - tokens) / self._per_second
            raise ResourceExhausted(
                f"Quota exceeded: {self._per_second:g} requests per second for each caller. Retry in {seconds:.3f} s.",
                [{"@type": RETRY_INFO, "retryDelay": f"{seconds:.3f}s"}],
            )
