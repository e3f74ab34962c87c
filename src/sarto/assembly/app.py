"""The assembly: creates every object, connects them, and returns the ASGI application.

Services are opened when the server starts, and closed in reverse order when it stops.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from pathlib import Path

import orjson
from starlette.types import Receive, Scope, Send

from sarto.api.http import callers
from sarto.api.http.application import Application
from sarto.api.http.handler_threads import HandlerThreads
from sarto.api.http.limits import ConcurrencyLimit, LongPolls, RateLimit
from sarto.api.http.openapi import describe
from sarto.api.http.services import Services
from sarto.api.routes import ROUTES
from sarto.assembly.background import keep_keys, start_loops
from sarto.assembly.generation import (
    judges_of,
    oidc_providers,
    preparing_limits,
    question_files,
    routed_generator,
    score,
    worker_files,
)
from sarto.assembly.keys import key_service, private_folder
from sarto.assembly.machine import (
    HANDLER_THREADS,
    MOST_WAITS,
    check_confinement,
    check_start,
    limits_of,
    make_folders,
    most_data_bytes,
    outside_threads,
    reward_code,
    this_processor,
)
from sarto.catalog import Catalog
from sarto.contract.common import Files
from sarto.control.access import account_store, account_tokens
from sarto.control.access.authentication import Authenticator
from sarto.control.audit.audit_log import AuditLog
from sarto.control.context import Control
from sarto.control.executors.executor import RUN, Executor, clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.executors.warm import WarmExecutor
from sarto.engine.evaluation.evaluate_instances import InstanceEvaluator
from sarto.errors import FailedPrecondition, InvalidArgument
from sarto.samples import install_samples
from sarto.serving.worker.client import WorkerGenerator
from sarto.settings import Settings
from sarto.storage import data_folder
from sarto.storage.buckets.store import Buckets
from sarto.storage.buckets.uploads import Uploads
from sarto.storage.database import migrations
from sarto.storage.database.database import Database, Lock
from sarto.storage.encryption.sealer import Sealer
from sarto.system.confinement import confined

logger = logging.getLogger(__name__)

OnStarted = Callable[[Path | None], None]
OnFailed = Callable[[Exception], None]


class App:
    """The ASGI application. `on_started` gets the key file when requests can be handled, `on_failed` the error."""

    def __init__(
        self, settings: Settings, address: str, on_started: OnStarted, on_failed: OnFailed, bridge: str
    ) -> None:
        self._bridge = bridge
        self._settings, self._address = settings, address
        self._on_started, self._on_failed = on_started, on_failed
        self._application = Application(ROUTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            callers.name_caller(scope, self._bridge)
            await self._application(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        """The server's life from startup to shutdown, by ASGI's lifespan protocol."""
        await receive()
        stage = "startup"
        try:
            async with running(self._settings, self._address) as (services, key_file):
                self._application.services = services
                self._on_started(key_file)
                await send({"type": "lifespan.startup.complete"})
                stage = "shutdown"
                await receive()
        except Exception as error:
            self._on_failed(error)
            await send({"type": f"lifespan.{stage}.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})


def _quiet(_: object) -> None:
    """Ignores its arguments: the default of both callbacks."""


def build(
    settings: Settings,
    address: str = "",
    on_started: OnStarted = _quiet,
    on_failed: OnFailed = _quiet,
    bridge: str = "",
) -> App:
    """The application with these settings. `address` is that of clients on this machine (default: host and port),
    `bridge` the secret that identifies the gRPC bridge."""
    return App(settings, address or f"http://{settings.host}:{settings.port}", on_started, on_failed, bridge)


@asynccontextmanager
async def running(settings: Settings, local_address: str) -> AsyncIterator[tuple[Services, Path | None]]:
    """All objects of a running service, and the administrator's key file, if there is one."""
    home, data, address = settings.home, settings.shared_folder, settings.public_url or local_address
    check_start(settings)
    make_folders(home)
    async with AsyncExitStack() as stack:
        database = Database.in_home(home, settings.database_url)
        stack.callback(database.close)
        with database.alone(Lock.START):  # one of several servers creates the common rows
            migrations.upgrade(database)
            data_folder.claim(database, data)
            make_folders(data)
            key_file = account_store.open_home(database, home, settings.project, address, settings.max_key_days)
            authenticator = Authenticator(database, address, settings.token_seconds, oidc_providers(settings))
            authenticator.accept(local_address)
            keys = key_service(settings, data, database)
            buckets = Buckets(database, data, Sealer(keys, private_folder(stack, settings)))
            buckets.sweep()
            Uploads(buckets).sweep(time.time())
            install_samples(buckets)
        catalog = Catalog.load(home, settings.models_folder)
        environment, processor = clean_environment(os.environ), this_processor()
        control = Control(
            database, buckets, catalog, data, limits_of(settings), judges=judges_of(settings, catalog),
            default_judge=settings.default_judge, processor=processor, serve_int8=settings.serving_precision == "int8",
        )  # fmt: skip
        worker = WorkerGenerator(
            home / "logs", threads=settings.limits.threads, dtype=settings.serving_precision,
            queue_limit=settings.queue_limit, environment=processor.environment(), limits=preparing_limits(settings),
            environment_for=lambda base: processor.environment(base.folder),
            files=worker_files(control), question_files=question_files(control), places=control.places,
        )  # fmt: skip
        stack.push_async_callback(worker.close)
        generator = routed_generator(stack, settings, control, worker, environment)
        await asyncio.to_thread(check_confinement, settings.run_confinement == "always")
        threads = HandlerThreads(HANDLER_THREADS, database.writer)
        stack.callback(threads.close)
        audit_log = _audit_log(stack, database, settings.audit_data_access)  # before all services that write to it
        await start_loops(stack, control, generator, _executor(stack, environment, settings.warm_seconds, control))
        keep_keys(stack, control, worker)
        services = Services(
            database=database, buckets=buckets, catalog=catalog, control=control,
            authenticator=authenticator, generator=generator, keys=keys, threads=threads,
            outside=outside_threads(stack), reward_code=reward_code(stack, settings.limits),
            max_body_bytes=settings.max_body_bytes,
            rate=RateLimit(settings.requests_per_second),
            bodies=ConcurrencyLimit(
                "bytes of request bodies", 4 * settings.max_body_bytes, 8 * settings.max_body_bytes
            ),
            long_polls=LongPolls(settings.waits_per_caller, MOST_WAITS),
            hosts=callers.AllowedHosts(settings.host, settings.public_hosts),
            openapi=cache(lambda: orjson.dumps(describe(ROUTES))),
            audit_log=audit_log,
            evaluator=InstanceEvaluator(partial(score, worker.preparation)),
            metadata_account=_metadata_account(database, settings.metadata_server),
            max_key_days=settings.max_key_days,
        )  # fmt: skip
        yield services, key_file


def _audit_log(stack: AsyncExitStack, database: Database, audit_data_access: bool) -> AuditLog:
    audit_log = AuditLog(database, audit_data_access)
    audit_log.start()
    stack.push_async_callback(asyncio.to_thread, audit_log.stop)
    return audit_log


def _metadata_account(database: Database, email: str) -> str:
    """The account for which the metadata-server paths issue tokens. Raises InvalidArgument, FailedPrecondition."""
    if not email:
        return ""
    if "@" not in email:
        raise InvalidArgument(
            f'metadata_server: "{email}" is not an account; name a service account, such as'
            " app-account@demo.iam.gserviceaccount.com, or leave it out to have no metadata server."
        )
    if not callers.can_tell_users():
        raise FailedPrecondition(
            "metadata_server needs Linux: on other systems the calling user is unknown; leave it out."
        )
    account_tokens.check_bounded(database, email)
    return email


def _executor(stack: AsyncExitStack, environment: Mapping[str, str], warm_seconds: float, control: Control) -> Executor:
    data_bytes = most_data_bytes(control.limits)
    if not warm_seconds:
        return LocalExecutor(environment, confined(RUN, data_bytes))
    home = control.home
    files = Files(
        read=[str(control.catalog.models_folder), str(home / "models"), str(home / "adapters")],
        write=[str(home / "runs"), str(home / "cache"), str(control.sealer.private.folder)],
    )
    warm = WarmExecutor(environment, warm_seconds, files, data_bytes)
    stack.callback(warm.close)
    return warm
