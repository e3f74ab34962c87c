"""What a run gives up before it reads a byte of anyone's data: the network, core dumps, and being looked into.

`python -m sarto.engine.confine MODULE ARGUMENTS` confines itself and becomes that module; without a module it ends with
0 if the network is gone, else with 1 and the reason, which is what the service asks once. It imports nothing heavy
first: a user namespace is given to a process of one thread only, and numpy alone starts more.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import runpy
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_DUMPABLE = 4
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def confine() -> str:
    """Confine this process for good, while it has one thread. Gives why it still has the network, empty if it has not.

    A network namespace of its own holds nothing but a loopback for this process and its children, on which the ranks of
    a run meet. Where that takes more rights than the process has, a user namespace lends them, with the same user.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no network namespaces"
    library = ctypes.CDLL(None, use_errno=True)
    reason = ""
    if library.unshare(CLONE_NEWNET) != 0:
        user, group = os.getuid(), os.getgid()
        if library.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
            try:
                _keep_user(user, group)
            except OSError as error:
                reason = f"no user could be mapped ({error.strerror})"
        else:
            reason = f"namespaces are not allowed here ({os.strerror(ctypes.get_errno())})"
    if not reason:
        _raise_loopback()
    library.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # last: it also closes /proc/self to the mapping above
    return reason


def _keep_user(user: int, group: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)


def _raise_loopback() -> None:
    """Where that is forbidden, a run of several ranks fails by itself, and all others never miss it."""
    request = struct.pack("16sH14x", b"lo", IFF_UP)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


if __name__ == "__main__":
    found = confine()
    if len(sys.argv) == 1:
        sys.exit(found or 0)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
