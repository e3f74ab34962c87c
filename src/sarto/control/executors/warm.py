"""`WarmExecutor` forks a run from a resident process that has torch and the base in memory. Its first step starts
sooner.

There is one resident process for each base (`sarto.engine.programs.warm_process`), at most a few. Each ends after an
idle time. A run is a socket: closing it stops the run, and the run's exit code is its only message. Runs on a custom
base are started cold: its tokenizer and template may be hostile, and a resident process can read the files of other
runs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from sarto.contract.common import Files
from sarto.contract.programs import read_spec
from sarto.contract.tuning_run import RunSpec
from sarto.control.executors.executor import RESIDENT, RUN, Launch, environment_of
from sarto.control.executors.local import LocalExecutor, LocalRun
from sarto.system.confinement import confined

MOST_RESIDENTS = 2
START_SECONDS = 300.0
"""Longest time for loading a base; beyond it the process counts as hanging."""
MACHINE_FAULT = 70


@dataclass
class _ResidentProcess:
    process: subprocess.Popen[bytes]
    control: socket.socket

    def end(self) -> None:
        """End the process and its runs, and wait for that."""
        self.control.close()
        self.process.kill()
        self.process.wait()


class WarmExecutor:
    """Everything ends with the owning process: its sockets close, and resident processes and runs detect that."""

    def __init__(self, environment: Mapping[str, str], idle_seconds: float, files: Files, data_bytes: int = 0) -> None:
        """`files` has those of all runs; each run is then confined to its own."""
        self._environment = dict(environment)
        self._idle_seconds, self._files, self._data_bytes = idle_seconds, files, data_bytes
        self._cold = LocalExecutor(environment, confined(RUN, data_bytes))
        self._starting, self._lock = threading.Lock(), threading.Lock()
        self._residents: dict[str, _ResidentProcess] = {}
        self._bases = Counter[str]()
        """Runs of each base that were started and not stopped."""

    def start(self, launch: Launch) -> LocalRun:
        arguments = [str(launch.spec_file), *launch.places.arguments()]
        spec = read_spec(RunSpec, arguments)
        if spec.base.is_custom or spec.parameters.is_full:  # full tuning uses no base in memory
            return self._cold.start(launch)
        name = f"{spec.base.digest} {spec.instructions.level}"
        request = json.dumps(arguments).encode()
        ours, theirs = socket.socketpair()
        with self._starting, theirs, launch.log.open("ab") as output:
            for attempt in (1, 2):  # the resident found may be ending just now, being idle
                resident = self._resident(name, launch, spec.base.folder, output.fileno())
                try:
                    socket.send_fds(resident.control, [request], [theirs.fileno(), output.fileno()])
                    resident.control.settimeout(START_SECONDS)
                    if resident.control.recv(1):
                        break
                    raise ConnectionResetError("the resident process ended before it started the run")
                except OSError:
                    self._residents.pop(name).end()
                    if attempt == 2:
                        ours.close()
                        raise
            with self._lock:
                self._bases[name] += 1
        return LocalRun(_Forked(ours, partial(self._ended, name)), launch.places)

    def close(self) -> None:
        with self._starting:
            while self._residents:
                self._residents.popitem()[1].end()

    def _ended(self, name: str) -> None:
        with self._lock:
            self._bases[name] -= 1

    def _resident(self, name: str, launch: Launch, folder: str, log: int) -> _ResidentProcess:
        """The base's resident process, started if there is none; the least recently used one is ended for it."""
        resident = self._residents.pop(name, None)
        if resident is None or resident.process.poll() is not None:
            if resident is not None:
                resident.end()
            resident = self._start_resident(launch, folder, log)
        self._residents[name] = resident
        with self._lock:
            busy = {base for base, count in self._bases.items() if count}
        for other in [each for each in self._residents if each not in busy | {name}]:
            if len(self._residents) > MOST_RESIDENTS:
                self._residents.pop(other).end()
        return resident

    def _start_resident(self, launch: Launch, folder: str, log: int) -> _ResidentProcess:
        read, write = [folder, *self._files.read], self._files.writable
        command = [*confined(RESIDENT, self._data_bytes, read, write), str(self._idle_seconds)]
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=log, stderr=log,
                env=environment_of(launch.spec_file, self._environment), start_new_session=True,
            )  # fmt: skip
        return _ResidentProcess(process, ours)


class _Forked:
    """The near end of a run's connection; the far end is its standard input, over which the resident process
    reports."""

    def __init__(self, connection: socket.socket, ended: Callable[[], None]) -> None:
        self._connection, self._ended = connection, ended
        self._is_stopped = False
        self._said = b""
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._wait(0.0)

    def stop(self, grace_seconds: float) -> None:
        """All that a run writes is whole at every moment, so it is killed at once."""
        if self._is_stopped:
            return
        self._is_stopped = True
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # its far end is closed: the run has ended
        self._wait(None)
        self._connection.close()
        self._ended()

    def _wait(self, timeout_seconds: float | None) -> int | None:
        with self._lock:
            if self._code is None:
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
