"""The assembly: builds every object, wires them, gives the ASGI application.

Everything that runs is opened when the server starts and closed, in reverse, when it stops.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from sarto.api.generation import target_of
from sarto.api.http import Doors, Services
from sarto.api.limits import Rate
from sarto.api.routes import ROUTES
from sarto.api.threads import HandlerThreads
from sarto.catalog import Catalog
from sarto.control import keys as key_control
from sarto.control import service_accounts
from sarto.control.announced import announced_adapters
from sarto.control.audit_log import AuditLog
from sarto.control.auth import Authenticator
from sarto.control.batch_runner import BatchRunner
from sarto.control.capacity import RUNS_SHARE, machine_memory_bytes
from sarto.control.context import Control, Limits
from sarto.control.evaluation_work import EvaluationWork
from sarto.control.executors import EVALUATION, EXPORT, RUN, Executor, LocalExecutor, clean_environment, confined
from sarto.control.export_work import ExportWork
from sarto.control.judge_endpoints import JudgeEndpoint
from sarto.control.oidc import Issuer, Providers
from sarto.control.operation_runner import OperationRunner
from sarto.control.resolution import Deployed
from sarto.control.retention import Collector
from sarto.control.supervisor import Supervisor
from sarto.control.warm_executor import WarmExecutor
from sarto.control.webhook_sender import WebhookSender
from sarto.engine.evaluation.instances import InstanceEvaluator
from sarto.errors import FailedPrecondition, InvalidArgument
from sarto.key_assembly import key_service, private_folder
from sarto.samples import install_samples, validation_rows
from sarto.schema.generation import GenerateContentRequest
from sarto.serving.generator import Generator, collect
from sarto.serving.routed import RoutedGenerator
from sarto.serving.vllm import Adapter, VllmGenerator, VllmOptions
from sarto.serving.vllm_server import VllmServer
from sarto.serving.worker_client import WorkerGenerator
from sarto.settings import Settings
from sarto.storage import data_folder, migrations
from sarto.storage.buckets import Buckets
from sarto.storage.database import Database
from sarto.storage.sealer import Sealer
from sarto.storage.tables import dataset_evaluation, model_export
from sarto.storage.uploads import Uploads

logger = logging.getLogger(__name__)

HANDLER_THREADS = 16
START_LOCK = 7412
"""Number of the advisory lock under which servers that share a PostgreSQL database start, one by one."""
TEND_KEYS_SECONDS = 5.0
OnStarted = Callable[[Path], None]
OnFailed = Callable[[Exception], None]
FOLDERS = ("credentials", "runs", "adapters", "cache", "sockets", "logs")


class App:
    """The ASGI application. `on_started` gets the key file when requests can be taken, `on_failed` what went wrong."""

    def __init__(self, settings: Settings, address: str, on_started: OnStarted, on_failed: OnFailed) -> None:
        self._settings, self._address = settings, address
        self._on_started, self._on_failed = on_started, on_failed
        self._doors = Doors(ROUTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._doors(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        """The server's life from startup to shutdown, as ASGI tells it."""
        await receive()
        stage = "startup"
        try:
            async with running(self._settings, self._address) as (services, key_file):
                self._doors.services = services
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
    """Nobody listens."""


def build(settings: Settings, address: str = "", on_started: OnStarted = _quiet, on_failed: OnFailed = _quiet) -> App:
    """The application over these settings; `address` is where clients reach it (default: host and port)."""
    return App(settings, address or f"http://{settings.host}:{settings.port}", on_started, on_failed)


@asynccontextmanager
async def running(settings: Settings, address: str) -> AsyncIterator[tuple[Services, Path]]:
    """Everything a running service consists of, and the administrator's key file."""
    home, data = settings.home, (settings.data_folder or settings.home).expanduser().absolute()
    if settings.data_folder and not settings.database_url:
        raise FailedPrecondition("data_folder is for servers that share a PostgreSQL database; set database_url too.")
    _make_folders(home)
    async with AsyncExitStack() as stack:
        database = Database.in_home(home, settings.database_url)
        stack.callback(database.close)
        with database.alone(START_LOCK):  # of several servers one makes what all need
            migrations.upgrade(database)
            data_folder.claim(database, data)
            _make_folders(data)
            key_file = service_accounts.open_home(database, home, settings.project, address)
            authenticator = Authenticator(database, address, settings.token_seconds, _providers(settings))
            keys = key_service(settings, data, database)
            buckets = Buckets(database, data, Sealer(keys, private_folder(stack, settings)))
            buckets.sweep()
            Uploads(buckets).sweep(time.time())
            install_samples(buckets)
        catalog = Catalog.load(home, settings.models_folder)
        control = Control(
            database, buckets, catalog, data, _limits(settings), _judges(settings, catalog), settings.default_judge
        )
        environment = clean_environment(os.environ)
        worker = WorkerGenerator(
            home / "logs", threads=settings.threads, dtype=settings.serving_precision,
            queue_limit=settings.queue_limit, environment=environment,
        )  # fmt: skip
        stack.push_async_callback(worker.close)
        generator = _routed(stack, settings, control, worker, environment)
        await asyncio.to_thread(_check_confinement, settings.run_without_network == "always")
        threads = HandlerThreads(HANDLER_THREADS, database.writer)
        stack.callback(threads.close)
        executor = _executor(stack, environment, settings.warm_seconds, _data_bytes(control.limits))
        await _start_loops(stack, control, generator, executor)
        await _tend_keys(stack, control, worker)
        audit_log = AuditLog(database, settings.audit_data_access)
        audit_log.start()
        stack.push_async_callback(asyncio.to_thread, audit_log.stop)
        services = Services(
            database=database,
            buckets=buckets,
            catalog=catalog,
            control=control,
            authenticator=authenticator,
            generator=generator,
            keys=keys,
            threads=threads,
            max_body_bytes=settings.max_body_bytes,
            rate=Rate(settings.requests_per_second),
            audit_log=audit_log,
            evaluator=InstanceEvaluator(),
            metadata_account=service_accounts.read_email(key_file) if settings.metadata_server else "",
        )
        yield services, key_file


def _routed(
    stack: AsyncExitStack, settings: Settings, control: Control, worker: Generator, environment: Mapping[str, str]
) -> Generator:
    """The worker, and in front of it whoever answers for a base elsewhere. Raises FailedPrecondition for a base that is
    not on this machine: its tokenizer is needed."""
    if not settings.vllm:
        return worker
    found = {}
    for given in settings.vllm:
        if given.weights not in control.catalog.weights:
            raise InvalidArgument(f"vllm: there are no weights {given.weights}; `sarto models` lists them")
        if given.key_variable and not os.environ.get(given.key_variable):
            raise InvalidArgument(f"vllm: the key of {given.weights} is not in the variable {given.key_variable}")

        async def wanted(weights: str = given.weights) -> list[Adapter]:
            rows = await asyncio.to_thread(announced_adapters, control, weights)
            return [Adapter(digest, folder) for digest, folder in rows]

        key = os.environ.get(given.key_variable, "") if given.key_variable else ""
        options = VllmOptions(given.address, given.model, key, given.max_adapters, settings.queue_limit)
        log = settings.home / "logs" / f"vllm-{given.weights}.log"
        server = VllmServer(given.command, log, environment) if given.command else None
        made = VllmGenerator(options, worker, wanted, server)
        found[control.base(given.weights).digest] = made
        stack.push_async_callback(made.close)
        stack.push_async_callback(ended, asyncio.create_task(made.keep()))
    return RoutedGenerator(worker, found)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _providers(settings: Settings) -> Providers:
    return Providers(Issuer(i.issuer, i.audience, i.jwks, tuple(i.algorithms)) for i in settings.oidc_issuers)


def _judges(settings: Settings, catalog: Catalog) -> dict[str, JudgeEndpoint]:
    """Raises InvalidArgument for one that can never answer, or whose name is taken."""
    found: dict[str, JudgeEndpoint] = {}
    for given in settings.judges:
        if given.name in found or catalog.knows(given.name):
            raise InvalidArgument(f"judges: {given.name} is the name of another judge or of a base model; take another")
        made = JudgeEndpoint(
            key=given.key(os.environ),
            allow_private=given.private_address,
            **given.model_dump(exclude={"key_variable", "key_file", "private_address"}),
        )
        made.target()
        found[given.name] = made
    return found


def _make_folders(home: Path) -> None:
    """The home is its owner's alone, also one that was made wider; a folder of someone else's stays as it is."""
    for folder in (home, *(home / name for name in FOLDERS)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)


def network_of_runs() -> str:
    """Why runs on this machine keep the network; empty where they do not. Tries once what each run does first."""
    program, environment = [sys.executable, "-m", "sarto.engine.confine"], clean_environment(os.environ)
    tried = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    return (tried.stderr.strip().splitlines() or ["unknown reason"])[-1] if tried.returncode else ""


def _check_confinement(is_required: bool) -> None:
    """Raises FailedPrecondition where runs keep the network and may not."""
    reason = network_of_runs()
    if reason and is_required:
        raise FailedPrecondition(f"run_without_network is set, and runs cannot be kept from the network: {reason}.")
    if reason:
        logger.warning("runs keep the network", extra={"reason": reason})
    else:
        logger.info("runs have no network")


def _data_bytes(limits: Limits) -> int:
    """Most memory of its own that one run may map; unbound with GPUs, whose driver maps far more than it uses."""
    return 0 if limits.run_gpus else max(limits.run_memory_bytes, int(RUNS_SHARE * machine_memory_bytes()))


def _executor(stack: AsyncExitStack, environment: Mapping[str, str], warm_seconds: float, data_bytes: int) -> Executor:
    if not warm_seconds:
        return LocalExecutor(environment, confined(RUN, data_bytes))
    warm = WarmExecutor(environment, warm_seconds, data_bytes)
    stack.callback(warm.close)
    return warm


async def _start_loops(stack: AsyncExitStack, control: Control, generator: Generator, executor: Executor) -> None:
    """The supervisor in a thread of its own, batch predictions in this event loop; both end with the stack."""
    supervisor = Supervisor(control, executor)
    supervisor.start()
    stack.push_async_callback(asyncio.to_thread, supervisor.stop)
    sender = WebhookSender(control)
    sender.start()
    stack.push_async_callback(asyncio.to_thread, sender.stop)
    collector = Collector(control)
    collector.start()
    stack.push_async_callback(asyncio.to_thread, collector.stop)
    data_bytes = _data_bytes(control.limits)
    exports = OperationRunner(
        control, model_export, LocalExecutor(clean_environment(os.environ), confined(EXPORT, data_bytes)),
        ExportWork(control, validation_rows()),
    )  # fmt: skip
    exports.start()
    stack.push_async_callback(asyncio.to_thread, exports.stop)

    loop = asyncio.get_running_loop()

    def answer_now(deployed: Deployed, asked: dict[str, Any]) -> dict[str, Any]:
        """From another thread."""
        return asyncio.run_coroutine_threadsafe(answer(deployed, asked), loop).result()

    evaluations = OperationRunner(
        control, dataset_evaluation, LocalExecutor(clean_environment(os.environ), confined(EVALUATION, data_bytes)),
        EvaluationWork(control, answer_now),
    )  # fmt: skip
    evaluations.start()
    stack.push_async_callback(asyncio.to_thread, evaluations.stop)

    async def answer(deployed: Deployed, asked: dict[str, Any]) -> dict[str, Any]:
        request = GenerateContentRequest.read(asked, "request")
        whole = await collect(generator.generate(target_of(control, deployed), request))
        whole.model_version = deployed.base_model
        return whole.to_json()

    batches = asyncio.create_task(BatchRunner(control, answer, supervisor.owner).run())

    stack.push_async_callback(ended, batches)


async def _tend_keys(stack: AsyncExitStack, control: Control, generator: WorkerGenerator) -> None:
    """As long as the service runs: destroys and rotates keys when they are due, and closes what lies in the open under
    a key that refuses, in the worker's memory too."""

    async def tend() -> None:
        while True:
            try:
                await asyncio.to_thread(key_control.tend, control.sealer.keys)
                closed = await asyncio.to_thread(control.sealer.opened.tend)
                if closed and generator.pid is not None:
                    await generator.inspect(None, "forget_adapters", {"digests": closed})
            except Exception:
                logger.exception("tending keys failed")
            await asyncio.sleep(TEND_KEYS_SECONDS)

    tending = asyncio.create_task(tend())

    async def stop() -> None:
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)

    stack.push_async_callback(stop)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_gpus(environ: Mapping[str, str]) -> int:
    """GPUs that runs find. Where several could be, torch is asked, in a process of its own: it loads for seconds."""
    named = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip() not in ("", "-1")]
    count = len(named) if "CUDA_VISIBLE_DEVICES" in environ else len(list(Path("/dev").glob("nvidia[0-9]*")))
    if count < 2:
        return count
    program = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(program, env=dict(environ), capture_output=True, text=True, check=True).stdout)


def _limits(settings: Settings) -> Limits:
    """Raises FailedPrecondition when no run could ever begin."""
    threads, run_threads = settings.threads or cores(), settings.run_threads or max(settings.threads, cores())
    if threads > run_threads:
        raise FailedPrecondition(f"threads = {threads} for one run is more than run_threads = {run_threads} for all.")
    return Limits(
        concurrent_jobs=settings.concurrent_jobs,
        concurrent_runs=settings.concurrent_runs,
        run_threads=run_threads,
        run_memory_bytes=settings.run_memory_bytes or int(RUNS_SHARE * machine_memory_bytes()),
        run_gpus=count_gpus(os.environ) if settings.run_gpus is None else settings.run_gpus,
        max_dataset_bytes=settings.max_dataset_bytes,
        max_training_examples=settings.max_training_examples,
        max_validation_examples=settings.max_validation_examples,
        tuning_in_global=settings.tuning_in_global,
        max_upload_bytes=settings.max_upload_bytes,
        lease_seconds=settings.lease_seconds,
        max_attempts=settings.max_attempts,
        reserve_bytes=settings.reserve_bytes,
        keep_run_days=settings.keep_run_days,
        keep_cache_days=settings.keep_cache_days,
        webhook_private_addresses=settings.webhook_private_addresses,
        resume_seconds=settings.resume_seconds,
        max_job_seconds=settings.max_job_seconds,
        max_evaluation_seconds=settings.max_evaluation_seconds,
        threads=threads,
        devices=settings.devices,
        serve_int8=settings.serving_precision == "int8",
    )
