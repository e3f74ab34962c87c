"""What a run gives up before it reads a byte of anyone's data: the network, core dumps, being looked into, and memory
and files without end.

`python -m sarto.engine.confine [--data-bytes=N] MODULE ARGUMENTS` confines itself and becomes that module; without a
module it ends with 0 if the network is gone, else with 1 and the reason, which is what the service asks once. It
imports nothing heavy first: a user namespace is given to a process of one thread only, and numpy alone starts more.
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

from sarto.secrecy import keep_memory_private

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MOST_OPEN_FILES = 4096
DATA_BYTES = "--data-bytes="
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def confine() -> str:
    """Confine this process for good, while it has one thread. Gives why it still has the network, empty if it has not.

    A network namespace of its own holds nothing but a loopback for this process and its children, on which the ranks of
    a run meet. Where that takes more rights than the process has, a user namespace lends them, with the same user.
    """
    if not sys.platform.startswith("linux"):
        keep_memory_private()
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
    keep_memory_private()  # last: it also closes /proc/self to the mapping above
    return reason


def limit(data_bytes: int) -> None:
    """What a run may take at most: memory of its own (0: any; mapped weights do not count) and open files."""
    _lower(resource.RLIMIT_NOFILE, MOST_OPEN_FILES)
    if data_bytes:
        _lower(resource.RLIMIT_DATA, data_bytes)


def _lower(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


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
    given = [int(word.removeprefix(DATA_BYTES)) for word in sys.argv[1:2] if word.startswith(DATA_BYTES)]
    limit(*given or [0])
    sys.argv = sys.argv[1 + len(given) :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
