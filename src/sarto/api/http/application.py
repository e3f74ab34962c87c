"""The ASGI application: it finds the route, authenticates the caller, runs the handler, and turns every error into a
response.

Handlers take a Starlette request and return an ASGI response (`Reply`, `streams.Stream`, or one of Starlette's).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable

from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from sarto.api.http.limits import check_head
from sarto.api.http.requests import decode_query
from sarto.api.http.responses import RPC_CODES, Reply, failure
from sarto.api.http.routing import PUBLIC, Route, Router
from sarto.api.http.services import Services, in_thread, services
from sarto.control.access.decisions import BEARER, CURRENT, SERVICE, AuditedCall, field_of
from sarto.control.access.principal import Principal
from sarto.errors import Internal, MethodNotAllowed, SartoError, Unauthenticated, Unavailable

logger = logging.getLogger(__name__)

METHOD_OVERRIDE = b"x-http-method-override"


class Application:
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
        except asyncio.CancelledError:  # the server stops
            if started:
                raise
            await failure(Unavailable("The server is stopping; try again in a moment."))(scope, receive, send_with_id)
        except Exception as error:
            shown: SartoError
            if isinstance(error, SartoError):
                shown = error
            else:
                logger.exception("request failed", extra={"request": request_id, "path": scope["path"]})
                away = Unavailable("The database does not answer now; try again in a moment.")
                fault = Internal(f"Internal error; the log has it under id {request_id}.")
                shown = away if isinstance(error, OperationalError | PoolTimeout) else fault
            if started:
                raise
            route: Route | None = scope.get("sarto.route")
            form = (route.refusal if route is not None else None) or failure
            await form(shown)(scope, receive, send_with_id)
        finally:
            if scope.get("sarto.held"):
                scope["sarto.services"].bodies.give_back(scope["sarto.principal"].member, sum(scope["sarto.held"]))

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> ASGIApp:
        assert self.services is not None, "requests are handled only after start"
        raw_path = scope.get("raw_path") or scope["path"].encode()
        check_head(scope["headers"], len(raw_path) + len(scope["query_string"]))
        self.services.hosts.check(scope)
        if scope["method"] == "POST":
            overrides = (value for name, value in scope["headers"] if name == METHOD_OVERRIDE)
            scope["method"] = next(overrides, b"POST").decode("latin-1").upper()
        try:
            route, values = self._router.find(scope["method"], raw_path)
        except MethodNotAllowed as error:
            if scope["method"] != "OPTIONS":
                raise
            return Reply(status=204, headers=[(b"allow", ", ".join([*error.allowed, "OPTIONS"]).encode())])
        scope["path_params"] = values
        scope["sarto.route"] = route
        scope["sarto.services"] = self.services
        scope["sarto.request_id"] = request_id
        scope["sarto.held"] = []
        scope["sarto.query"] = decode_query(scope["query_string"], route)
        request = Request(scope, receive)
        if route.permission != PUBLIC:
            try:
                scope["sarto.principal"] = await self._who(request)
            except Unauthenticated:
                self.services.audit_log.not_signed_in(call_of(request), BEARER)
                raise
            self.services.rate.take(scope["sarto.principal"].member)
            return await recorded(request, route)
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


def call_of(request: Request) -> AuditedCall:
    """The request in the form of the audit log."""
    scope = request.scope
    version = "v1beta1" if scope["path"].startswith("/v1beta1/") else "v1"
    address = (scope.get("client") or ("",))[0]
    return AuditedCall(scope["sarto.request_id"], address, version, scope.get("sarto.principal", SERVICE))


async def recorded(request: Request, route: Route) -> ASGIApp:
    """The response; its decision is recorded in the audit log. A refusal is recorded without its message, which may
    quote a body."""
    log, call = services(request).audit_log, call_of(request)
    mine = CURRENT.set(call)
    try:
        answer = await route.handler(request)
    except SartoError as error:
        log.finish(call, error.code, field_of(error))
        raise
    except Exception:
        log.finish(call, Internal.code)
        raise
    finally:
        CURRENT.reset(mine)
    status = answer.status if isinstance(answer, Reply) else 200
    log.finish(call, RPC_CODES.get(status, 2) if status >= 400 else 0)
    return answer
