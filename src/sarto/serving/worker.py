"""Entry point of the generation worker: answers the frames of `protocol` from one `Engine`, over an inherited socket.

The one file of this package that loads torch. It ends when its parent is gone: by signal, or because stdin closed.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

from sarto.engine.serving.adapters import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.engine.serving.questions import LONG, answer_question
from sarto.engine.serving.request import count_tokens
from sarto.errors import Internal, PayloadTooLarge, SartoError
from sarto.schema.generation import CountTokensRequest, GenerateContentRequest
from sarto.secrecy import keep_memory_private
from sarto.serving.generator import Target
from sarto.serving.protocol import pack, read_frame, read_target

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> None:
    keep_memory_private()
    parser = argparse.ArgumentParser(description="Generation worker of a Sarto server; started by it, not by hand.")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the connection")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--queue-limit", type=int, default=256)
    given = parser.parse_args(arguments)
    _die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    engine = Engine(
        EngineOptions(threads=given.threads, device=given.device, dtype=given.dtype, queue_limit=given.queue_limit)
    )
    asyncio.run(_serve(socket.socket(fileno=given.fd), engine))
    os._exit(0)  # whatever the engine is computing has no reader any more


def _die_with_parent() -> None:
    """Linux ends us with the thread that started us; everywhere, a closed stdin says that the parent is gone."""
    if hasattr(signal, "SIGKILL") and os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


async def _serve(connection: socket.socket, engine: Engine) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    door = _Door(engine, writer)
    try:
        while True:
            door.take(await read_frame(reader))
    except (asyncio.IncompleteReadError, ConnectionError):
        logger.info("server closed the connection")


class _Door:
    """Turns frames into engine calls and their outcomes into frames. Lives on the event loop's thread."""

    def __init__(self, engine: Engine, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="requests")
        self._answerers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="questions")
        self._open: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, frame: dict[str, Any]) -> None:
        number = int(frame["id"])
        if "cancel" in frame:
            self._open.discard(number)
            self._engine.cancel(number)
            return
        target = read_target(frame["target"])
        self._open.add(number)
        work: Callable[[], dict[str, Any] | None]
        if frame["call"] == "generate":
            pool, work = self._readers, partial(self._generate, number, target, frame["request"])
        elif frame["call"] == "count_tokens":
            pool, work = self._readers, partial(self._count_tokens, target, frame["request"])
        else:
            pool = self._answerers if frame["request"]["method"] in LONG else self._readers
            work = partial(self._inspect, target, frame["request"])
        task = self._loop.create_task(self._answer(number, self._loop.run_in_executor(pool, work)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _generate(self, number: int, target: Target | None, request: dict[str, Any]) -> None:
        """Reads and queues the request; what it generates comes through `_deliver`."""
        assert target is not None
        key = AdapterKey(target.adapter_digest, target.adapter_folder) if target.adapter_folder else None

        def deliver(outcome: dict[str, Any] | SartoError | None) -> None:
            self._loop.call_soon_threadsafe(self._deliver, number, outcome)

        self._engine.submit(number, target.base, key, GenerateContentRequest.read(request), deliver)

    def _count_tokens(self, target: Target | None, request: dict[str, Any]) -> dict[str, Any]:
        assert target is not None
        return count_tokens(self._engine.tokenizer(target.base), CountTokensRequest.read(request)).to_json()

    def _inspect(self, target: Target | None, request: dict[str, Any]) -> dict[str, Any]:
        base = target.base if target is not None else None
        return answer_question(self._engine, base, request["method"], request["payload"])

    async def _answer(self, number: int, call: Awaitable[dict[str, Any] | None]) -> None:
        """Send what a call gives, and its end; a generation (None) goes on by itself."""
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
        """A chunk, or the end: None, or an error. Silent for a request that was cancelled."""
        if number not in self._open:
            return
        try:
            if isinstance(outcome, dict):
                self._writer.write(pack({"id": number, "chunk": outcome}))
                return
        except PayloadTooLarge as error:
            outcome = error
        self._open.discard(number)
        end = {"end": True} if outcome is None else {"error": outcome.to_status()}
        self._writer.write(pack({"id": number, **end}))


if __name__ == "__main__":
    main()
