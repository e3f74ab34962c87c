"""Named places at which a test may kill the process: around commits, renames, spawns and publications.

A failpoint is named by its operation and its function, such as `commit control.scheduling.leases.claim before`; there
is no list that could be incomplete. It does nothing unless a test called `arm`, or `SARTO_FAILPOINT` names a place (for
child programs; `executors.clean_environment` removes it for the runs of a service).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

VARIABLE = "SARTO_FAILPOINT"
"""`NAME` or `NAME*3`: die there at the first or third time. `>FILE`: write every reached place to a file. `!FAULT: WORD
WORD`: a fault that the program injects where it calls `planted`."""
FAULT = "!"
NOT_CALLERS = (
    "sarto.system.failpoints",
    "sarto.system.files",
    "sarto.storage.database.database",
    "sarto.storage.buckets.store",
)
"""Functions between a failpoint and the function in its name."""

Watcher = Callable[[str], None]
_watch: Watcher | None = None


def reached(name: str) -> None:
    """Report that this process has reached the failpoint; usually without effect."""
    if _watch is not None:
        what, _, when = name.rpartition(" ")
        _watch(f"{what} {_caller()} {when}")


@contextmanager
def around(what: str) -> Iterator[None]:
    """The failpoints before and after an operation that must be atomic."""
    reached(f"{what} before")
    yield
    reached(f"{what} after")


def arm(watch: Watcher | None) -> None:
    """Call `watch` with the name of every failpoint that this process reaches."""
    global _watch
    _watch = watch


def dying_at(name: str, time: int = 1) -> Watcher:
    """Kills the process at the given visit of a failpoint, like SIGKILL: nothing is flushed, no handler runs."""
    left = [time]
    lock = threading.Lock()

    def watch(here: str) -> None:
        if here == name:
            with lock:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    return watch


def writing_to(path: str) -> Watcher:
    """Appends the name of every failpoint to a file."""

    def watch(here: str) -> None:
        with open(path, "a") as file:  # noqa: PTH123
            file.write(f"{here}\n")

    return watch


def planted(fault: str) -> tuple[str, ...]:
    """The words with which a test injects this fault; empty outside tests."""
    name, _, words = os.environ.get(VARIABLE, "").partition(": ")
    return tuple(words.split()) if name == FAULT + fault else ()


def _caller() -> str:
    """The function of ours that reached it, such as `control.scheduling.leases.claim`."""
    frame = sys._getframe(1)
    while True:
        module = frame.f_globals.get("__name__", "")
        if frame.f_back is None:
            return "outside"
        is_main = module == "__main__" and frame.f_code.co_name not in ("<module>", "main")
        if is_main or (module.startswith("sarto.") and module not in NOT_CALLERS):
            return f"{module.removeprefix('sarto.')}.{frame.f_code.co_qualname}"
        frame = frame.f_back


def _from_environment() -> None:
    value = os.environ.get(VARIABLE, "")
    if value.startswith(">"):
        arm(writing_to(value[1:]))
    elif value and not value.startswith(FAULT):
        name, _, time = value.partition("*")
        arm(dying_at(name, int(time or 1)))


_from_environment()
