"""A limit on audit entries for refusals: a number a minute per principal and per address. Further refusals are counted.

Without it a refused caller would choose the size of the log. The counters themselves are bounded. Thread-safe.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 60.0
EACH_PRINCIPAL = 60
EACH_ADDRESS = 60
"""Most entries a minute for one address without sign-in."""
EACH_ADDRESS_SIGNED_IN = 600
"""Most entries a minute for all principals at one address, which may be a proxy's."""
ALL = 6000
MOST_REMEMBERED = 1000
"""Most distinct counters; further refusals are counted together."""


@dataclass(frozen=True)
class RefusalCount:
    """A number of further refusals of this member from this address in this project."""

    member: str
    address: str
    project: str
    count: int


class RefusalCounter:
    """Counts refusals. Call `take` before each entry, and `counted` periodically."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._written: Counter[tuple[str, str]] = Counter()
        self._more: Counter[tuple[str, str, str]] = Counter()

    def take(self, member: str, address: str, project: str) -> bool:
        """Whether a refusal may have an entry; if not, it is counted."""
        network = _network(address)
        limits = {
            ("", ""): ALL,
            ("principal", member): EACH_PRINCIPAL,
            ("address of some", network): EACH_ADDRESS_SIGNED_IN,
        } if member else {("", ""): ALL, ("address", network): EACH_ADDRESS}  # fmt: skip
        with self._lock:
            if all(self._written[key] < most for key, most in limits.items()):
                self._written.update(limits.keys())
                return True
            key = (member, address, project)
            self._more[key if key in self._more or len(self._more) < MOST_REMEMBERED else ("", "", "")] += 1
            return False

    def counted(self, *, everything: bool = False) -> list[RefusalCount]:
        """The counts of a finished minute; with `everything`, of the present one too."""
        with self._lock:
            if not everything and self._clock() - self._since < SECONDS:
                return []
            counts = [RefusalCount(*key, count) for key, count in self._more.items()]
            self._since = self._clock()
            self._written.clear()
            self._more.clear()
        return counts


def _network(address: str) -> str:
    """The /64 network of an IPv6 address, which one user has as a whole; other addresses unchanged."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network(f"{parsed}/64", strict=False)) if parsed.version == 6 else address
