"""How much one caller may ask: the size of its headers, and requests per second. Knows no route.

A bucket of tokens for each principal, held in this process: several servers allow as many times the rate.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable

from sarto.errors import RETRY_INFO, HeadersTooLarge, ResourceExhausted

MOST_HEADERS = 100
MOST_HEADER_BYTES = 64 * 1024
MOST_CALLERS = 10_000


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises HeadersTooLarge, naming the limit."""
    count = size = 0
    for name, value in headers:
        count += 1
        size += len(name) + len(value)
    if count > MOST_HEADERS or size > MOST_HEADER_BYTES:
        raise HeadersTooLarge(
            f"The request has {count} headers of {size} bytes: at most {MOST_HEADERS} of {MOST_HEADER_BYTES} are taken."
        )


class Rate:
    """`per_second` requests for each caller, and as many at once; 0 is without limit. Used by one event loop."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Raises ResourceExhausted, which says when to come back."""
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
