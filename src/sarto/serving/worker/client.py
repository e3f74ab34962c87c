"""A `Generator` that owns a worker process, started on first use, with many requests at once over one connection.

The worker has its own session and dies with this process. When it crashes, requests in progress end with Unavailable,
and the next request starts a new worker. Prompts are rendered in the processes of `preparation`; the worker gets
tokens.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sarto.contract.common import BaseWeights, Files
from sarto.contract.dataset_query import DatasetQuery
from sarto.contract.places import Places
from sarto.errors import SartoError, Unavailable, from_status
from sarto.schema.generation import (
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
    refuse_hosted,
)
from sarto.serving.generator import ComputedTokens, Target
from sarto.serving.preparation.pool import PreparationPool, PreparingLimits
from sarto.serving.protocol import pack, read_frame, write_target
from sarto.system.confinement import confined

logger = logging.getLogger(__name__)
WORKER = "sarto.serving.worker.program"
"""The module that the child process runs."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A request rendered for another server: token ids of the prompt, those that end a reply, the functions that the
    reply may call, and the grammar that it must follow (empty: none)."""

    token_ids: list[int]
    end_ids: list[int]
    functions: list[str]
    grammar: str


@dataclass
class _Worker:
    """One child process, its connection, and an inbox for every unfinished request."""

    process: asyncio.subprocess.Process
    writer: asyncio.StreamWriter
    inboxes: dict[int, asyncio.Queue[dict[str, Any] | SartoError]] = field(default_factory=dict)


class WorkerGenerator:
    """Generation in a child process. All calls must come from one event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        queue_limit: int = 256,
        environment: Mapping[str, str] | None = None,
        limits: PreparingLimits | None = None,
        environment_for: Callable[[BaseWeights], Mapping[str, str]] | None = None,
        files: Files | None = None,
        question_files: Files | None = None,
        places: Places | None = None,
    ) -> None:
        """`folder` has the logs. `threads` 0: all cores. `queue_limit`: requests that may wait before 429.
        `environment` is the worker's, by default this process's own. `limits` are those of preparation.
        `environment_for` returns the environment that the worker needs with one more base; if it differs, a running
        worker is replaced. `files` are those of the worker, `question_files` those of the preparation processes;
        without them, neither is confined to files. `places` has the files that dataset queries name."""
        self.preparation = PreparationPool(
            folder / "preparers.log", limits or PreparingLimits(), environment, question_files
        )
        self._log_file = folder / "worker.log"
        self._options = [f"--threads={threads}", f"--device={device}", f"--dtype={dtype}"]
        self._options.append(f"--queue-limit={queue_limit}")
        self._environment = environment
        self._environment_for, self._bases = environment_for, set[str]()
        self._program = (
            confined(WORKER, read=files.read, write=files.write) if files else [sys.executable, "-m", WORKER]
        )
        self._places = places or Places({})
        self._worker: _Worker | None = None
        self._starting = asyncio.Lock()
        self._ids = itertools.count(1)
        self._readers: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def generate(
        self, target: Target, request: GenerateContentRequest
    ) -> AsyncGenerator[GenerateContentResponse]:
        refuse_hosted(request.tools)
        await self._running(target.base)  # it loads while the request is read
        prepared = await self._prepare(target, "read", request.to_json())
        async with aclosing(self._ask("generate", target, prepared)) as answers:
            async for answer in answers:
                yield GenerateContentResponse.model_validate(answer)

    async def count_tokens(self, target: Target, request: CountTokensRequest) -> CountTokensResponse:
        refuse_hosted(request.tools)
        return CountTokensResponse.model_validate(await self._prepare(target, "count_tokens", request.to_json()))

    async def compute_tokens(self, target: Target, request: CountTokensRequest) -> ComputedTokens:
        return ComputedTokens(**await self._prepare(target, "compute_tokens", request.to_json()))

    async def render_prompt(self, target: Target, request: GenerateContentRequest) -> RenderedPrompt:
        """Raises InvalidArgument for a request that the base cannot be held to."""
        return RenderedPrompt(**await self._prepare(target, "render_prompt", request.to_json()))

    async def token_texts(self, target: Target, ids: Iterable[int]) -> list[str]:
        """The text of each token, in the same order."""
        texts: list[str] = (await self._prepare(target, "token_texts", {"ids": list(ids)}))["texts"]
        return texts

    async def data_report(self, target: Target, question: DatasetQuery) -> dict[str, Any]:
        """With a forecast for this machine."""
        machine = await self.machine_speed(target, question.threads)
        payload = {"question": self._located(question), "machine": machine}
        return await self._prepare(target, "data_report", payload)

    async def show_row(self, target: Target, question: DatasetQuery) -> dict[str, Any]:
        return await self._prepare(target, "show_row", {"question": self._located(question)})

    def _located(self, question: DatasetQuery) -> dict[str, Any]:
        return self._places.located(question).model_dump(mode="json")

    async def machine_speed(self, target: Target, threads: int) -> dict[str, Any]:
        """The fields of `forecast.Machine` for runs with `threads`, measured by the worker once."""
        return await self._query(target, "machine_speed", {"threads": threads})

    async def forget_adapters(self, digests: Iterable[str]) -> None:
        """Drop adapters, and what they computed, from the memory of the worker; it is not started for that."""
        if self._worker is not None:
            await self._query(None, "forget_adapters", {"digests": list(digests)})

    async def metrics(self) -> dict[str, Any] | None:
        return None if self._worker is None else await self._query(None, "metrics", {})

    async def close(self) -> None:
        """Kill the worker, also during work."""
        self._is_closed = True
        await self.preparation.close()
        async with self._starting:
            worker = self._worker
            if worker is not None:
                _kill(worker.process)
                await worker.process.wait()
        await asyncio.gather(*self._readers)

    @property
    def pid(self) -> int | None:
        """Process id of the running worker, for operators and tests."""
        return self._worker.process.pid if self._worker is not None else None

    async def _prepare(self, target: Target, method: str, payload: dict[str, Any]) -> dict[str, Any]:
        return await self.preparation.ask(target.base, target.asker, method, payload)

    async def _query(self, target: Target | None, call: str, payload: dict[str, Any]) -> dict[str, Any]:
        async with aclosing(self._ask(call, target, payload)) as answers:
            async for answer in answers:
                return answer
        raise Unavailable("The generation worker returned no answer.")

    async def _ask(self, call: str, target: Target | None, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        worker = await self._running(target.base if target is not None else None)
        number = next(self._ids)
        inbox = worker.inboxes[number] = asyncio.Queue()
        try:
            message = {"id": number, "call": call, "target": write_target(target), "request": request}
            worker.writer.write(pack(message))
            while True:
                frame = await inbox.get()
                if isinstance(frame, SartoError):
                    raise frame
                if "error" in frame:
                    raise from_status(frame["error"])
                if "end" in frame:
                    return
                yield frame["chunk"]
        finally:
            # Absent when the worker has already had the last word.
            if worker.inboxes.pop(number, None) is not None and not worker.writer.is_closing():
                worker.writer.write(pack({"id": number, "cancel": True}))

    async def _running(self, base: BaseWeights | None) -> _Worker:
        """The running worker; starts one if needed. Raises the errors of `environment_for`."""
        async with self._starting:
            if self._is_closed:
                raise Unavailable("The service is stopping.")
            if base is not None and self._environment_for is not None and base.digest not in self._bases:
                environment = await asyncio.to_thread(self._environment_for, base)
                self._bases.add(base.digest)
                if environment != self._environment:
                    self._environment = environment
                    if self._worker is not None:
                        _kill(self._worker.process)
                        self._worker = None
            if self._worker is None:
                self._worker = await self._start()
            return self._worker

    async def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._program, f"--fd={theirs.fileno()}", *self._options,
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                pass_fds=(theirs.fileno(),), start_new_session=True,
                env=self._environment,
            )  # fmt: skip
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        worker = _Worker(process, writer)
        task = asyncio.create_task(self._read(worker, reader))
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)
        logger.info("generation worker started", extra={"pid": process.pid})
        return worker

    async def _read(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        """Deliver every frame to its request until the worker ends; then fail the remaining requests and drop the
        worker."""
        try:
            while True:
                frame = await read_frame(reader)
                is_last = "chunk" not in frame
                inbox = (worker.inboxes.pop if is_last else worker.inboxes.get)(frame["id"], None)
                if inbox is not None:  # else its caller has disconnected
                    inbox.put_nowait(frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if self._worker is worker:
                self._worker = None
            worker.writer.close()
            _kill(worker.process)
            code = await worker.process.wait()
            if not self._is_closed:
                logger.warning("generation worker ended", extra={"pid": worker.process.pid, "exit_code": code})
            for inbox in worker.inboxes.values():
                inbox.put_nowait(self._gone(code))
            worker.inboxes.clear()

    def _gone(self, code: int) -> Unavailable:
        if self._is_closed:
            return Unavailable("The service is stopping.")
        return Unavailable(
            f"The generation worker ended unexpectedly (exit code {code}; see {self._log_file}). "
            "Try again: the next request starts a new one."
        )


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it was faster
