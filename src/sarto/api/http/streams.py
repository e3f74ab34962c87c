"""Streamed responses: server-sent events (`alt=sse`) or one JSON array, the two forms that clients read.

The first piece decides the status. A later error is sent as a last piece in Google's error form. When the client
disconnects, the source is closed, which stops the computation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sarto.api.http.requests import disconnected, until_gone
from sarto.api.http.responses import failure
from sarto.errors import Internal, SartoError
from sarto.schema.wire import Message

logger = logging.getLogger(__name__)


async def stream(request: Request, source: AsyncGenerator[Message]) -> ASGIApp:
    """A response with the messages of `source`, in the form that the client requests. Raises the error of the first
    message."""
    try:
        first = await until_gone(request, anext(source, None))
    except BaseException:
        await source.aclose()
        raise
    as_events = "alt=sse" in request.scope["query_string"].decode("latin-1").split("&")
    return Stream(framed(_whole(first, source), as_events), as_events)


async def _whole(first: Message | None, rest: AsyncGenerator[Message]) -> AsyncGenerator[bytes]:
    """Every message as JSON; an error becomes the last piece."""
    async with aclosing(rest):
        try:
            if first is not None:
                yield orjson.dumps(first.to_json())
                async for message in rest:
                    yield orjson.dumps(message.to_json())
        except SartoError as error:
            yield failure(error).body
        except Exception:
            logger.exception("stream failed")
            yield failure(Internal("Internal error while streaming; the log has it.")).body


class Stream:
    """Sends pieces unchanged; `framed` formats messages. `on_end` is called when the client has received all of them,
    or has disconnected."""

    def __init__(
        self, pieces: AsyncGenerator[bytes], as_events: bool = True, on_end: Callable[[], None] = lambda: None
    ) -> None:
        self._pieces, self._as_events, self._on_end = pieces, as_events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, watching):
                task.cancel()
            await asyncio.gather(sending, watching, return_exceptions=True)
            self._on_end()

    async def _send(self, send: Send) -> None:
        kind = b"text/event-stream" if self._as_events else b"application/json; charset=UTF-8"
        headers = [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._pieces):
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def framed(pieces: AsyncGenerator[bytes], as_events: bool) -> AsyncGenerator[bytes]:
    opening = b"["
    async with aclosing(pieces):
        async for piece in pieces:
            if as_events:
                yield b"data: " + piece + b"\r\n\r\n"
            else:
                yield opening + piece
                opening = b"\n,\r\n"
    if not as_events:
        yield b"[]" if opening == b"[" else b"\n]"
