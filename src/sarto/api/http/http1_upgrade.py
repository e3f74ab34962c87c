"""Requests that offer a protocol upgrade get a response in HTTP/1.1, as if they offered none.

Java's own client offers HTTP/2 with the first request of every plain connection, and sends the body after it. The
parser treats the upgrade header as the end of HTTP/1.1 and rejects the body. So the head is parsed again without it.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OFFER = frozenset((b"upgrade", b"http2-settings", b"connection"))


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which declines every offer but one for which it has a library."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_headers_complete(self) -> None:
        if not self.is_declined():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.is_declined():
            super().on_message_complete()

    def is_declined(self) -> bool:
        """Whether the present head offers an unsupported protocol."""
        offers = self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)
        return bool(offers) and not self._should_upgrade()

    def plain_head(self) -> bytes:
        """The present head without its offer."""
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = (b"%s: %s" % (name, value) for name, value in self.headers if name not in OFFER)
        return b"\r\n".join((line, *lines, b"", b""))


class _Parser(httptools.HttpRequestParser):
    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol

    def feed_data(self, data: Any) -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if not self._protocol.is_declined():
                raise
            self.feed_data(self._protocol.plain_head() + data[offer.args[0] :])
