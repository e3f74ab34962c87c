"""Runs snippets of users, each in processes of its own (`code_worker`), which stay warm between calls.

A worker handles one call after another. Beyond a limit of time, memory or length it is killed, which fails its call
only; the next call gets a new one. The variables of a snippet's module live as long as its worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import orjson

from sarto.errors import FailedPrecondition
from sarto.rewards.failures import CODE_FAILURE, KINDS, LIMIT
from sarto.rewards.scoring import Call, Scored
from sarto.system.confinement import confined
from sarto.system.daemon_threads import DaemonThreads

PROGRAM = "sarto.rewards.code_worker"
START_SECONDS, END_SECONDS = 60.0, 1.0
MOST_REPLY = 64 << 10
MOST_KEPT = 16
"""Most idle workers of a thread: one for each snippet of a composite reward."""
MOST_WORDS = 1_000
GIVE_UP = 8
"""Calls of a batch that run into a limit, none having succeeded, after which its other calls are not made."""
ENVIRONMENT = {
    "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip
"""The whole environment of a worker. Sets of texts have the same order in all of them, and no thread can start."""


@dataclass(frozen=True)
class CodeLimits:
    """Limits of a call: wall-clock time, and memory of its process."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30


@dataclass
class _Batch:
    """The calls of one `execute`."""

    is_cancelled: bool = False
    successes: int = 0
    at_limit: int = 0
    broken: Scored | None = None
    """The failure of the snippet's own lines; it is that of every call."""
    workers: set[_Worker] = field(default_factory=set)
    """Those with a call of the batch."""

    @property
    def has_given_up(self) -> bool:
        return not self.successes and self.at_limit >= GIVE_UP


class CodeWorkers:
    """Thread-safe. With `keep`, a worker stays for further calls of its snippet; without, it handles one call."""

    def __init__(self, workers: int, limits: CodeLimits, *, keep: bool) -> None:
        self._limits, self._keep = limits, keep
        self._threads = DaemonThreads(workers, "reward-code")  # a worker dies with the thread that started it
        self._own = threading.local()
        self._alive: set[_Worker] = set()
        self._changing = threading.Lock()
        self._is_closed = False

    async def execute(self, snippet: str, calls: Sequence[Call]) -> list[Scored]:
        """One result for each call, in order, not yet clipped. Raises FailedPrecondition on a machine that cannot
        confine user code. When it is cancelled, its workers are killed."""
        batch = _Batch()
        running = [self._threads.submit(self._call, snippet, call, batch) for call in calls]
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, running))
        finally:
            batch.is_cancelled = True
            with self._changing:
                for worker in batch.workers:
                    worker.kill()

    def close(self) -> None:
        """Kill all workers, and return when they are gone."""
        with self._changing:
            self._is_closed = True
            for worker in self._alive:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._alive:
            worker.wait()

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes, for operators and tests."""
        with self._changing:
            return [worker.pid for worker in self._alive]

    def _call(self, snippet: str, call: Call, batch: _Batch) -> Scored:
        if batch.broken is not None:
            return batch.broken
        if batch.has_given_up or batch.is_cancelled:
            return Scored(None, LIMIT, f"Not called: the first {GIVE_UP} calls all ran into a limit.")
        began = time.perf_counter()
        scored = self._scored(snippet, call, batch)
        batch.successes += scored.reward is not None
        batch.at_limit += scored.failure == LIMIT
        return Scored(scored.reward, scored.failure, scored.message, time.perf_counter() - began)

    def _scored(self, snippet: str, call: Call, batch: _Batch) -> Scored:
        worker = self._kept.pop(snippet, None)
        is_new = worker is None
        worker = worker or _Worker(self._limits.memory_bytes)
        self._enter(worker, batch)
        try:
            if is_new:
                worker.wait_until_ready()
                worker.load(snippet, self._limits.seconds)
            return Scored(worker.evaluate(call, self._limits.seconds))
        except _Failed as failed:
            if failed.is_of_snippet:
                batch.broken = failed.scored
            if not failed.is_reported:
                worker.kill()
            return failed.scored
        finally:
            self._leave(worker, snippet, batch)

    @property
    def _kept(self) -> dict[str, _Worker]:
        """The idle workers of this thread by their snippets, the oldest first."""
        found: dict[str, _Worker] = self._own.__dict__.setdefault("workers", {})
        return found

    def _enter(self, worker: _Worker, batch: _Batch) -> None:
        with self._changing:
            self._alive.add(worker)
            batch.workers.add(worker)
            if self._is_closed or batch.is_cancelled:
                worker.kill()

    def _leave(self, worker: _Worker, snippet: str, batch: _Batch) -> None:
        with self._changing:
            batch.workers.discard(worker)
        if self._keep and worker.is_usable:
            self._kept[snippet] = worker
            if len(self._kept) <= MOST_KEPT:
                return
            worker = self._kept.pop(next(iter(self._kept)))
        self._end(worker)

    def _end(self, worker: _Worker) -> None:
        with self._changing:
            self._alive.discard(worker)
        worker.kill()
        worker.wait()


class _Failed(Exception):
    """A call without a reward."""

    def __init__(self, failure: str, message: str, *, is_reported: bool = False) -> None:
        super().__init__(message)
        self.scored = Scored(None, failure, message)
        self.is_reported, self.is_of_snippet = is_reported, False


class _Worker:
    """A process, used by one thread at a time; only `kill` may be called from others."""

    def __init__(self, memory_bytes: int) -> None:
        command = [*confined(PROGRAM), str(memory_bytes)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd="/", start_new_session=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        self._numbers = count(1)
        self.pid = self._process.pid
        self.is_usable = True

    def wait_until_ready(self) -> None:
        reply = self._exchange(None, START_SECONDS)
        if "missing" in reply:
            self.kill()
            raise FailedPrecondition(f"User code is not run on a machine that cannot confine it: {reply['missing']}.")

    def load(self, snippet: str, seconds: float) -> None:
        """Run the snippet's own lines. Raises _Failed, which is the failure of every call."""
        try:
            reply = self._exchange({"code": snippet}, seconds)
            if "failure" in reply:
                raise _failed(reply)
        except _Failed as failed:
            self.is_usable, failed.is_of_snippet = False, True
            raise

    def evaluate(self, call: Call, seconds: float) -> float:
        number = next(self._numbers)
        example, response = call
        reply = self._exchange({"number": number, "example": example, "response": response}, seconds)
        if reply.get("number") != number:
            raise _Failed(CODE_FAILURE, "The snippet wrote into the answers of its process.")
        if "failure" in reply:
            if reply["failure"] == LIMIT:  # of memory, much of which it may still hold
                self.is_usable = False
            raise _failed(reply)
        try:
            return float(str(reply["reward"]))
        except (KeyError, ValueError):
            raise _Failed(CODE_FAILURE, "The snippet wrote into the answers of its process.") from None

    def kill(self) -> None:
        """May be called again, and from another thread."""
        self.is_usable = False
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """After `kill`."""
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _exchange(self, request: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Write a line, if there is a request, and read a line. Raises _Failed."""
        written = b"" if request is None else json.dumps(request).encode() + b"\n"  # orjson refuses half surrogates
        line = self._read(memoryview(written), time.monotonic() + seconds, seconds)
        try:
            reply = orjson.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise _Failed(CODE_FAILURE, "The snippet wrote into the answers of its process.")
        return reply

    def _read(self, left: memoryview, until: float, seconds: float) -> bytes:
        poller = select.poll()
        poller.register(self._replies, select.POLLIN)
        if left:
            poller.register(self._requests, select.POLLOUT)
        read = bytearray()
        while not read.endswith(b"\n") or left:
            ready = dict(poller.poll(max(0.0, until - time.monotonic()) * 1000))
            if not ready:
                raise _Failed(LIMIT, f"The snippet took more than {seconds:g} seconds.")
            if self._requests in ready and left:
                try:
                    left = left[os.write(self._requests, left) :]
                except BrokenPipeError:
                    left = left[:0]  # it has ended, which reading tells
                if not left:
                    poller.unregister(self._requests)
            if self._replies in ready:
                part = os.read(self._replies, MOST_REPLY)
                read += part
                if not part:
                    raise self._ended()
                if len(read) > MOST_REPLY:
                    raise _Failed(CODE_FAILURE, f"The snippet wrote more than {MOST_REPLY >> 10} KiB.")
        return bytes(read)

    def _ended(self) -> _Failed:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self.kill()
        code = self._process.wait()
        how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
        return _Failed(CODE_FAILURE, f"The process of the snippet ended {how}.")


def _failed(reply: Mapping[str, Any]) -> _Failed:
    """The failure that a snippet's process reports; its words are the user's."""
    kind, words = str(reply["failure"]), str(reply.get("message", ""))[:MOST_WORDS]
    return _Failed(kind if kind in KINDS else CODE_FAILURE, words, is_reported=True)
