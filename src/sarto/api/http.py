"""HTTP in, HTTP out: body → message, paging, errors → JSON, request ids, gzip. The one place that knows HTTP statuses.

Handlers take a Starlette request and give an ASGI answer (`Reply`, `streams.Stream`, or one of Starlette's). `Doors` is
the application: it finds the route, asks who calls, runs the handler and turns whatever goes wrong into an answer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from sqlalchemy.exc import OperationalError
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from sarto.api.evaluator import Evaluator
from sarto.api.limits import Rate, check_headers
from sarto.api.routing import PUBLIC, Route, Router
from sarto.api.threads import HandlerThreads
from sarto.catalog import Catalog
from sarto.control.audit import CURRENT, Call
from sarto.control.audit_log import AuditLog
from sarto.control.auth import Authenticator, Principal
from sarto.control.context import Control
from sarto.errors import (
    Cancelled,
    FieldViolation,
    Internal,
    InvalidArgument,
    MethodNotAllowed,
    PayloadTooLarge,
    SartoError,
    Unauthenticated,
    Unavailable,
)
from sarto.names import LocationName, ResourceName, check_location, check_project, parse_resource
from sarto.schema.wire import Message, to_snake
from sarto.serving.generator import Generator
from sarto.storage.buckets import Buckets
from sarto.storage.database import Database
from sarto.storage.keys import KeyService

logger = logging.getLogger(__name__)

JSON = b"application/json; charset=UTF-8"
GZIP_MIN_BYTES = 32
NO_CONTENT = (204, 304)
RPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 412: 9, 429: 8, 500: 13, 503: 14}
"""Of answers that handlers made of errors themselves."""
BOM = b"\xef\xbb\xbf"
CHARSETS = frozenset(("utf-8", "utf8", "us-ascii", "iso-8859-1", "latin1", "windows-1252", "utf-16"))
METHOD_OVERRIDE = b"x-http-method-override"
STANDARD_PARAMETERS = frozenset(
    ["alt", "fields", "key", "pretty_print", "quota_user", "user_ip", "callback", "upload_protocol", "upload_type"]
)
"""Google's parameters of every method; we answer plain JSON whatever they say. So do those that begin with `$`."""
T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Services:
    """What handlers work with; made once by `app.build`."""

    database: Database
    buckets: Buckets
    catalog: Catalog
    authenticator: Authenticator
    generator: Generator
    control: Control
    threads: HandlerThreads
    max_body_bytes: int
    rate: Rate
    keys: KeyService
    audit_log: AuditLog
    evaluator: Evaluator
    metadata_account: str
    """E-mail of the account that the metadata-server paths speak for; empty: they do not exist."""


def services(request: Request) -> Services:
    return request.scope["sarto.services"]  # type: ignore[no-any-return]


def principal(request: Request) -> Principal:
    """Who calls; on a public route there is none."""
    return request.scope["sarto.principal"]  # type: ignore[no-any-return]


async def in_thread(request: Request, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run what blocks (the database, files) beside the event loop."""
    call = partial(copy_context().run, function, *args, **kwargs)  # the audit log follows a request into its thread
    threads = services(request).threads
    run = threads.read if request.method in ("GET", "HEAD") else threads.write
    return await asyncio.wrap_future(run(call))


async def in_control(request: Request, function: Callable[..., T], *args: Any) -> T:
    """Call a control function for the caller of this request: `function(control, principal, *args)`."""
    return await in_thread(request, function, services(request).control, principal(request), *args)


class Reply:
    """A whole answer. Compressed when the client accepts gzip."""

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
            body = gzip(body)
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def reply(value: Any) -> Reply:
    """A message, or a JSON value, as an answer."""
    return Reply(orjson.dumps(value.to_json() if isinstance(value, Message) else value))


def listing(key: str, found: tuple[Sequence[Any], str]) -> Reply:
    """A page of resources under Google's keys; an empty page is `{}`, and the last one has no token."""
    rows, next_page_token = found
    body: dict[str, Any] = {}
    if rows:
        body[key] = rows
    if next_page_token:
        body["nextPageToken"] = next_page_token
    return reply(body)


def failure(error: SartoError) -> Reply:
    """Google's error body; `code` is the HTTP status, as their REST answers have it."""
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


async def read_body(request: Request, limit: int | None = None) -> bytes:
    """The whole body. Raises PayloadTooLarge, naming the limit, before more than that is held."""
    limit = services(request).max_body_bytes if limit is None else limit
    stated = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    size = int(stated) if stated.isdigit() else 0
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
    if size > limit:
        raise PayloadTooLarge(f"The request body is too large: the limit is {limit} bytes.")
    return b"".join(chunks)


async def read_json(request: Request) -> Any:
    """The body as a JSON value; no body is an empty object. Raises InvalidArgument with line and column."""
    body = _as_utf8(await read_body(request), request.headers.get("content-type", ""))
    if not body.strip():
        return {}
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise InvalidArgument(f"Invalid JSON payload received: {error.msg}, at {at}.") from None


def _as_utf8(body: bytes, content_type: str) -> bytes:
    """A body in the charset that its client states, and without the mark that some editors write in front of a file."""
    charset = next((part.partition("=")[2] for part in content_type.lower().split(";") if "charset=" in part), "utf-8")
    charset = charset.strip(" \"'")
    if charset not in CHARSETS:
        raise InvalidArgument(f'The charset "{charset}" is not known here; send JSON as UTF-8.')
    try:
        return body.removeprefix(BOM) if charset in ("utf-8", "utf8") else body.decode(charset).encode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"The body is not {charset}, as its Content-Type says: {error.reason}.") from None


async def read_message(request: Request, kind: type[M], root: str = "") -> M:
    """The body as a message. Raises InvalidArgument listing every violation, paths beginning with `root`."""
    return kind.read(await read_json(request), root)


def query(request: Request) -> Mapping[str, str]:
    """Query parameters by snake_case name, without Google's standard ones."""
    found: Mapping[str, str] = request.scope["sarto.query"]
    return found


def page(request: Request) -> tuple[int, str]:
    """`pageSize` (0 when not given) and `pageToken`. Raises InvalidArgument for another order than the one we have."""
    values = query(request)
    if values.get("order_by", "").replace("createTime", "create_time").strip() not in ("", "create_time desc"):
        raise InvalidArgument.field("order_by", 'Lists are newest first: leave it out, or write "create_time desc".')
    text = values.get("page_size") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidArgument.field("page_size", f'"{text}" is not a number from 0 to 999999999')
    return int(text), values.get("page_token", "")


def flag(request: Request, name: str) -> bool:
    """A boolean query parameter."""
    text = query(request).get(name, "false").lower()
    if text not in ("true", "false", ""):
        raise InvalidArgument.field(name, f'"{text}" is neither true nor false')
    return text == "true"


def resource_name(request: Request) -> str:
    """The resource the path names, without version and verb: `projects/p/locations/l/tuningJobs/7`."""
    route: Route = request.scope["sarto.route"]
    return route.resource.format_map(request.path_params)


def named(request: Request, collection: str, *, versioned: bool = False) -> ResourceName:
    """The resource the path names, parsed. Raises InvalidArgument for an id that is none."""
    return parse_resource(resource_name(request), collection, versioned=versioned)


def parent(request: Request, *, wildcard: bool = False) -> LocationName:
    """The location a collection's path lies in; lists may say `-` for all of them."""
    values = request.path_params
    return LocationName(check_project(values["project"]), check_location(values["location"], wildcard=wildcard))


async def until_gone(request: Request, work: Any) -> Any:
    """The result of `work`, which is cancelled when the client hangs up. Raises Cancelled then."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("The client closed the connection.")
        return task.result()
    finally:
        for part in (task, watcher):
            part.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Doors:
    """The ASGI application over a list of routes. `services` is None until the service has started."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._router = Router(routes)
        self.services: Services | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(8)
        started = False

        async def send_with_id(event: Event) -> None:
            nonlocal started
            if event["type"] == "http.response.start":
                started = True
                event["headers"] = [*event["headers"], (b"x-request-id", request_id.encode())]
            await send(event)

        try:
            answer = await self._answer(scope, receive, request_id)
            await answer(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.info("client disconnected", extra={"request": request_id})
        except Exception as error:
            shown: SartoError
            if isinstance(error, SartoError):
                shown = error
            else:
                logger.exception("request failed", extra={"request": request_id, "path": scope["path"]})
                away = Unavailable("The database does not answer now; try again in a moment.")
                fault = Internal(f"Internal error; the log has it under id {request_id}.")
                shown = away if isinstance(error, OperationalError) else fault
            if started:
                raise
            await failure(shown)(scope, receive, send_with_id)

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> ASGIApp:
        check_headers(scope["headers"])
        raw_path = scope.get("raw_path") or scope["path"].encode()
        if scope["method"] == "POST":
            asked = (value for name, value in scope["headers"] if name == METHOD_OVERRIDE)
            scope["method"] = next(asked, b"POST").decode("latin-1").upper()
        try:
            route, values = self._router.find(scope["method"], raw_path)
        except MethodNotAllowed as error:
            if scope["method"] != "OPTIONS":
                raise
            return Reply(status=204, headers=[(b"allow", ", ".join([*error.allowed, "OPTIONS"]).encode())])
        assert self.services is not None, "requests are taken after start only"
        scope["path_params"] = values
        scope["sarto.route"] = route
        scope["sarto.services"] = self.services
        scope["sarto.request_id"] = request_id
        scope["sarto.query"] = _query(scope["query_string"], route)
        request = Request(scope, receive)
        if route.permission != PUBLIC:
            scope["sarto.principal"] = await self._who(request)
            self.services.rate.take(scope["sarto.principal"].member)
            return await _recorded(request, route)
        return await route.handler(request)

    async def _who(self, request: Request) -> Principal:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        bearer = bearer.strip()
        if scheme.lower() != "bearer" or not bearer:
            raise Unauthenticated(
                "Request is missing required authentication credential. Expected an OAuth 2 access token in the header"
                " Authorization: Bearer TOKEN; `sarto auth print-access-token` prints one."
            )
        authenticator = services(request).authenticator
        known = authenticator.remembered(bearer)
        return known if known is not None else await in_thread(request, authenticator.authenticate, bearer)


async def _recorded(request: Request, route: Route) -> ASGIApp:
    """The answer, and in the audit log what was decided for it."""
    scope, log = request.scope, services(request).audit_log
    version = "v1beta1" if scope["path"].startswith("/v1beta1/") else "v1"
    call = Call(scope["sarto.request_id"], (scope.get("client") or ("",))[0], version)
    mine = CURRENT.set(call)
    try:
        answer = await route.handler(request)
    except SartoError as error:
        log.finish(call, error.code, error.message)
        raise
    except Exception:
        log.finish(call, Internal.code, "internal error")
        raise
    finally:
        CURRENT.reset(mine)
    status = answer.status if isinstance(answer, Reply) else 200
    log.finish(call, RPC_CODES.get(status, 2) if status >= 400 else 0)
    return answer


def _query(raw: bytes, route: Route) -> dict[str, str]:
    """Raises InvalidArgument naming every parameter that the method does not have."""
    if not raw:
        return {}
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)
    if route.query is None:
        return dict(pairs)
    values = {to_snake(name): value for name, value in pairs if not name.startswith("$")}
    values = {name: value for name, value in values.items() if name not in STANDARD_PARAMETERS or name in route.query}
    unknown = [name for name in values if name not in route.query]
    if unknown:
        raise InvalidArgument.of(
            FieldViolation(name, f'Unknown name "{name}": Cannot bind query parameter.') for name in unknown
        )
    return values
