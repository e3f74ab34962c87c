"""What a run gives up before it reads a byte of anyone's data: the network, core dumps, and being looked into.

`python -m sarto.engine.confine MODULE ARGUMENTS` confines itself and becomes that module; without a module it ends with
0 if the network is gone, else with 1 and the reason, which is what the service asks once. It imports nothing heavy
first: a user namespace is given to a process of one thread only, and numpy alone starts more.
"""

from __future__ import annotations

import ctypes
import os
import resource
import runpy
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_DUMPABLE = 4


def confine() -> str:
    """Confine this process for good, while it has one thread. Gives why it still has the network, empty if it has not.

    A network namespace of its own holds nothing, not even a loopback that is up. Where that takes more rights than the
    process has, a user namespace lends them, with the same user in it.
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
    library.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # last: it also closes /proc/self to the mapping above
    return reason


def _keep_user(user: int, group: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)


if __name__ == "__main__":
    found = confine()
    if len(sys.argv) == 1:
        sys.exit(found or 0)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
