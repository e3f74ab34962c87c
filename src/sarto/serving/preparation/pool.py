"""The pool of processes for computations on user input (`program` is the other end).

A request first takes a seat. A project has at most half of the slots, and projects take turns. Custom bases have slots
and processes of their own, so that a hostile template delays nobody else; long work has a third group. A process
answers one request at a time, within limits. Beyond a limit it is killed, and the caller gets the reason. When the
caller disconnects, the work is killed. All calls must come from one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from sarto.contract.common import BaseWeights, Files
from sarto.contract.dataset_query import DatasetQuery
from sarto.errors import RETRY_INFO, Internal, InvalidArgument, ResourceExhausted, Unavailable, from_status
from sarto.serving.protocol import pack, read_frame
from sarto.system.confinement import confined

logger = logging.getLogger(__name__)
PROGRAM = "sarto.serving.preparation.program"
OUT_OF_MEMORY = 72
MOST_SEATS, LONG_SLOTS = 8, 2
MOST_IDLE = 8
NICENESS = 10
GRACE_SECONDS = 0.2
"""Time in which a short request may finish after its caller disconnected, so that its process need not be replaced."""
WALL_FACTOR = 5.0
"""The wall-clock deadline as a multiple of processor time, for a busy machine."""
LOAD_SECONDS, LOAD_BYTES = 20.0, 3 << 30
"""Limits for loading a base's tokenizer and template."""
PROMPTS = frozenset(["read", "render_prompt", "count_tokens", "compute_tokens", "token_texts"])
CHECKS = frozenset(["data_report", "show_row"])
SCORES = "scores"


@dataclass(frozen=True)
class PreparingLimits:
    """Limits of processor time and of memory: for one prompt, and for a check of a dataset or a score."""

    prompt_seconds: float = 2.0
    prompt_bytes: int = 512 << 20
    check_seconds: float = 600.0
    check_bytes: int = 4 << 30
    score_seconds: float = 30.0
    waiting: int = 256
    """Most waiting requests of one project; further ones get a time to retry."""


class ProjectSlots:
    """Slots for concurrent work: a project has at most half, and projects take turns."""

    def __init__(self, count: int, most_waiting: int) -> None:
        self._free, self._share, self._most_waiting = count, max(1, count // 2), most_waiting
        self._taken: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def enter(self, project: str) -> None:
        """Wait for a slot. Raises ResourceExhausted when too many requests of the project wait. The caller must call
        `leave`."""
        queue = self._waiting.setdefault(project, deque())
        if len(queue) >= self._most_waiting:
            detail = {"@type": RETRY_INFO, "retryDelay": "2s"}
            raise ResourceExhausted(f"{len(queue)} requests of this project are already waiting.", [detail])
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(project)
            raise

    def leave(self, project: str) -> None:
        self._free += 1
        self._taken[project] -= 1
        if not self._taken[project]:
            del self._taken[project]
        self._admit()

    def _admit(self) -> None:
        while self._free and (project := self._next()) is not None:
            turn = self._waiting[project].popleft()
            self._waiting.move_to_end(project)
            if not turn.done():
                self._free -= 1
                self._taken[project] += 1
                turn.set_result(None)
        for project in [project for project, queue in self._waiting.items() if not queue]:
            del self._waiting[project]

    def _next(self) -> str | None:
        free = (project for project, queue in self._waiting.items() if queue and self._taken[project] < self._share)
        return next(free, None)


@dataclass(eq=False)
class _Process:
    """A forked process and our end of its connection."""

    base: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ended: asyncio.Future[int | None]
    """Its exit code, negative for a signal; None if the fork server ended with it."""
    pid: int | None = None
    is_doomed: bool = False

    def kill(self) -> None:
        self.is_doomed = True
        self.writer.close()
        if self.pid is not None and not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


@dataclass(eq=False)
class _ForkServer:
    process: asyncio.subprocess.Process
    requests: socket.socket
    children: dict[int, _Process] = field(default_factory=dict)
    reading: asyncio.Task[None] | None = None
    count: int = 0


class PreparationPool:
    """The pool. Its first process starts at the first request."""

    def __init__(
        self,
        log_file: Path,
        limits: PreparingLimits,
        environment: Mapping[str, str] | None = None,
        files: Files | None = None,
    ) -> None:
        """`environment` is that of the processes; empty by default. `files` are those of all requests; each process is
        confined to its own."""
        self._log_file, self._limits = log_file, limits
        self._program = confined(PROGRAM, read=files.read, write=files.write) if files else confined(PROGRAM)
        self._environment = dict(environment or {}) | {
            "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(MOST_SEATS, max(4, cores))
        self._prompts, self._own, self._long = (
            ProjectSlots(number, limits.waiting) for number in (count, count // 2, LONG_SLOTS)
        )
        self._fork_server: _ForkServer | None = None
        self._starting = asyncio.Lock()
        self._idle: list[_Process] = []
        self._tasks: set[asyncio.Task[dict[str, Any]]] = set()
        self._is_closed = False

    async def ask(self, base: BaseWeights | None, project: str, method: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The result of the method. Raises its errors, InvalidArgument beyond a limit, ResourceExhausted when too many
        requests of the project wait."""
        is_short = method in PROMPTS
        slots = (self._own if base is not None and base.is_custom else self._prompts) if is_short else self._long
        await slots.enter(project)
        work = asyncio.create_task(self._work(base, method, payload))
        self._tasks.add(work)

        def done(_: object) -> None:
            self._tasks.discard(work)
            slots.leave(project)
            if not work.cancelled():
                work.exception()  # retrieved, so that asyncio logs no unretrieved exception

        work.add_done_callback(done)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(GRACE_SECONDS if is_short else 0.0, work.cancel)
            raise

    async def close(self) -> None:
        """Kill every process, also during work."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self._starting:
            fork_server = self._fork_server
            if fork_server is None:
                return
            for child in list(fork_server.children.values()):
                child.kill()
            with contextlib.suppress(ProcessLookupError):
                fork_server.process.kill()
            if fork_server.reading is not None:
                await fork_server.reading

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes, for operators and tests."""
        children = self._fork_server.children.values() if self._fork_server else ()
        return [child.pid for child in children if child.pid is not None]

    async def _work(self, base: BaseWeights | None, method: str, payload: dict[str, Any]) -> dict[str, Any]:
        process = self._take_idle(base) if method in PROMPTS else None
        try:
            if process is None:
                process = await self._start(base, method, payload)
                if base is not None:
                    await self._exchange(process, base, "load", {})
            answer = await self._exchange(process, base, method, payload)
        except BaseException:
            if process is not None:
                process.kill()
            raise
        if method in PROMPTS and base is not None:
            self._idle.append(process)
            if len(self._idle) > MOST_IDLE:
                self._idle.pop(0).kill()
        else:
            process.kill()
        if "error" in answer:
            raise from_status(answer["error"])
        result: dict[str, Any] = answer["answer"]
        return result

    async def _exchange(
        self, process: _Process, base: BaseWeights | None, method: str, payload: dict[str, Any]
    ) -> dict[str, Any]:
        """Send a request and return its response, or raise the reason why there is none."""
        seconds, more_bytes = self._allowed(method)
        about = base.model_dump() if base is not None else None
        frame = {"base": about, "method": method, "payload": payload, "seconds": seconds, "bytes": more_bytes}
        try:
            process.writer.write(pack(frame))
            async with asyncio.timeout(seconds * WALL_FACTOR):
                answer = await read_frame(process.reader)
        except TimeoutError:
            raise _too_long(method, seconds) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._reason(process, method, seconds, more_bytes) from None
        if method == "load" and "error" in answer:
            raise from_status(answer["error"])
        return answer

    def _allowed(self, method: str) -> tuple[float, int]:
        limits = self._limits
        if method == "load":
            return LOAD_SECONDS, LOAD_BYTES
        if method in PROMPTS:
            return limits.prompt_seconds, limits.prompt_bytes
        return (limits.check_seconds if method in CHECKS else limits.score_seconds), limits.check_bytes

    async def _reason(self, process: _Process, method: str, seconds: float, most: int) -> Exception:
        """The reason why a process ended before it responded."""
        if self._is_closed:
            return Unavailable("The service is stopping.")
        code = None
        with contextlib.suppress(TimeoutError):
            code = await asyncio.wait_for(asyncio.shield(process.ended), 5.0)
        if code == -signal.SIGPROF:
            return _too_long(method, seconds)
        if code in (OUT_OF_MEMORY, -signal.SIGABRT, -signal.SIGKILL):
            return InvalidArgument(
                f"{_WHAT.get(method, _PROMPT)} took more than {most >> 20} MiB of memory and was stopped; {_REMEDY}."
            )
        logger.error("preparation process ended", extra={"exit_code": code, "method": method})
        return Internal(f"The process that read this request ended (exit code {code}; see {self._log_file}).")

    def _take_idle(self, base: BaseWeights | None) -> _Process | None:
        """The most recently used idle process of that base, since it has the most in its caches."""
        self._idle = [process for process in self._idle if not process.ended.done() and not process.is_doomed]
        for process in reversed(self._idle):
            if base is not None and process.base == base.digest:
                self._idle.remove(process)
                return process
        return None

    async def _start(self, base: BaseWeights | None, method: str, payload: dict[str, Any]) -> _Process:
        files = Files(read=[], write=[])
        if method in CHECKS:
            files = DatasetQuery.model_validate(payload["question"]).files()
        read = [*files.read, *([base.folder] if base is not None else [])]
        fork_server = await self._running()
        ours, theirs = socket.socketpair()
        with theirs:
            number = fork_server.count = fork_server.count + 1
            shared = base.model_dump() if base is not None and not base.is_custom else None
            niceness = 0 if method in PROMPTS else NICENESS
            fork_request = {"id": number, "base": shared, "niceness": niceness, "read": read, "write": files.writable}
            message = orjson.dumps(fork_request)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            ended = asyncio.get_running_loop().create_future()
            process = _Process(base.digest if base is not None else "", reader, writer, ended)
            fork_server.children[number] = process
            socket.send_fds(fork_server.requests, [message], [theirs.fileno()])
        return process

    async def _running(self) -> _ForkServer:
        async with self._starting:
            if self._is_closed:
                raise Unavailable("The service is stopping.")
            if self._fork_server is None:
                self._fork_server = await self._begin()
            return self._fork_server

    async def _begin(self) -> _ForkServer:
        kind = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._program, f"--fd={theirs.fileno()}",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                pass_fds=(theirs.fileno(),), start_new_session=True, env=self._environment,
            )  # fmt: skip
        fork_server = _ForkServer(process, ours)
        fork_server.reading = asyncio.create_task(self._read(fork_server))
        return fork_server

    async def _read(self, fork_server: _ForkServer) -> None:
        """Handle the fork server's reports until it ends; then the next request starts another."""
        assert fork_server.process.stdout is not None
        async for line in fork_server.process.stdout:
            report = orjson.loads(line)
            process = fork_server.children[report["id"]]
            if "pid" in report:
                process.pid = report["pid"]
                if process.is_doomed:
                    process.kill()
                continue
            del fork_server.children[report["id"]]
            process.ended.set_result(report["ended"])
            process.writer.close()
        if self._fork_server is fork_server:
            self._fork_server = None
        fork_server.requests.close()
        code = await fork_server.process.wait()
        if not self._is_closed:
            logger.warning("fork server of preparation ended", extra={"exit_code": code})
        for process in fork_server.children.values():
            process.ended.set_result(None)
            process.writer.close()


_PROMPT = "Reading this request (its texts and schema, the model's tokenizer and chat template)"
_WHAT = {
    "load": "Reading the base model's tokenizer and chat template",
    "data_report": "Checking this dataset",
    "show_row": "Reading this row",
    SCORES: "Computing this metric",
}
_REMEDY = "send less, or something simpler"


def _too_long(method: str, seconds: float) -> InvalidArgument:
    what = _WHAT.get(method, _PROMPT)
    return InvalidArgument(f"{what} took more than {seconds:g} s of processor time and was stopped; {_REMEDY}.")
