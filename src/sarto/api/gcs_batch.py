"""Many storage calls in one request: multipart/mixed in, multipart/mixed out, each call by the route it names.

Calls about metadata only, as the original has it; each is permitted or refused by itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from email.message import Message
from email.parser import BytesParser, HeaderParser
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.gcs_door import json_failure
from sarto.api.http import Reply, read_body
from sarto.api.routing import Handler, Route, Router
from sarto.errors import InvalidArgument, SartoError

MAX_CALLS = 1000
_STRIPPED = (b"content-length", b"content-type", b"accept-encoding", b"transfer-encoding")


def batch_over(routes: Iterable[Route]) -> Handler:
    """The handler of `POST /batch/storage/v1` for calls to `routes`."""
    router = Router(routes)

    async def batch(request: Request) -> ASGIApp:
        try:
            calls = _calls(request.headers.get("content-type", ""), await read_body(request))
        except SartoError as error:
            return json_failure(error)
        mark = f"batch_{secrets.token_hex(12)}"
        pieces = []
        for call in calls:
            head = f"--{mark}\r\nContent-Type: application/http\r\nContent-ID: <response-{_id(call)}>\r\n\r\n"
            pieces += [head.encode(), await _answer(router, request, call), b"\r\n"]
        body = b"".join([*pieces, f"--{mark}--\r\n".encode()])
        return Reply(body, content_type=f"multipart/mixed; boundary={mark}".encode())

    return batch


def _calls(content_type: str, body: bytes) -> list[Message]:
    whole = BytesParser().parsebytes(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body)
    parts = whole.get_payload() if whole.is_multipart() else []
    if not isinstance(parts, list) or not 1 <= len(parts) <= MAX_CALLS:
        raise InvalidArgument(f"a batch is multipart/mixed with 1 to {MAX_CALLS} parts of type application/http")
    return [part for part in parts if isinstance(part, Message)]


def _id(call: Message) -> str:
    """The sender's Content-ID, as far as it can be a header of ours."""
    return "".join(c for c in str(call.get("Content-ID", "")) if c.isascii() and (c.isalnum() or c in "+-_.@"))


async def _answer(router: Router, request: Request, call: Message) -> bytes:
    """One call's answer as HTTP text."""
    events: list[dict[str, Any]] = []

    async def send(event: Any) -> None:
        events.append(event)

    try:
        scope, body = _scope(request, call)
        route, scope["path_params"] = router.find(scope["method"], scope["raw_path"])
        answer = await route.handler(Request(scope, _receiver(body)))
    except SartoError as error:
        answer, scope = json_failure(error), dict(request.scope)
    await answer(scope, request.receive, send)
    start, content = events[0], b"".join(event.get("body", b"") for event in events[1:])
    status = HTTPStatus(start["status"])
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name.title() + b": " + value for name, value in start["headers"]]
    return b"\r\n".join([*lines, b"", content])


def _scope(request: Request, call: Message) -> tuple[dict[str, Any], bytes]:
    """The request that a part holds, as the outer caller's."""
    payload = call.get_payload(decode=True)
    text = payload if isinstance(payload, bytes) else b""
    head, _, body = text.replace(b"\r\n", b"\n").partition(b"\n\n")
    line, _, header_lines = head.partition(b"\n")
    words = line.decode("latin-1").split()
    if len(words) not in (2, 3):
        raise InvalidArgument("each part of a batch begins with a request line: METHOD PATH HTTP/1.1")
    url = urlsplit(words[1])
    own = HeaderParser().parsestr(header_lines.decode("latin-1"))
    headers = [(name.lower().encode("latin-1"), str(value).encode("latin-1")) for name, value in own.items()]
    outer = [(name, value) for name, value in request.scope["headers"] if name in (b"host", b"authorization")]
    scope = {
        **request.scope,
        "method": words[0],
        "path": url.path,
        "raw_path": url.path.encode("latin-1"),
        "query_string": url.query.encode("latin-1"),
        "headers": outer + [row for row in headers if row[0] not in (*_STRIPPED, b"host", b"authorization")],
        "sarto.query": dict(parse_qsl(url.query, keep_blank_values=True)),
    }
    return scope, body


def _receiver(body: bytes) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
