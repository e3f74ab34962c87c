"""Keeps what a process holds in memory to itself, keys and prompts among it. Every program of Sarto begins with it."""

from __future__ import annotations

import ctypes
import resource
import sys

PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """No core dump of this process or of what it starts; no other process of its user looks into it (on Linux).

    The second half does not outlive an exec: each program asks for itself."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
