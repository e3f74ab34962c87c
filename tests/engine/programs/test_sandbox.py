"""What a run has given up before it reads data."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sarto.system import landlock, seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21
LIBRARY = ctypes.CDLL(None)


def drop_right_to_make_namespaces() -> None:
    LIBRARY.prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0)


PROGRAM = """
import ctypes, os, resource, socket, sys
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 4096
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, 'dumpable'
assert os.getuid() == int(sys.argv[1])
for address in (('127.0.0.1', int(sys.argv[2])), ('192.0.2.1', 80)):
    try:
        socket.create_connection(address, timeout=2)
    except OSError:
        continue
    sys.exit('reached ' + address[0])
print('confined')
"""


@pytest.mark.parametrize("is_privileged", [True, False])
def test_a_run_reaches_nobody_and_leaves_no_core(is_privileged: bool, tmp_path: Path) -> None:
    (tmp_path / "probing.py").write_text(PROGRAM)
    confine = [sys.executable, "-m", "sarto.engine.programs.sandbox"]
    how: dict[str, Any] = {"env": os.environ | {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True}
    if not is_privileged:
        how["preexec_fn"] = drop_right_to_make_namespaces
    probe = subprocess.run(confine, **how)
    if probe.returncode:
        pytest.skip(f"this machine keeps the network: {probe.stderr.strip()}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (str(os.getuid()), str(listener.getsockname()[1]))
        done = subprocess.run([*confine, "probing", *arguments], **how)
    assert done.stdout.strip() == "confined", done.stderr


def test_a_run_takes_no_more_memory_than_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text("import sys; print(len(bytearray(int(sys.argv[1]))))")
    command = [sys.executable, "-m", "sarto.engine.programs.sandbox", f"--data-bytes={400_000_000}", "greedy"]
    how: dict[str, Any] = {"env": os.environ | {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True}
    assert subprocess.run([*command, "1000000"], **how).stdout.strip() == "1000000"
    refused = subprocess.run([*command, "500000000"], **how)
    assert refused.returncode == 1 and "MemoryError" in refused.stderr


ATTACKS = r"""
import ctypes, json, os, resource, signal, socket, sqlite3, subprocess, sys
from pathlib import Path
own, shared, home, peer, unix = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
libc = ctypes.CDLL(None, use_errno=True)

def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def insert():
    database = sqlite3.connect(home / "sarto.db")
    database.execute("insert into binding values ('roles/sarto.admin')")
    database.commit()

def connect(family, address):
    with socket.socket(family) as one:
        one.connect(address)

def child(code):
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

ATTACKS = {
    "read a key file": lambda: (home / "admin.json").read_text(),
    "list the home": lambda: os.listdir(home),
    "write into the database": insert,
    "write a cache that others read": lambda: (home / "tokens").write_text("poison"),
    "truncate a file": lambda: os.truncate(home / "admin.json", 0),
    "remove a file": lambda: (home / "admin.json").unlink(),
    "rename a file": lambda: (home / "admin.json").rename(own / "mine"),
    "link a file into its own folder": lambda: os.link(home / "admin.json", own / "mine"),
    "open files of all": lambda: (home / "admin.json").chmod(0o777),
    "give a file away": lambda: os.chown(home / "admin.json", 1, 1),
    "write what it may only read": lambda: (shared / "base").write_text("poison"),
    "follow a link out of its folder": lambda: (own / "out").read_text(),
    "read passwords": lambda: Path("/etc/shadow").read_text(),
    "read the other process's memory": lambda: Path(f"/proc/{peer}/mem").open("rb").read(1),
    "read the other process's environment": lambda: Path(f"/proc/{peer}/environ").read_bytes(),
    "go through the other process's root": lambda: Path(f"/proc/{peer}/root{home}/admin.json").read_text(),
    "read the other process's open files": lambda: os.readlink(f"/proc/{peer}/fd/0"),
    "trace the other process": lambda: call(101, 16, peer, 0, 0),
    "copy its memory by a call": lambda: call(310, peer, 0, 0, 0, 0, 0),
    "signal the other process": lambda: os.kill(peer, signal.SIGTERM),
    "stop the other process": lambda: os.kill(peer, signal.SIGSTOP),
    "bound the other process's files": lambda: resource.prlimit(peer, resource.RLIMIT_NOFILE, (3, 3)),
    "connect to a UNIX socket": lambda: connect(socket.AF_UNIX, unix),
    "connect to an abstract UNIX socket": lambda: connect(socket.AF_UNIX, "\0sarto-test"),
    "send raw packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "make a namespace": lambda: call(272, 0x10000000),
    "mount": lambda: call(165, b"none", str(own).encode(), b"tmpfs", 0, 0),
    "use io_uring": lambda: call(425, 8, ctypes.create_string_buffer(120)),
    "load a kernel program": lambda: call(321, 0, 0, 0),
    "make a device": lambda: os.mknod(own / "disk", 0o60600, os.makedev(8, 0)),
    "do it from a child": lambda: child(f"open({str(home / 'admin.json')!r})"),
    "do it from a thread's loopback": lambda: connect(socket.AF_INET, ("127.0.0.1", int(sys.argv[6]))),
}
WORK = {
    "read the base": lambda: (shared / "base").read_text(),
    "write a checkpoint": lambda: (own / "checkpoint").write_text("weights"),
    "link within its folder": lambda: os.link(own / "checkpoint", own / "again"),
    "start a rank": lambda: child("import json, socket; a, b = socket.socketpair()"),
    "meet on its own loopback": lambda: socket.create_server(("127.0.0.1", 0)).close(),
    "make temporary files": lambda: __import__("tempfile").TemporaryFile().write(b"x"),
}

def outcome(attempt):
    try:
        attempt()
    except (OSError, sqlite3.Error, subprocess.CalledProcessError) as error:
        return repr(error)
    return "done"

print(json.dumps([{name: outcome(attempt) for name, attempt in each.items()} for each in (ATTACKS, WORK)]))
"""


@pytest.mark.parametrize("is_privileged", [True, False])
def test_a_run_reaches_its_own_files_and_nothing_else(is_privileged: bool, tmp_path: Path) -> None:
    confine = [sys.executable, "-P", "-m", "sarto.engine.programs.sandbox"]
    how: dict[str, Any] = {"capture_output": True, "text": True}
    if not is_privileged:
        how["preexec_fn"] = drop_right_to_make_namespaces
    lacking = subprocess.run(confine, **how).stderr.strip()
    if lacking:
        pytest.skip(f"this machine cannot confine a run: {lacking}")
    own, shared, home, modules = (tmp_path / name for name in ("own", "shared", "home", "modules"))
    for folder in (own, shared, home, modules):
        folder.mkdir()
    (modules / "attacking.py").write_text(ATTACKS)
    (shared / "base").write_text("weights")
    (home / "admin.json").write_text("secret")
    (home / "tokens").write_text("tokens")
    (own / "out").symlink_to(home / "admin.json")
    with sqlite3.connect(home / "sarto.db") as database:
        database.execute("create table binding (role text)")
    database.close()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as in_folder,
        socket.socket(socket.AF_UNIX) as abstract,
        subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE) as peer,
    ):
        in_folder.bind(str(own / "socket"))
        abstract.bind("\0sarto-test")
        for one in (in_folder, abstract):
            one.listen()
        arguments = [own, shared, home, peer.pid, own / "socket", listener.getsockname()[1]]
        done = subprocess.run(
            [*confine, f"--read={shared}", f"--write={own}", "attacking", *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(modules)}, **how,
        )  # fmt: skip
        is_alive = peer.poll() is None
        peer.kill()
    assert done.returncode == 0, done.stderr
    assert is_alive
    attacks, work = json.loads(done.stdout)
    assert [name for name, outcome in attacks.items() if outcome == "done"] == []
    assert {name: outcome for name, outcome in work.items() if outcome != "done"} == {}
    assert (home / "admin.json").read_text() == "secret" and (home / "tokens").read_text() == "tokens"


def test_a_forked_run_narrows_what_its_resident_process_may_reach(tmp_path: Path) -> None:
    own, other, modules = tmp_path / "own", tmp_path / "other", tmp_path / "modules"
    for folder in (own, other, modules):
        folder.mkdir()
    (other / "data").write_text("another run's")
    (modules / "forking.py").write_text(
        "import os, sys\n"
        "from sarto.system.sandbox import narrow\n"
        "open(sys.argv[2] + '/data').close()\n"
        "narrow([], [sys.argv[1]])\n"
        "open(sys.argv[1] + '/mine', 'w').close()\n"
        "assert os.environ['TMPDIR'] == sys.argv[1]\n"
        "open(sys.argv[2] + '/data')\n"
    )
    confine = [sys.executable, "-P", "-m", "sarto.engine.programs.sandbox", f"--write={tmp_path}"]
    environ = os.environ | {"PYTHONPATH": str(modules)}
    if landlock.version() == 0:
        pytest.skip("this kernel has no Landlock")
    done = subprocess.run([*confine, "forking", str(own), str(other)], env=environ, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("PermissionError"), done.stderr
    assert (own / "mine").exists()


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_every_jump_of_the_filter_lands_inside_it(machine: str) -> None:
    program = seccomp._assemble(seccomp._steps(*seccomp.ARCHITECTURES[machine]))
    steps = list(struct.iter_unpack("@HBBI", program))
    for index, (operation, when_true, when_false, _) in enumerate(steps):
        assert operation == seccomp.RETURN or index + 1 + max(when_true, when_false) < len(steps)
