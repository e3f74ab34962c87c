"""The services that handlers call, and the threads in which they call them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from sarto.api.http.callers import AllowedHosts
from sarto.api.http.handler_threads import HandlerThreads, OutsideThreads
from sarto.api.http.limits import ConcurrencyLimit, LongPolls, RateLimit
from sarto.catalog import Catalog
from sarto.control.access.authentication import Authenticator
from sarto.control.access.principal import Principal
from sarto.control.audit.audit_log import AuditLog
from sarto.control.context import Control
from sarto.serving.evaluator import Evaluator
from sarto.serving.generator import Generator
from sarto.serving.rewards import CodeService
from sarto.storage.buckets.store import Buckets
from sarto.storage.database.database import Database
from sarto.storage.encryption.key_service import KeyService

T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """The services of handlers; created once by `app.build`."""

    database: Database
    buckets: Buckets
    catalog: Catalog
    authenticator: Authenticator
    generator: Generator
    control: Control
    threads: HandlerThreads
    outside: OutsideThreads
    """Threads for calls of judges elsewhere."""
    max_body_bytes: int
    bodies: ConcurrencyLimit
    """Limit of bytes of long bodies in memory."""
    long_polls: LongPolls
    """Limit of waits and event streams."""
    rate: RateLimit
    hosts: AllowedHosts
    openapi: Callable[[], bytes]
    """The API description as JSON, generated at the first call."""
    keys: KeyService
    audit_log: AuditLog
    evaluator: Evaluator[Any]
    reward_code: CodeService
    metadata_account: str
    """E-mail of the account for which the metadata-server paths issue tokens; empty: the paths do not exist."""
    max_key_days: float
    """Longest life of a new service account key; 0 has no limit."""


def services(request: Request) -> Services:
    return request.scope["sarto.services"]  # type: ignore[no-any-return]


def principal(request: Request) -> Principal:
    """The caller; a public route has none."""
    return request.scope["sarto.principal"]  # type: ignore[no-any-return]


async def in_thread(request: Request, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run a blocking call (database, files) outside the event loop."""
    call = partial(copy_context().run, function, *args, **kwargs)  # the audit log follows a request into its thread
    threads = services(request).threads
    run = threads.read if request.method in ("GET", "HEAD") else threads.write
    return await asyncio.wrap_future(run(call))


async def in_control(request: Request, function: Callable[..., T], *args: Any) -> T:
    """Call a control function for the caller of this request: `function(control, principal, *args)`."""
    return await in_thread(request, function, services(request).control, principal(request), *args)
