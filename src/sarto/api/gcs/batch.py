"""Several storage calls in one request: multipart/mixed in, multipart/mixed out, each call handled by its own route.

Only calls about metadata are accepted, as at Google. Each call is authorised separately.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.gcs.bucket_call import json_failure
from sarto.api.gcs.multipart_body import boundary
from sarto.api.http.application import recorded
from sarto.api.http.limits import MOST_HEADERS, check_head
from sarto.api.http.requests import beside, read_body
from sarto.api.http.responses import Reply
from sarto.api.http.routing import Handler, Route, Router
from sarto.errors import InvalidArgument, ResourceExhausted, SartoError

MAX_CALLS = 1000
MAX_BODY_BYTES = 1 << 20
MAX_ANSWER_BYTES = 16 << 20
MOST_ID = 200
_STRIPPED = (b"content-length", b"content-type", b"accept-encoding", b"transfer-encoding")


def batch_over(routes: Iterable[Route]) -> Handler:
    """The handler of `POST /batch/storage/v1` for calls to `routes`."""
    router = Router(routes)

    async def batch(request: Request) -> ASGIApp:
        try:
            body = await read_body(request)
            calls = await beside(request, partial(_calls, request.headers.get("content-type", ""), body))
        except SartoError as error:
            return json_failure(error)
        mark = f"batch_{secrets.token_hex(12)}"
        pieces, size = [], 0
        for call in calls:
            head = f"--{mark}\r\nContent-Type: application/http\r\nContent-ID: <response-{_id(call)}>\r\n\r\n"
            answer = await _answer(router, request, call, is_full=size > MAX_ANSWER_BYTES)
            size += len(answer)
            pieces += [head.encode(), answer, b"\r\n"]
        body = b"".join([*pieces, f"--{mark}--\r\n".encode()])
        return Reply(body, content_type=f"multipart/mixed; boundary={mark}".encode())

    return batch


@dataclass(frozen=True)
class _BatchPart:
    """A part of a batch: its Content-ID, and a request as HTTP text."""

    id: str
    text: bytes


def _calls(content_type: str, body: bytes) -> list[_BatchPart]:
    """The calls of a body, parsed in one pass. Raises InvalidArgument."""
    _, *pieces = (b"\n" + body.replace(b"\r\n", b"\n")).split(
        b"\n--" + boundary(content_type).encode("latin-1"), MAX_CALLS + 2
    )
    last = next((i for i, piece in enumerate(pieces) if piece.startswith(b"--")), len(pieces))
    if not 1 <= last <= MAX_CALLS:
        raise InvalidArgument(f"A batch is multipart/mixed with 1 to {MAX_CALLS} parts of type application/http.")
    return [_call(piece.lstrip(b" \t")) for piece in pieces[:last]]


def _call(part: bytes) -> _BatchPart:
    head, _, text = part.partition(b"\n\n")
    fields = _fields(head)
    kind = fields.get(b"content-type", b"application/http").partition(b";")[0].strip().lower()
    coding = fields.get(b"content-transfer-encoding", b"binary").lower()
    if kind != b"application/http" or coding not in (b"binary", b"7bit", b"8bit"):
        raise InvalidArgument("Each part of a batch has the Content-Type application/http, and is not encoded.")
    return _BatchPart(fields.get(b"content-id", b"").decode("latin-1"), text)


def _fields(head: bytes) -> dict[bytes, bytes]:
    """Header fields by their lower-case names. Raises HeadersTooLarge."""
    rows = [line.partition(b":") for line in head.split(b"\n", MOST_HEADERS + 1)]
    pairs = [(name.strip().lower(), value.strip()) for name, colon, value in rows if colon]
    check_head(pairs)
    return dict(pairs)


def _id(call: _BatchPart) -> str:
    """The sender's Content-ID, restricted to characters that a header may have."""
    return "".join(c for c in call.id[:MOST_ID] if c.isascii() and (c.isalnum() or c in "+-_.@"))


async def _answer(router: Router, request: Request, call: _BatchPart, *, is_full: bool) -> bytes:
    """One call's response as HTTP text."""
    events: list[dict[str, Any]] = []

    async def send(event: Any) -> None:
        events.append(event)

    try:
        if is_full:
            raise ResourceExhausted(
                f"The answers of this batch have {MAX_ANSWER_BYTES} bytes; send the rest in another."
            )
        scope, body = _scope(request, call)
        if scope["sarto.query"].get("alt") == "media":
            raise InvalidArgument("A batch has calls about metadata only; get the bytes of an object by itself.")
        route, scope["path_params"] = router.find(scope["method"], scope["raw_path"])
        scope["sarto.route"] = route
        answer = await recorded(Request(scope, _receiver(body)), route)
    except SartoError as error:
        answer, scope = json_failure(error), dict(request.scope)
    await answer(scope, request.receive, send)
    start, content = events[0], b"".join(event.get("body", b"") for event in events[1:])
    status = HTTPStatus(start["status"])
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name.title() + b": " + value for name, value in start["headers"]]
    return b"\r\n".join([*lines, b"", content])


def _scope(request: Request, call: _BatchPart) -> tuple[dict[str, Any], bytes]:
    """The ASGI scope of a part's request, with the outer caller."""
    head, _, body = call.text.partition(b"\n\n")
    line, _, header_lines = head.partition(b"\n")
    words = line.decode("latin-1").split()
    if len(words) not in (2, 3):
        raise InvalidArgument("Each part of a batch begins with a request line: METHOD PATH HTTP/1.1.")
    url = urlsplit(words[1])
    outer = [(name, value) for name, value in request.scope["headers"] if name in (b"host", b"authorization")]
    scope = {
        **request.scope,
        "method": words[0],
        "path": url.path,
        "raw_path": url.path.encode("latin-1"),
        "query_string": url.query.encode("latin-1"),
        "headers": outer
        + [row for row in _fields(header_lines).items() if row[0] not in (*_STRIPPED, b"host", b"authorization")],
        "sarto.query": dict(parse_qsl(url.query, keep_blank_values=True)),
    }
    return scope, body


def _receiver(body: bytes) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
