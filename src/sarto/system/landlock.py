"""Restrict the files and the processes that this process can access, by the kernel's Landlock (Linux 5.13 and newer).

The numbers are those of `linux/landlock.h`. A restriction holds permanently for this thread and everything that it
starts; a further one can only narrow it. Open files stay usable.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from enum import IntFlag

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""The numbers of the three system calls, the same on every architecture."""
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2
SCOPES_SINCE = 6


class Access(IntFlag):
    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.READ_FILE | Access.READ_DIR
PROGRAM = READ | Access.EXECUTE
DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.IOCTL_DEV
WRITE = (
    READ | Access.WRITE_FILE | Access.REMOVE_DIR | Access.REMOVE_FILE | Access.MAKE_DIR | Access.MAKE_REG
    | Access.MAKE_SYM | Access.MAKE_FIFO | Access.REFER | Access.TRUNCATE
)  # fmt: skip
ON_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
"""Rights that a rule on a file may have; the kernel refuses rights of folders on a file."""
NEWER = {2: Access.REFER, 3: Access.TRUNCATE, 5: Access.IOCTL_DEV}
"""Rights that the first version lacks, by the version that added them."""


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("folder", ctypes.c_int32)]


_call = ctypes.CDLL(None, use_errno=True).syscall


def version() -> int:
    """The kernel's version of Landlock; 0 without Landlock."""
    return max(0, int(_call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(CREATE_RULESET_VERSION))))


def restrict(rules: Iterable[tuple[str | os.PathLike[str], Access]]) -> None:
    """Allow these paths with everything below them, and no others. A missing path is skipped.

    The process must have set no_new_privs. Raises OSError if the kernel has no Landlock or refuses."""
    known = version()
    handled = sum(Access) & ~sum(access for since, access in NEWER.items() if known < since)
    scopes = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if known >= SCOPES_SINCE else 0
    attributes = _Ruleset(handled, 0, scopes)
    # Older kernels know a shorter record; they take a longer one only if the rest of it is zero.
    ruleset = _checked(_call(CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0))
    try:
        for path, access in rules:
            _add(ruleset, path, access & handled)
        _checked(_call(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _add(ruleset: int, path: str | os.PathLike[str], access: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            access &= ON_FILES
        rule = _PathRule(access, opened)
        _checked(_call(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0))
    finally:
        os.close(opened)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
