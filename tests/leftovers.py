"""What a session of tests leaves behind: threads that would keep it from ending, and processes nobody waits for.

A leak fails the session and is named at its end; it never holds the end up, and such processes are ended. `conftest`
registers it as a part of pytest; in a session of several processes each tells the first one.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

GRACE_SECONDS = 2.0
"""In which what ends by itself has ended."""
OF_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Helpers that end with this process."""


class Leftovers:
    def __init__(self) -> None:
        self._found: list[str] = []
        self._threads_hold = False
        self._session: pytest.Session | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """All fixtures have ended."""
        self._session = session
        gc.collect()  # ends the threads of pools that nobody holds
        deadline = time.monotonic() + GRACE_SECONDS
        threads = [thread.name for thread in _threads() if _goes_on(thread, deadline)]
        self._threads_hold = bool(threads)
        processes = _processes()
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        here = [f"thread {name}" for name in threads] + [f"process {pid} {words}" for pid, words in processes.items()]
        if isinstance(output := getattr(session.config, "workeroutput", None), dict):
            output["leftovers"] = here  # the first process names them
        else:
            self._found += here
        if self._found and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._found += getattr(node, "workeroutput", {}).get("leftovers", [])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._found:
            terminalreporter.section("left behind by tests, which fails the session", red=True)
            for line in self._found:
                terminalreporter.write_line(line)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Python would wait for these threads for ever."""
        if self._threads_hold and self._session is not None:
            print("these threads do not end:", ", ".join(thread.name for thread in _threads()), file=sys.__stderr__)
            for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
                if stream is not None:
                    stream.flush()
            os._exit(int(self._session.exitstatus) or 1)


def _threads() -> list[threading.Thread]:
    """Those that Python waits for at its end."""
    return [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]


def _goes_on(thread: threading.Thread, deadline: float) -> bool:
    thread.join(max(0.0, deadline - time.monotonic()))
    return thread.is_alive()


def _processes() -> dict[int, str]:
    """Children of this process that run, as far as the system tells, and their command lines."""
    found = {}
    for place in Path("/proc/self/task").glob("*/children"):
        for pid in place.read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if words and not any(name in words for name in OF_PYTHON):  # one that ended has no words
                found[int(pid)] = words[:200]
    return found
