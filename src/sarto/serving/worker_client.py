"""A `Generator` that owns a worker process: started on first use, asked many things at once over one connection.

The worker runs in a session of its own and dies with this process. When it dies by itself, requests in flight end with
Unavailable and the next one starts a new worker. Knows nothing of models; `app` makes one and closes it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sarto.errors import SartoError, Unavailable, from_status
from sarto.schema.generation import (
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
    refuse_hosted,
)
from sarto.serving.generator import Target
from sarto.serving.protocol import pack, read_frame, write_target

logger = logging.getLogger(__name__)


@dataclass
class _Worker:
    """One child process, its connection, and the inbox of every request it has not answered to the end."""

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
    ) -> None:
        """`folder` keeps the worker's log. `threads` 0: all cores; `queue_limit`: requests that may wait before 429;
        `environment`: of the child, by default this process's own."""
        self._log_file = folder / "worker.log"
        self._options = [f"--threads={threads}", f"--device={device}", f"--dtype={dtype}"]
        self._options.append(f"--queue-limit={queue_limit}")
        self._environment = environment
        self._worker: _Worker | None = None
        self._starting = asyncio.Lock()
        self._ids = itertools.count(1)
        self._readers: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def generate(
        self, target: Target, request: GenerateContentRequest
    ) -> AsyncGenerator[GenerateContentResponse]:
        refuse_hosted(request.tools)
        async with aclosing(self._ask("generate", target, request.to_json())) as answers:
            async for answer in answers:
                yield GenerateContentResponse.model_validate(answer)

    async def count_tokens(self, target: Target, request: CountTokensRequest) -> CountTokensResponse:
        refuse_hosted(request.tools)
        return CountTokensResponse.model_validate(await self._one("count_tokens", target, request.to_json()))

    async def inspect(self, target: Target | None, method: str, payload: dict[str, Any]) -> dict[str, Any]:
        return await self._one("inspect", target, {"method": method, "payload": payload})

    async def metrics(self) -> dict[str, Any] | None:
        return None if self._worker is None else await self.inspect(None, "metrics", {})

    async def close(self) -> None:
        """End the worker at once, whatever it is doing."""
        self._is_closed = True
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

    async def _one(self, call: str, target: Target | None, request: dict[str, Any]) -> dict[str, Any]:
        async with aclosing(self._ask(call, target, request)) as answers:
            async for answer in answers:
                return answer
        raise Unavailable("The generation worker gave no answer.")

    async def _ask(self, call: str, target: Target | None, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        worker = await self._running()
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

    async def _running(self) -> _Worker:
        async with self._starting:
            if self._is_closed:
                raise Unavailable("The service is stopping.")
            if self._worker is None:
                self._worker = await self._start()
            return self._worker

    async def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sarto.serving.worker", f"--fd={theirs.fileno()}", *self._options,
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                pass_fds=(theirs.fileno(),), start_new_session=True, env=self._environment,
            )  # fmt: skip
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        worker = _Worker(process, writer)
        task = asyncio.create_task(self._read(worker, reader))
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)
        logger.info("generation worker started", extra={"pid": process.pid})
        return worker

    async def _read(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        """Hand every frame to its request until the worker is gone, then fail what is left and forget the worker."""
        try:
            while True:
                frame = await read_frame(reader)
                is_last = "chunk" not in frame
                inbox = (worker.inboxes.pop if is_last else worker.inboxes.get)(frame["id"], None)
                if inbox is not None:  # else its caller has gone
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
