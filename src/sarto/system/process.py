"""Process settings: end with the parent, notice the end of children, no access for other processes to its memory."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import threading

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
STOPPED = 143
# Looked up at import: little is safe between fork and exec, where `die_with_parent` may be called.
_prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that started it ends; on Linux only.

    Survives an exec, but not a fork. May be called between fork and exec."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, number)


def end_with_parent(code: int = STOPPED) -> None:
    """Exit at once when standard input, a pipe that only the parent holds open, comes to its end."""
    threading.Thread(target=_watch, args=(code,), name="parent-watch", daemon=True).start()


def _watch(code: int) -> None:
    while os.read(0, 1):
        pass
    os._exit(code)


def watch_children() -> socket.socket:
    """A socket that can be read when a child of this process has ended, for a selector. For the main thread."""
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.detach())  # open to the end of the process
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def unwatch_children() -> None:
    """Take back `watch_children`, in a fork that has children of its own."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def keep_memory_private() -> None:
    """No core dump of this process or its children; no access for other processes of its user (on Linux).

    The second part does not survive an exec: each program calls this itself."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _prctl is not None:
        _prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
