"""Named places at which a test may kill the process: around commits, renames, spawns and publications.

A place is named by what happens there and who does it, such as `commit control.leases.claim before`; nobody keeps a
list that could miss one. Does nothing at all unless a test called `arm`, or `SARTO_FAILPOINT` names a place (for child
programs; `executors.clean_environment` keeps it from the runs of a service).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

VARIABLE = "SARTO_FAILPOINT"
"""`NAME` or `NAME*3`: die there at the first or third time. `>FILE`: write every place that is reached to a file."""
NOT_CALLERS = ("sarto.failpoints", "sarto.storage.database", "sarto.storage.buckets")
"""What lies between a place and the function that is named for it."""

Watcher = Callable[[str], None]
_watch: Watcher | None = None


def reached(place: str) -> None:
    """This process is here. Mostly nothing happens."""
    if _watch is not None:
        what, _, when = place.rpartition(" ")
        _watch(f"{what} {_caller()} {when}")


@contextmanager
def around(what: str) -> Iterator[None]:
    """The places before and after a step that must not be seen half done."""
    reached(f"{what} before")
    yield
    reached(f"{what} after")


def arm(watch: Watcher | None) -> None:
    """Have `watch` called with the name of every place this process reaches."""
    global _watch
    _watch = watch


def dying_at(name: str, time: int = 1) -> Watcher:
    """Kills the process the given time it comes to a place, as SIGKILL does: nothing is flushed, nobody is told."""
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
    """Appends the name of every place to a file."""

    def watch(here: str) -> None:
        with open(path, "a") as file:  # noqa: PTH123
            file.write(f"{here}\n")

    return watch


def _caller() -> str:
    """The function of ours that came here, such as `control.leases.claim`."""
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
    wanted = os.environ.get(VARIABLE, "")
    if wanted.startswith(">"):
        arm(writing_to(wanted[1:]))
    elif wanted:
        name, _, time = wanted.partition("*")
        arm(dying_at(name, int(time or 1)))


_from_environment()
