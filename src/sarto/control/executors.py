"""Where a run runs. `Executor` is the seam; `LocalExecutor` makes it a child process that dies with its parent.

Knows no job and no database: a run is a spec file, its life a handle.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sarto.failpoints import around

PR_SET_PDEATHSIG = 1
RUN, EXPORT, RESIDENT = "sarto.engine.run", "sarto.engine.exports.run", "sarto.engine.resident"
EVALUATION = "sarto.engine.evaluating"
KEPT_VARIABLES = frozenset(
    {
        "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME",
        "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GLIBC_TUNABLES", "CC", "CXX", "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR",
    }
)  # fmt: skip
"""What a run is given of the service's environment: no keys, no tokens, no settings."""

LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"
LOOPBACK_ONLY = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""How threads wait for each other: they look this many times, then sleep."""


class Executor(Protocol):
    """`start` gives a handle that names the run; `poll` its exit code, None while it runs; `stop` ends it for good."""

    def start(self, handle: str, spec: Path, log: Path) -> None: ...

    def poll(self, handle: str) -> int | None: ...

    def stop(self, handle: str, grace_seconds: float) -> None: ...


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """For processes that compute. Idle threads of theirs soon sleep, unless the environment says how they wait: two
    that spin on the same cores, a run and the generation worker, make each other many times slower, and to sleep at
    once costs a lone run a sixth of its speed. The ranks of a run speak over the loopback only."""
    given = {name: environ[name] for name in KEPT_VARIABLES if name in environ}
    return LOOPBACK_ONLY | ({} if WAITING.keys() & given.keys() else WAITING) | given


def confined(module: str, data_bytes: int = 0) -> tuple[str, ...]:
    """The command of a program that gives up the network and more before it begins; see `engine.confine`."""
    return (sys.executable, "-m", "sarto.engine.confine", f"--data-bytes={data_bytes}", module)


class LocalExecutor:
    """Runs as child processes, each in its own session. A run must be started from a thread that outlives it: on Linux
    the kernel kills it when that thread ends; elsewhere it sees its standard input close."""

    def __init__(self, environment: Mapping[str, str], program: Sequence[str] = confined(RUN)) -> None:
        self._environment = dict(environment)
        self._program = tuple(program)
        self._lock = threading.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, handle: str, spec: Path, log: Path) -> None:
        """Start the program on `spec`, its words appended to `log`. Raises OSError when there is no process to have."""
        with log.open("ab") as output, around("spawn"):
            child = subprocess.Popen(
                [*self._program, str(spec)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=spec.parent,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_DIE_WITH_PARENT,
            )
        with self._lock:
            self._children[handle] = child

    def poll(self, handle: str) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._children[handle].poll()

    def stop(self, handle: str, grace_seconds: float) -> None:
        """Ask the run to end, and after the grace kill all of its session. Returns when it is gone."""
        with self._lock:
            child = self._children.pop(handle, None)
        if child is None:
            return
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


def _death_signal() -> Callable[[], None] | None:
    """A function for the child between fork and exec; looked up beforehand, since little is safe to do there."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def die_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return die_with_parent


_DIE_WITH_PARENT = _death_signal()
