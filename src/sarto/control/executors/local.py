"""`LocalExecutor` starts a run as a child process that dies with its parent. It copies nothing: the run works on the
files where this machine has them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from sarto.contract.places import Places
from sarto.control.executors.executor import RUN, Launch, environment_of
from sarto.system.confinement import confined
from sarto.system.failpoints import around
from sarto.system.files import GrowingFile
from sarto.system.process import die_with_parent


class LocalExecutor:
    """Runs as child processes, each in its own session. On Linux the kernel kills a run when the thread that started it
    ends; elsewhere the run sees its standard input close."""

    def __init__(self, environment: Mapping[str, str], program: Sequence[str] | None = None) -> None:
        self._environment = dict(environment)
        self._program = tuple(program or confined(RUN))

    def start(self, launch: Launch) -> LocalRun:
        with launch.log.open("ab") as output, around("spawn"):
            child = subprocess.Popen(
                [*self._program, str(launch.spec_file), *launch.places.arguments()],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=launch.spec_file.parent,
                env=environment_of(launch.spec_file, self._environment),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return LocalRun(_Child(child), launch.places)


class Process(Protocol):
    """A process of this machine that runs a program."""

    def poll(self) -> int | None: ...

    def stop(self, grace_seconds: float) -> None: ...


class LocalRun:
    """The transport of a run on this machine: its files are in the places of control."""

    def __init__(self, process: Process, places: Places) -> None:
        self._process, self._places = process, places
        self._files: dict[str, GrowingFile] = {}

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self, grace_seconds: float) -> None:
        self._process.stop(grace_seconds)

    def lines(self, name: str) -> list[bytes]:
        return self._files.setdefault(name, GrowingFile(self._places.path(name))).lines()

    def send(self, name: str, line: bytes) -> None:
        with self._places.path(name).open("ab") as file:
            file.write(line + b"\n")

    def fetch(self, name: str) -> None:
        """Nothing to do: the program has written it there."""


class _Child:
    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child, self._lock, self._is_gone = child, threading.Lock(), False

    def poll(self) -> int | None:
        return self._child.poll()

    def stop(self, grace_seconds: float) -> None:
        """Send SIGTERM, and after the grace kill all of its session."""
        child = self._child
        with self._lock:
            if self._is_gone:
                return
            self._is_gone = True
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                pass
        with around("kill"):
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
