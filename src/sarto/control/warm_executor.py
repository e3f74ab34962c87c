"""Runs forked from a process that has torch and the base in memory, so that a run's first step comes at once.

One resident process for each base (`sarto.engine.resident`), at most a few, each ending when nobody has asked it for a
while. A run is a socket here: closing it stops the run, its only word is the exit code, its end the resident's death.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sarto.control.executors import RESIDENT, confined
from sarto.schema.runs import RunSpec

MOST_RESIDENTS = 2
START_SECONDS = 300.0
"""A base that takes longer to read than this is taken for a process that hangs."""
MACHINE_FAULT = 70


@dataclass
class _Resident:
    process: subprocess.Popen[bytes]
    control: socket.socket

    def end(self) -> None:
        """It and its runs; returns when it is gone."""
        self.control.close()
        self.process.kill()
        self.process.wait()


class WarmExecutor:
    """Everything ends with the process that holds this: its sockets close, and residents and runs see that."""

    def __init__(self, environment: Mapping[str, str], idle_seconds: float, data_bytes: int = 0) -> None:
        self._environment = dict(environment)
        self._command = [*confined(RESIDENT, data_bytes), str(idle_seconds)]
        self._starting, self._lock = threading.Lock(), threading.Lock()
        self._residents: dict[str, _Resident] = {}
        self._runs: dict[str, _Run] = {}

    def start(self, handle: str, spec: Path, log: Path) -> None:
        """Raises OSError when there is no process to have."""
        base = RunSpec.model_validate_json(spec.read_bytes()).base.digest
        ours, theirs = socket.socketpair()
        with self._starting, theirs, log.open("ab") as output:
            for attempt in (1, 2):  # the resident found may be ending just now, being idle
                resident = self._resident(base, output.fileno())
                try:
                    socket.send_fds(resident.control, [f"{spec}\n".encode()], [theirs.fileno(), output.fileno()])
                    resident.control.settimeout(START_SECONDS)
                    if resident.control.recv(1):
                        break
                    raise ConnectionResetError("the resident process ended before it started the run")
                except OSError:
                    self._residents.pop(base).end()
                    if attempt == 2:
                        ours.close()
                        raise
        with self._lock:
            self._runs[handle] = _Run(base, ours)

    def poll(self, handle: str) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._runs[handle].code(0.0)

    def stop(self, handle: str, grace_seconds: float) -> None:
        """All a run writes is whole at every moment, so it is killed without asking. Returns when it is gone."""
        with self._lock:
            run = self._runs.pop(handle, None)
        if run is not None:
            run.stop()

    def close(self) -> None:
        with self._starting:
            while self._residents:
                self._residents.popitem()[1].end()

    def _resident(self, base: str, log: int) -> _Resident:
        """The base's own, started where there is none; the longest unused of the others makes room."""
        found = self._residents.pop(base, None)
        if found is None or found.process.poll() is not None:
            if found is not None:
                found.end()
            found = self._start_resident(log)
        self._residents[base] = found
        with self._lock:
            busy = {run.base for run in self._runs.values()}
        for other in [name for name in self._residents if name not in busy | {base}]:
            if len(self._residents) > MOST_RESIDENTS:
                self._residents.pop(other).end()
        return found

    def _start_resident(self, log: int) -> _Resident:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                self._command, stdin=theirs.fileno(), stdout=log, stderr=log,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        return _Resident(process, ours)


class _Run:
    """The near end of a run's connection; the far end is its standard input and the resident's way to answer."""

    def __init__(self, base: str, connection: socket.socket) -> None:
        self.base = base
        self._connection = connection
        self._said = b""
        self._code: int | None = None
        self._lock = threading.Lock()

    def code(self, timeout_seconds: float | None) -> int | None:
        with self._lock:
            self._connection.settimeout(timeout_seconds)
            while self._code is None:
                try:
                    part = self._connection.recv(64)
                except (BlockingIOError, TimeoutError):
                    return None
                except ConnectionResetError:
                    part = b""
                self._said += part
                if self._said.endswith(b"\n"):
                    self._code = int(self._said)
                elif not part:
                    self._code = MACHINE_FAULT
            return self._code

    def stop(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # its far end is closed: it is gone
        self.code(None)
        self._connection.close()
