"""Responses: JSON, errors in the form of Google APIs, compression."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from sarto.api.http.requests import beside
from sarto.errors import MethodNotAllowed, PayloadTooLarge, SartoError, Unauthenticated
from sarto.schema.wire import Message

JSON = b"application/json; charset=UTF-8"


GZIP_MIN_BYTES = 32


LONG_REPLY_BYTES = 256 * 1024


NO_CONTENT = (204, 304)


RPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 412: 9, 429: 8, 500: 13, 503: 14}
"""rpc codes of responses that handlers built from errors themselves."""


class Reply:
    """A whole response. Compressed when the client accepts gzip."""

    def __init__(
        self,
        body: bytes = b"",
        status: int = 200,
        content_type: bytes = JSON,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.body, self.status, self.content_type, self.headers = body, status, content_type, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self.body
        if self.status in NO_CONTENT:
            await send({"type": "http.response.start", "status": self.status, "headers": [*self.headers]})
            await send({"type": "http.response.body"})
            return
        headers = [(b"content-type", self.content_type), (b"vary", b"Accept-Encoding"), *self.headers]
        if len(body) >= GZIP_MIN_BYTES and accepts_gzip(scope):
            is_short_one = len(body) <= LONG_REPLY_BYTES or "sarto.services" not in scope
            body = gzip(body) if is_short_one else await beside(Request(scope), partial(gzip, body))
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def reply(value: Any) -> Reply:
    """A message, or a JSON value, as a response."""
    return Reply(orjson.dumps(value.to_json() if isinstance(value, Message) else value))


def listing(key: str, page: tuple[Sequence[Any], str]) -> Reply:
    """A page of resources under Google's keys; an empty page is `{}`, and the last one has no token."""
    rows, next_page_token = page
    body: dict[str, Any] = {}
    if rows:
        body[key] = rows
    if next_page_token:
        body["nextPageToken"] = next_page_token
    return reply(body)


def failure(error: SartoError) -> Reply:
    """Google's error body; `code` is the HTTP status, as in their REST responses."""
    body: dict[str, Any] = {"code": error.http_status, "message": error.message, "status": error.status}
    if error.details:
        body["details"] = error.details
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="sarto", error="invalid_token"'))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, PayloadTooLarge):
        headers.append((b"connection", b"close"))
    return Reply(orjson.dumps({"error": body}), error.http_status, headers=headers)


def accepts_gzip(scope: Scope) -> bool:
    return any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])


def gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()
