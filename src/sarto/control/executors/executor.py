"""The seam between control and the machine on which a program of the engine works.

`Executor` stages the inputs of a program and starts it. `RunTransport` is all that control knows of a program that was
started: whether it lives, its lines, its files, and how to stop it. Neither side assumes a shared disk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sarto.contract.places import Places
from sarto.system import processor

RUN, EXPORT, RESIDENT = (
    "sarto.engine.programs.tune",
    "sarto.engine.programs.export",
    "sarto.engine.programs.warm_process",
)


EVALUATION = "sarto.engine.programs.evaluate"


KEPT_VARIABLES = frozenset(
    {
        "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME",
        "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GLIBC_TUNABLES", "CC", "CXX", "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR", "ATEN_CPU_CAPABILITY", processor.VARIABLE,
    }
)  # fmt: skip
"""Variables of the service's environment that a run gets: no keys, no tokens, no settings."""


LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"


LOOPBACK_ONLY = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}


WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""How OpenMP threads wait: they spin this many times, then sleep."""


@dataclass(frozen=True)
class Launch:
    """A program to start."""

    handle: str
    """Names the run among all of its executor: a job or an operation, and its lease epoch."""
    spec: str
    """File name of the spec; the inputs of the program are `files_of` the spec."""
    places: Places
    """Where this machine has the files that the spec names, and where `fetch` puts those that the program writes."""
    log: Path
    """Gets what the program prints."""

    @property
    def spec_file(self) -> Path:
        return self.places.path(self.spec)


class RunTransport(Protocol):
    """A program that was started. Threads may share it, as long as one thread reads the lines of one file."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the program lives."""
        ...

    def stop(self, grace_seconds: float) -> None:
        """End the program, after the grace by force. Returns when it is gone; may be called again."""
        ...

    def lines(self, name: str) -> list[bytes]:
        """The whole lines that the program has appended to a file since the last call; none while there is no file."""
        ...

    def send(self, name: str, line: bytes) -> None:
        """Append a line to a file that the program reads."""
        ...

    def fetch(self, name: str) -> None:
        """Bring a file or folder that the program has written to its path in `Launch.places`, as it is at this moment
        or later. Nothing happens where there is none. In a resume folder the resume point comes last. Raises OSError.
        """
        ...


class Executor(Protocol):
    def start(self, launch: Launch) -> RunTransport:
        """Stage the inputs and start the program, from a thread that outlives it. A run may end when its transport is
        dropped. Raises OSError: nothing started."""
        ...


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment of computing processes. Idle threads spin shortly and then sleep, unless the environment sets this.
    Two processes that spin on the same cores, such as a run and the generation worker, make each other many times
    slower; sleeping at once costs a lone run a sixth of its speed. The ranks of a run communicate over the loopback
    only."""
    variables = {name: environ[name] for name in KEPT_VARIABLES if name in environ}
    return LOOPBACK_ONLY | ({} if WAITING.keys() & variables.keys() else WAITING) | variables


def environment_of(spec: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment of a program with the instruction level of its spec, which must be set before torch is loaded."""
    level = json.loads(spec.read_bytes()).get("instructions", {}).get("level")
    return {**environment, processor.VARIABLE: level} if level else dict(environment)
