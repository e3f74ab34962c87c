"""Entry point of the generation worker: answers the frames of `protocol` from one `Engine`, over an inherited socket.

It is the only module of this package that loads torch. It ends with its parent: by a signal, or when standard input
closes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.engine.serving.request import PreparedRequest
from sarto.engine.serving.worker_queries import answer_query
from sarto.errors import Internal, PayloadTooLarge, SartoError
from sarto.serving.generator import Target
from sarto.serving.preparation.pool import ProjectSlots
from sarto.serving.protocol import pack, read_frame, read_target
from sarto.system.process import die_with_parent, end_with_parent, keep_memory_private

logger = logging.getLogger(__name__)
READERS = 2
MOST_GRAMMARS = 64
"""Most compiled grammars of waiting and running requests; a project has at most half. Each takes tens of MB at
worst."""


def main(arguments: list[str] | None = None) -> None:
    keep_memory_private()
    parser = argparse.ArgumentParser(description="Generation worker of a Sarto server; started by it, not by hand.")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the connection")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--queue-limit", type=int, default=256)
    options = parser.parse_args(arguments)
    die_with_parent()
    end_with_parent(0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    engine = Engine(
        EngineOptions(
            threads=options.threads, device=options.device, dtype=options.dtype, queue_limit=options.queue_limit
        )
    )
    asyncio.run(_serve(socket.socket(fileno=options.fd), engine))
    os._exit(0)  # results of the engine have no reader any more


async def _serve(server: socket.socket, engine: Engine) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=server)
    connection = _Connection(engine, writer)
    try:
        while True:
            connection.take(await read_frame(reader))
    except (asyncio.IncompleteReadError, ConnectionError):
        logger.info("server closed the connection")


class _Connection:
    """Converts frames into engine calls and their results into frames. Owned by the event loop's thread."""

    def __init__(self, engine: Engine, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(READERS, "requests")
        self._slots = ProjectSlots(READERS, sys.maxsize)  # how many may wait is the engine's to say
        self._grammars, self._holding = ProjectSlots(MOST_GRAMMARS, engine.options.queue_limit), dict[int, str]()
        self._questions = ThreadPoolExecutor(1, "questions")
        """A thread of their own for queries: one may measure the machine, and must not delay responses."""
        self._open: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, frame: dict[str, Any]) -> None:
        number = int(frame["id"])
        if "cancel" in frame:
            self._close(number)
            self._engine.cancel(number)
            return
        target = read_target(frame["target"])
        self._open.add(number)
        call: Awaitable[dict[str, Any] | None]
        if frame["call"] == "generate":
            assert target is not None
            call = self._take_turn(number, target, frame["request"])
        else:
            work = partial(answer_query, self._engine, frame["call"], frame["request"])
            call = self._loop.run_in_executor(self._questions, work)
        task = self._loop.create_task(self._answer(number, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_turn(self, number: int, target: Target, request: dict[str, Any]) -> None:
        """Wait for a thread; a project has at most half of them, since compiling a grammar takes time."""
        if request["grammar"]:
            await self._grammars.enter(target.asker)
            self._holding[number] = target.asker
            if number not in self._open:
                self._close(number)
                return
        await self._slots.enter(target.asker)
        try:
            if number in self._open:
                await self._loop.run_in_executor(self._readers, self._generate, number, target, request)
        finally:
            self._slots.leave(target.asker)

    def _generate(self, number: int, target: Target, request: dict[str, Any]) -> None:
        """Queue a prepared request; its chunks are sent by `_deliver`."""
        key = AdapterKey(target.adapter_digest, target.adapter_folder) if target.adapter_folder else None

        def deliver(outcome: dict[str, Any] | SartoError | None) -> None:
            self._loop.call_soon_threadsafe(self._deliver, number, outcome)

        self._engine.take(number, target.base, key, PreparedRequest.from_json(request), deliver, target.tenant)

    async def _answer(self, number: int, call: Awaitable[dict[str, Any] | None]) -> None:
        """Send the result of a call and its end; a generation (None) continues in `_deliver`."""
        try:
            answer = await call
        except SartoError as error:
            self._deliver(number, error)
        except Exception:
            incident = uuid4().hex[:12]
            logger.exception("request failed", extra={"incident": incident})
            self._deliver(number, Internal(f"Internal error; incident {incident} is in the worker's log."))
        else:
            if answer is not None:
                self._deliver(number, answer)
                self._deliver(number, None)
            elif number not in self._open:  # cancelled while it was being read
                self._engine.cancel(number)

    def _deliver(self, number: int, outcome: dict[str, Any] | SartoError | None) -> None:
        """Send a chunk, None for the end, or an error; nothing after a cancel."""
        if number not in self._open:
            return
        try:
            if isinstance(outcome, dict):
                self._writer.write(pack({"id": number, "chunk": outcome}))
                return
        except PayloadTooLarge as error:
            outcome = error
        self._close(number)
        end = {"end": True} if outcome is None else {"error": outcome.to_status()}
        self._writer.write(pack({"id": number, **end}))

    def _close(self, number: int) -> None:
        """Send nothing more for a request."""
        self._open.discard(number)
        if (project := self._holding.pop(number, None)) is not None:
            self._grammars.leave(project)


if __name__ == "__main__":
    main()
