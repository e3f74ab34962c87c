"""Assembly of generation (worker, vLLM, judges) and of the OIDC providers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from sarto.assembly.background import ended
from sarto.catalog import Catalog
from sarto.contract.common import Files
from sarto.control.access.oidc import Providers
from sarto.control.context import Control, JudgeEndpoint
from sarto.control.models.resolution import announced_adapters
from sarto.errors import InvalidArgument
from sarto.serving.generator import Generator
from sarto.serving.preparation.pool import SCORES, PreparationPool, PreparingLimits
from sarto.serving.router import RoutedGenerator
from sarto.serving.vllm.generator import Adapter, VllmGenerator, VllmOptions
from sarto.serving.vllm.process import VllmServer
from sarto.serving.worker.client import WorkerGenerator
from sarto.settings import Settings


def routed_generator(
    stack: AsyncExitStack, settings: Settings, control: Control, worker: WorkerGenerator, environment: Mapping[str, str]
) -> Generator:
    """The worker, and the vLLM servers of bases that they serve. Raises FailedPrecondition for a base that is not on
    this machine, since its tokenizer is needed."""
    if not settings.vllm:
        return worker
    generators = {}
    for entry in settings.vllm:
        if entry.weights not in control.catalog.weights:
            raise InvalidArgument(f"vllm: there are no weights {entry.weights}; `sarto models` lists them.")
        if entry.key_variable and not os.environ.get(entry.key_variable):
            raise InvalidArgument(f"vllm: the key of {entry.weights} is not in the variable {entry.key_variable}.")

        async def wanted(weights: str = entry.weights) -> list[Adapter]:
            rows = await asyncio.to_thread(announced_adapters, control, weights)
            return [Adapter(digest, str(folder)) for digest, folder in rows]

        key = os.environ.get(entry.key_variable, "") if entry.key_variable else ""
        options = VllmOptions(entry, key, settings.queue_limit)
        log = settings.home / "logs" / f"vllm-{entry.weights}.log"
        server = VllmServer(entry.command, log, environment) if entry.command else None
        generator = VllmGenerator(options, worker, wanted, server)
        generators[control.base(entry.weights).digest] = generator
        stack.push_async_callback(generator.close)
        stack.push_async_callback(ended, asyncio.create_task(generator.keep()))
    return RoutedGenerator(worker, generators)


def preparing_limits(settings: Settings) -> PreparingLimits:
    return PreparingLimits(
        prompt_seconds=settings.prompt_seconds,
        prompt_bytes=settings.prompt_memory_bytes,
        check_seconds=settings.check_seconds,
        check_bytes=settings.check_memory_bytes,
        waiting=settings.queue_limit,
    )


async def score(preparation: PreparationPool, project: str, payload: dict[str, Any]) -> dict[str, Any]:
    return await preparation.ask(None, project, SCORES, payload)


def oidc_providers(settings: Settings) -> Providers:
    return Providers(settings.oidc_issuers)


def judges_of(settings: Settings, catalog: Catalog) -> dict[str, JudgeEndpoint]:
    """The configured judges. Raises InvalidArgument for one that can never be called, or whose name is taken."""
    endpoints: dict[str, JudgeEndpoint] = {}
    for judge in settings.judges:
        if judge.name in endpoints or catalog.knows(judge.name):
            raise InvalidArgument(
                f"judges: {judge.name} is the name of another judge or of a base model; take another."
            )
        endpoint = JudgeEndpoint(judge, judge.key(os.environ))
        endpoint.target()
        endpoints[judge.name] = endpoint
    return endpoints


def worker_files(control: Control) -> Files:
    """Files of the generation worker, which serves all projects: it reads all bases and adapters, and writes temporary
    files."""
    home, temporary = control.home, control.home / "cache" / "worker"
    temporary.mkdir(parents=True, exist_ok=True)
    read = [control.catalog.models_folder, home / "models", home / "adapters", control.sealer.private.folder]
    return Files(read=[*map(str, read)], write=[str(temporary)])


def question_files(control: Control) -> Files:
    """Files of the preparation processes for any project; each is confined to the files of its own request."""
    home, private = control.home, str(control.sealer.private.folder)
    read = [control.catalog.models_folder, home / "models", home / "adapters", home / "objects", home / "runs"]
    return Files(read=[*map(str, read), private], write=[str(home / "cache"), private])
