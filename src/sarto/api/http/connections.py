"""Limits of a connection before its request is known: number of connections, bytes of a head, and time.

Bytes are counted while they arrive, so a head is never buffered without limit. Once a second every connection is
checked; one with a slow head, a slow body or a slow reader is closed. Time in which this service reads nothing from the
client does not count, since the delay is the service's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from sarto.api.http.http1_upgrade import Protocol
from sarto.api.http.limits import MOST_HEADER_BYTES

LOOK_SECONDS = 1.0
LINGER_SECONDS = 2.0
"""Time for which the input of a refused client is read and discarded: closing at once could discard the response."""
LEAST_READ_BYTES = 16 * 1024
"""Bytes of a waiting response that a client must read in `read_seconds`, unless fewer remain."""


@dataclass
class ConnectionLimit:
    """Limits of the number of connections and of their time. Not thread-safe: for one event loop."""

    connections: int
    per_address: int
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    """Time before the least rate of a body applies, and for the rest of a body whose response was sent."""
    body_bytes_per_second: int = 1024
    read_seconds: float = 30.0
    open: set[BoundedProtocol] = field(default_factory=set)
    addresses: Counter[str] = field(default_factory=Counter)
    is_watching: bool = False

    def enter(self, protocol: BoundedProtocol) -> tuple[int, str] | None:
        """Count a connection; returns the refusal if there are too many."""
        address = protocol.address
        self.open.add(protocol)
        self.addresses[address] += 1
        if not self.is_watching:
            self.is_watching = True
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        if self.per_address and self.addresses[address] > self.per_address:
            return 429, f"Too many connections from one address: at most {self.per_address} are allowed."
        if len(self.open) > self.connections:
            return 503, f"Too many connections: at most {self.connections} are allowed."
        return None

    def leave(self, protocol: BoundedProtocol) -> None:
        if protocol in self.open:
            self.open.discard(protocol)
            self.addresses[protocol.address] -= 1
            if not self.addresses[protocol.address]:
                del self.addresses[protocol.address]

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for protocol in list(self.open):
            protocol.look(loop.time())
        self.is_watching = bool(self.open)
        if self.is_watching:
            loop.call_later(LOOK_SECONDS, self._look)


class BoundedProtocol(Protocol):
    """uvicorn's protocol with limits. `_phase` is the awaited part of the request: a head, a body or none."""

    def __init__(self, *args: Any, limit: ConnectionLimit, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit = limit
        self._phase = "head"
        self._since = self._looked = self._sent_since = self.loop.time()
        self._body_bytes = 0
        self._loose_bytes = 0
        """Bytes received since a head was complete or a part of a body was processed."""
        self._unsent = 0
        self._is_refused = False
        self._answered: RequestResponseCycle | None = None

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        refusal = self._limit.enter(self)
        if refusal is not None:
            self._refuse(*refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """Discard pipelined requests after the one that is being answered."""
        self._limit.leave(self)
        self.pipeline.clear()
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._phase == "rest":
            self._enter("head")
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > MOST_HEADER_BYTES:
            self._refuse(431, f"The head of the request is too large: at most {MOST_HEADER_BYTES} bytes are accepted.")

    def on_message_begin(self) -> None:
        if self._phase != "head":
            self._enter("head")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._enter("body")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._enter("rest")
        super().on_message_complete()

    def resume_writing(self) -> None:
        self._sent_since = self.loop.time()
        super().resume_writing()

    def _enter(self, phase: str) -> None:
        self._phase, self._since = phase, self.loop.time()
        self._loose_bytes = self._body_bytes = 0

    def look(self, now: float) -> None:
        """Close the connection if it is too slow."""
        passed, self._looked = now - self._looked, now
        if self._is_refused:
            return
        limit, is_busy = self._limit, self.cycle is not None and not self.cycle.response_complete
        is_waiting_for_us = is_busy if self._phase == "head" else self.flow.read_paused
        self._since += passed if is_waiting_for_us else max(0.0, passed - 2 * LOOK_SECONDS)
        waited, rate_seconds = now - self._since, self._body_bytes / limit.body_bytes_per_second
        if self._phase == "head" and waited > limit.head_seconds:
            self._refuse(408, f"The head of the request was not whole within {limit.head_seconds:g} s.")
        is_slow = self._phase == "body" and waited > limit.body_seconds + (rate_seconds if is_busy else 0.0)
        if is_slow or self._is_unread(now):
            self.transport.abort()

    def _is_unread(self, now: float) -> bool:
        """Whether the client has left a response unread for too long."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent <= self._unsent - LEAST_READ_BYTES:
            self._unsent, self._sent_since = unsent, now
        self._unsent = max(self._unsent, unsent)
        return now - self._sent_since > self._limit.read_seconds

    def _refuse(self, status: int, words: str) -> None:
        """Send a refusal, unless another response is in progress, and read no further requests."""
        self._is_refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = orjson.dumps({"error": {"code": status, "message": words, "status": STATUSES[status]}})
        head = f"HTTP/1.1 {status} {STATUSES[status]}\r\ncontent-type: application/json; charset=UTF-8\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


STATUSES = {
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    431: "INVALID_ARGUMENT",
    503: "UNAVAILABLE",
}
