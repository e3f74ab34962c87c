"""Refuse system calls that a computing process does not need, by a seccomp filter (Linux, x86-64 and aarch64).

`refuse_calls` refuses the dangerous ones, `allow_only` all but a few. The filter is a classic BPF program over
`struct seccomp_data`. It holds permanently for this thread and everything that it starts. A refused call fails with
EPERM; the process continues.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in `struct seccomp_data`; the low half of an argument comes first on both architectures."""
X32_CALLS = 0x40000000
"""Calls of x86-64's second ABI, which the table below does not contain."""
NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEW… of every namespace, for `clone`."""

# name: (x86-64, aarch64); -1 where an architecture has no such call.
REFUSED = {
    # Other processes: their memory, registers, descriptors.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272), "process_madvise": (440, 440), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # Rights and owners of files, which Landlock does not cover.
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1),
    "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    # File systems and namespaces.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # The kernel itself, and its parts with a long history of faults.
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116), "quotactl": (179, 60),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, -1), "ioperm": (173, -1),
}  # fmt: skip
COMPUTING = {
    # Memory, and what the interpreter does at any time.
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "futex": (202, 98), "membarrier": (324, 283), "getrandom": (318, 278), "exit": (60, 93),
    "exit_group": (231, 94), "restart_syscall": (219, 128), "rseq": (334, 293),
    # Reading files that are open or that Landlock allows.
    "read": (0, 63), "readv": (19, 65), "pread64": (17, 67), "write": (1, 64), "writev": (20, 66), "close": (3, 57),
    "lseek": (8, 62), "open": (2, -1), "openat": (257, 56), "fstat": (5, 80), "stat": (4, -1), "lstat": (6, -1),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, -1), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, -1), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17),
    # Facts about itself, time, and its own alarms.
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179), "getcpu": (309, 168),
    "sched_getaffinity": (204, 123), "sched_yield": (24, 124), "getrlimit": (97, 163), "prlimit64": (302, 261),
    "getrusage": (98, 165), "times": (100, 153), "time": (201, -1), "gettimeofday": (96, 169),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "alarm": (37, -1), "setitimer": (38, 103), "getitimer": (36, 102), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "select": (23, -1),
    "pselect6": (270, 72), "poll": (7, -1), "ppoll": (271, 73),
}  # fmt: skip
"""The calls of a process that computes. `prlimit64` is for itself only, by the filter of `refuse_calls` beneath."""
SOCKET, PRLIMIT, CLONE, CLONE3 = (41, 198), (302, 261), (56, 220), (435, 435)
ALLOWED_SOCKETS = (socket.AF_INET, socket.AF_INET6, 16)
"""16 is AF_NETLINK, which lists the addresses of the sandbox's loopback. AF_UNIX is absent: a socket in the file system
is reachable from every network namespace."""
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


@dataclass(frozen=True)
class _Jump:
    """A comparison of the last loaded value with `value`, and the labels of both outcomes; None is the next step."""

    operation: int
    value: int
    when_true: str | None = None
    when_false: str | None = None


_Step = _Jump | tuple[int, int] | str
"""A comparison, an instruction (operation, value), or a label."""


def is_known() -> bool:
    """Whether there is a filter for this architecture."""
    return platform.machine() in ARCHITECTURES


def refuse_calls() -> None:
    """Install the filter. Raises OSError if the kernel refuses; the process must have set no_new_privs."""
    _install(_steps(*ARCHITECTURES[platform.machine()]))


def allow_only(calls: Mapping[str, tuple[int, int]]) -> None:
    """Refuse all other calls, on top of the filters that are installed. Raises OSError like `refuse_calls`."""
    column, architecture = ARCHITECTURES[platform.machine()]
    numbers = sorted({numbers[column] for numbers in calls.values()} - {-1})
    _install([
        (LOAD, ARCHITECTURE),
        _Jump(JUMP_EQUAL, architecture, when_false="kill"),
        (LOAD, NUMBER),
        *(_Jump(JUMP_EQUAL, number, when_true="allow") for number in numbers),
        (RETURN, FAIL | errno.EPERM),
        "kill",
        (RETURN, KILL_PROCESS),
        "allow",
        (RETURN, ALLOW),
    ])  # fmt: skip


def _install(steps: list[_Step]) -> None:
    program = _assemble(steps)
    code = ctypes.create_string_buffer(program, len(program))
    record = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, MODE_FILTER, record, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _steps(column: int, architecture: int) -> list[_Step]:
    refused = sorted({numbers[column] for numbers in REFUSED.values()} - {-1})
    return [
        (LOAD, ARCHITECTURE),
        _Jump(JUMP_EQUAL, architecture, when_false="kill"),
        (LOAD, NUMBER),
        _Jump(JUMP_AT_LEAST, X32_CALLS, when_true="refuse"),
        *(_Jump(JUMP_EQUAL, number, when_true="refuse") for number in refused),
        # Its flags lie in memory, where a filter cannot look; the C library falls back to clone.
        _Jump(JUMP_EQUAL, CLONE3[column], when_true="absent"),
        _Jump(JUMP_EQUAL, CLONE[column], when_false="no clone"),
        (LOAD, FIRST_ARGUMENT),
        _Jump(JUMP_ANY_BIT, NAMESPACE_FLAGS, when_true="refuse", when_false="allow"),
        "no clone",
        _Jump(JUMP_EQUAL, PRLIMIT[column], when_false="no prlimit"),
        (LOAD, FIRST_ARGUMENT),  # 0 is the process itself
        _Jump(JUMP_EQUAL, 0, when_true="allow", when_false="refuse"),
        "no prlimit",
        _Jump(JUMP_EQUAL, SOCKET[column], when_false="allow"),
        (LOAD, FIRST_ARGUMENT),
        *(_Jump(JUMP_EQUAL, family, when_true="allow") for family in ALLOWED_SOCKETS),
        "refuse",
        (RETURN, FAIL | errno.EPERM),
        "absent",
        (RETURN, FAIL | errno.ENOSYS),
        "kill",
        (RETURN, KILL_PROCESS),
        "allow",
        (RETURN, ALLOW),
    ]


def _assemble(steps: list[_Step]) -> bytes:
    """Encode steps as `struct sock_filter`; jumps are forward only, by at most 255."""
    labels: dict[str, int] = {}
    instructions: list[_Jump | tuple[int, int]] = []
    for step in steps:
        if isinstance(step, str):
            labels[step] = len(instructions)
        else:
            instructions.append(step)
    code = []
    for index, step in enumerate(instructions):
        if isinstance(step, _Jump):
            ways = [0 if label is None else labels[label] - index - 1 for label in (step.when_true, step.when_false)]
            code.append(struct.pack("@HBBI", step.operation, *ways, step.value))
        else:
            code.append(struct.pack("@HBBI", step[0], 0, 0, step[1]))
    return b"".join(code)
