"""The sandbox of a computing process, entered before it reads data: no network, only its own files, no access to other
processes, no rights of root, few system calls, no core dumps, and limits of memory and open files.

`keep_computing` leaves a process of user code even less: no file but the interpreter's, and only calls that compute.
`engine/programs/sandbox.py` enters the sandbox for a program.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import struct
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sarto.errors import FailedPrecondition
from sarto.system import landlock, seccomp
from sarto.system.process import keep_memory_private

CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
MOST_OPEN_FILES, FEW_OPEN_FILES = 4096, 32
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
PR_CAPBSET_DROP, MOST_CAPABILITIES, CAPABILITY_VERSION = 24, 64, 0x20080522

PROGRAM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store")
LIBRARY_FOLDERS = (
    "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/lib", "/lib32", "/lib64", "/nix/store",
    "/usr/share/zoneinfo",
)  # fmt: skip
SYSTEM_FILES = (
    "/proc", "/sys", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
    "/etc/alternatives",
)  # fmt: skip
"""`/proc` shows other processes' files only to processes that may trace them, which Landlock forbids."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
GPU_DEVICES = ("nvidia*", "dri", "kfd")
SHARED_MEMORY = "/dev/shm"
COMPILE_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")


def confine(read: Iterable[str] = (), write: Iterable[str] = ()) -> list[str]:
    """Enter the sandbox permanently, while this process has one thread. Returns the reasons for missing parts.

    The network namespace has only a loopback for this process and its children, on which the ranks of a run connect. If
    that needs more rights than the process has, a user namespace with the same user provides them."""
    if not sys.platform.startswith("linux"):
        keep_memory_private()
        return [f"network, files and system calls: {sys.platform} has no namespaces, Landlock and seccomp"]
    reason = _leave_network()
    if not reason:
        _raise_loopback()
    keep_memory_private()  # after the mapping of the user: it closes /proc/self to that
    _drop_capabilities()
    return [*([f"network: {reason}"] if reason else []), *_filter(read, write)]


def narrow(read: Iterable[str], write: Iterable[str]) -> None:
    """Restrict access to these files from here on; for the first thread of a process that `confine` has confined.

    Without Landlock it has no effect: the service checked at its start whether that is allowed."""
    if landlock.version():
        write = list(write)
        landlock.restrict(_rules(read, write))
        if write:
            keep_temporary_files_in(write[0])


def limit(data_bytes: int) -> None:
    """Limit the memory of this process (0: no limit; mapped weights do not count) and its open files."""
    _lower(resource.RLIMIT_NOFILE, MOST_OPEN_FILES)
    if data_bytes:
        _lower(resource.RLIMIT_DATA, data_bytes)


def keep_computing(memory_bytes: int) -> None:
    """Leave this process and its user code only what computing takes: reading the files of the interpreter, this much
    more memory, and the calls of `seccomp.COMPUTING`. No files to write, no sockets, processes, threads or signals.

    For a confined process with one thread. Raises FailedPrecondition where the kernel cannot do that."""
    missing = computing_faults()
    if missing:
        raise FailedPrecondition("; ".join(missing))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, used + memory_bytes)
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_CORE):
        _lower(kind, 0)
    _lower(resource.RLIMIT_NOFILE, FEW_OPEN_FILES)
    landlock.restrict((folder, landlock.READ) for folder in _libraries())
    seccomp.allow_only(seccomp.COMPUTING)


def computing_faults() -> list[str]:
    """The reasons why `keep_computing` cannot work on this machine."""
    if not sys.platform.startswith("linux"):
        return [f"{sys.platform} has no Landlock and seccomp"]
    reasons = [] if landlock.version() else ["this kernel has no Landlock, or it is not switched on"]
    return reasons if seccomp.is_known() else [*reasons, f"no filter of calls is known for {os.uname().machine}"]


def _filter(read: Iterable[str], write: Iterable[str]) -> list[str]:
    """Restrict files, processes and system calls. Returns the reason if one of them could not be restricted."""
    reasons = []
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(seccomp.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return [f"files and system calls: new privileges could not be given up ({os.strerror(ctypes.get_errno())})"]
    known = landlock.version()
    if not known:
        reasons.append("files: this kernel has no Landlock, or it is not switched on")
    else:
        landlock.restrict(_rules(read, write))
        if known < landlock.SCOPES_SINCE:
            reasons.append(
                f"signals: Landlock {landlock.SCOPES_SINCE} (Linux 6.12) stops them, this kernel has {known}"
            )
    if not seccomp.is_known():
        reasons.append(f"system calls: no filter is known for {os.uname().machine}")
        return reasons
    try:
        seccomp.refuse_calls()
    except OSError as error:
        reasons.append(f"system calls: {error.strerror}")
    return reasons


def _rules(read: Iterable[str], write: Iterable[str]) -> list[tuple[str | os.PathLike[str], landlock.Access]]:
    gpus = [path for pattern in GPU_DEVICES for path in Path("/dev").glob(pattern)]
    return [
        *((folder, landlock.PROGRAM) for folder in _programs()),
        *((path, landlock.READ) for path in (*SYSTEM_FILES, *read)),
        *((path, landlock.DEVICE) for path in DEVICES),
        *((path, landlock.DEVICE | landlock.READ) for path in gpus),
        # The processes of a run on several GPUs exchange gradients there.
        *((path, landlock.WRITE) for path in (*write, *([SHARED_MEMORY] if gpus else []))),
    ]


def _programs() -> list[str]:
    programs = [*PROGRAM_FOLDERS, sys.prefix, sys.base_prefix, *(folder for folder in sys.path if folder)]
    return programs + [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]


def _libraries() -> list[str]:
    """What imports read. Not the whole prefix of the interpreter, in which a home could lie."""
    modules = [folder for folder in sys.path if folder]
    linked = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    return [*LIBRARY_FOLDERS, f"{sys.base_prefix}/lib", *modules, *linked]


def keep_temporary_files_in(folder: str) -> None:
    """Have this process and its children put temporary files and compiled code there."""
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    for variable in COMPILE_CACHES:
        os.environ[variable] = str(Path(folder, "compiled"))


def _leave_network() -> str:
    """Leave the network. Returns the reason if that failed, else an empty text."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(CLONE_NEWNET | CLONE_NEWIPC) == 0:
        return ""
    user, group = os.getuid(), os.getgid()
    if library.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC) != 0:
        return f"namespaces are not allowed here ({os.strerror(ctypes.get_errno())})"
    try:
        _keep_user(user, group)
    except OSError as error:
        return f"no user could be mapped ({error.strerror})"
    return ""


def _drop_capabilities() -> None:
    """Drop all capabilities, so that root is like another user. A process that may not drop them has none."""
    library = ctypes.CDLL(None, use_errno=True)
    for capability in range(MOST_CAPABILITIES):
        library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    library.capset(struct.pack("@Ii", CAPABILITY_VERSION, 0), bytes(24))


def _lower(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


def _keep_user(user: int, group: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)


def _raise_loopback() -> None:
    """Enable the loopback. If that is forbidden, a run of several ranks fails by itself; others do not need it."""
    request = struct.pack("16sH14x", b"lo", IFF_UP)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)
