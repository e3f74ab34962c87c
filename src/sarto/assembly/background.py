"""The background loops, each in a thread of its own: runs, batches, exports, evaluations, webhooks, retention, keys."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from sarto.api.vertex.generation import target_of
from sarto.assembly.machine import most_data_bytes
from sarto.control.batches.batch_runner import BatchRunner
from sarto.control.context import Control
from sarto.control.evaluation.evaluation_work import EvaluationWork
from sarto.control.executors.executor import EVALUATION, EXPORT, Executor, clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.exports.export_work import ExportWork
from sarto.control.keys.key_upkeep import KeyUpkeep
from sarto.control.models.resolution import ResolvedModel
from sarto.control.retention import Collector
from sarto.control.runs.operation_runner import OperationRunner
from sarto.control.runs.supervisor import Supervisor
from sarto.control.webhooks.sender import WebhookSender
from sarto.samples import validation_rows
from sarto.schema.generation import GenerateContentRequest
from sarto.serving.generator import Generator, collect
from sarto.serving.worker.client import WorkerGenerator
from sarto.storage.database.tables import dataset_evaluation, model_export
from sarto.system.confinement import confined

FORGET_SECONDS = 30.0
"""Longest time in which the worker may drop adapters whose key refuses; then it is called again."""


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def start_loops(stack: AsyncExitStack, control: Control, generator: Generator, executor: Executor) -> None:
    """Start all background loops, batch predictions in this event loop and the others in threads; all end with the
    stack."""
    supervisor = Supervisor(control, executor)
    supervisor.start()
    stack.push_async_callback(asyncio.to_thread, supervisor.stop)
    sender = WebhookSender(control)
    sender.start()
    stack.callback(sender.stop)
    collector = Collector(control)
    collector.start()
    stack.push_async_callback(asyncio.to_thread, collector.stop)
    data_bytes = most_data_bytes(control.limits)
    exports = OperationRunner(
        control, model_export, LocalExecutor(clean_environment(os.environ), confined(EXPORT, data_bytes)),
        ExportWork(control, validation_rows()),
    )  # fmt: skip
    exports.start()
    stack.push_async_callback(asyncio.to_thread, exports.stop)

    loop = asyncio.get_running_loop()

    def answer_now(deployed: ResolvedModel, body: dict[str, Any]) -> dict[str, Any]:
        """Generate an answer for a caller in another thread, which blocks until it is complete."""
        return asyncio.run_coroutine_threadsafe(answer(deployed, body), loop).result()

    evaluations = OperationRunner(
        control, dataset_evaluation, LocalExecutor(clean_environment(os.environ), confined(EVALUATION, data_bytes)),
        EvaluationWork(control, answer_now),
    )  # fmt: skip
    evaluations.start()
    stack.push_async_callback(asyncio.to_thread, evaluations.stop)

    async def answer(deployed: ResolvedModel, body: dict[str, Any]) -> dict[str, Any]:
        request = GenerateContentRequest.read(body, "request")
        whole = await collect(generator.generate(target_of(control, deployed), request))
        whole.model_version = deployed.base_model
        return whole.to_json()

    batches = asyncio.create_task(BatchRunner(control, answer, supervisor.owner).run())

    stack.push_async_callback(ended, batches)


def keep_keys(stack: AsyncExitStack, control: Control, generator: WorkerGenerator) -> None:
    loop = asyncio.get_running_loop()

    def on_closed(digests: Sequence[str]) -> None:
        asyncio.run_coroutine_threadsafe(generator.forget_adapters(digests), loop).result(FORGET_SECONDS)

    upkeep = KeyUpkeep(control.sealer, on_closed)
    upkeep.start()
    stack.callback(upkeep.stop)
