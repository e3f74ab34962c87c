"""Snippets that attack: each tries one thing, and its reward would be 1 if it worked.

The peer is a process of the same user with a secret in its environment, its memory and a file.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sarto.rewards.code_workers import CodeLimits, CodeWorkers
from sarto.rewards.failures import CODE_FAILURE, LIMIT
from sarto.rewards.scoring import Scored
from sarto.system.sandbox import computing_faults

pytestmark = pytest.mark.skipif(bool(computing_faults()), reason="user code needs Landlock and seccomp")
SECONDS, MEMORY = 2.0, 256 << 20

HEAD = """
import asyncio, ctypes, mmap, multiprocessing, os, pickle, resource, shutil, signal, socket, subprocess, sys, tempfile
import threading, time
libc = ctypes.CDLL(None, use_errno=True)

def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

class Trick:
    def __reduce__(self):
        return os.system, ("echo > {folder}/pickled",)

def evaluate(example, response):
"""

REFUSED = {
    # Processes and threads.
    "fork": "os._exit(0) if os.fork() == 0 else None",
    "fork in a loop": "[os.fork() for _ in range(10_000)]",
    "fork by a call": "call(57)",
    "vfork by a call": "call(58)",
    "clone by a call": "call(56, 17, 0, 0, 0, 0)",
    "clone3 by a call": "call(435, ctypes.create_string_buffer(88), 88)",
    "start a program": "subprocess.run(['/bin/true'], check=True)",
    "start a program by a shell": "assert os.system('true') == 0",
    "become a program": "os.execv('/bin/true', ['true'])",
    "become a program in memory": "call(319, b'x', 0)",
    "start a thread that survives the call": "threading.Thread(target=time.sleep, args=(60,)).start()",
    "start a pool of processes": "multiprocessing.Pool(2)",
    "unpickle a command": "assert pickle.loads(pickle.dumps(Trick())) == 0",
    # The network and other ways out.
    "connect to the service": "socket.create_connection(('127.0.0.1', {port}), 1)",
    "connect to another machine": "socket.create_connection(('192.0.2.1', 80), 1)",
    "look a name up": "socket.getaddrinfo('example.com', 80)",
    "connect to a UNIX socket": "socket.socket(socket.AF_UNIX).connect('{unix}')",
    "make a pair of sockets": "socket.socketpair()",
    "listen": "socket.create_server(('127.0.0.1', 0))",
    "start an event loop": "asyncio.run(asyncio.sleep(0))",
    "make shared memory": "call(29, 0, 4096, 0o1600)",
    "make a message queue": "call(68, 0, 0o1600)",
    "make a pipe": "os.pipe()",
    "make a memory file": "os.memfd_create('x')",
    "use io_uring": "call(425, 1, ctypes.create_string_buffer(120))",
    # Files.
    "read the secret file": "open('{folder}/secret').read()",
    "read it through a link": "open('/proc/self/root{folder}/secret').read()",
    "list its folder": "os.listdir('{folder}')",
    "list the home": "os.listdir(os.path.expanduser('~'))",
    "list the temporary files": "os.listdir('/tmp')",
    "write a file": "open('{folder}/written', 'w')",
    "write a temporary file": "tempfile.TemporaryFile().write(b'x')",
    "write beside the program": "open(os.__file__ + 'x', 'w')",
    "change the program": "open({scoring!r}, 'a')",
    "make a folder": "os.mkdir('{folder}/made')",
    "remove a file": "os.unlink('{folder}/secret')",
    "rename a file": "os.rename('{folder}/secret', '{folder}/moved')",
    "link a file": "os.link('{folder}/secret', '{folder}/linked')",
    "make a symbolic link": "os.symlink('{folder}/secret', '{folder}/linked')",
    "truncate a file": "os.truncate('{folder}/secret', 0)",
    "open files of all": "os.chmod('{folder}/secret', 0o777)",
    "touch a file": "os.utime('{folder}/secret')",
    "read accounts": "open('/etc/passwd').read()",
    "read a device": "open('/dev/zero', 'rb').read(1)",
    "read facts of the machine": "open('/sys/kernel/uevent_seqnum').read()",
    "leave its root": "os.chroot('/')",
    "mount": "call(165, b'none', b'/mnt', b'tmpfs', 0, 0)",
    "make a namespace": "call(272, 0x10000000)",
    # Other processes.
    "read the peer's environment": "open('/proc/{peer}/environ').read()",
    "read the peer's memory": "open('/proc/{peer}/mem', 'rb')",
    "copy the peer's memory": "call(310, {peer}, 0, 0, 0, 0, 0)",
    "list processes": "os.listdir('/proc')",
    "read its own environment from the kernel": "open('/proc/self/environ').read()",
    "read the parent's command line": "open(f'/proc/{{os.getppid()}}/cmdline').read()",
    "kill the peer": "os.kill({peer}, 9)",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill all": "os.kill(-1, 9)",
    "kill by thread": "call(234, {peer}, {peer}, 9)",
    "kill by descriptor": "signal.pidfd_send_signal(os.pidfd_open({peer}), 9)",
    "trace the peer": "call(101, 16, {peer}, 0, 0)",
    "have the kernel signal the peer": "__import__('fcntl').fcntl(0, 8, {peer})",
    "limit the peer's files": "resource.prlimit({peer}, resource.RLIMIT_NOFILE, (3, 3))",
    "leave its group": "os.setsid()",
    "survive its parent": "call(157, 1, 0, 0, 0, 0)",
    # Its own limits.
    "raise its memory": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "raise its files": "resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16, 1 << 16))",
    "lock memory": "assert libc.mlock(ctypes.create_string_buffer(1 << 20), 1 << 20) == 0",
    "change its user": "os.setuid(12345)",
    "raise its priority": "os.nice(-5)",
    "filter calls anew": "call(317, 1, 0, 0)",
}

STOPPED = {
    "run for ever": ("while True: pass", LIMIT),
    "sleep for ever": ("time.sleep(1e6)", LIMIT),
    "wait for a lock": ("threading.Lock().acquire(); lock = threading.Lock(); lock.acquire(); lock.acquire()", LIMIT),
    "ignore signals and run": ("[signal.signal(n, signal.SIG_IGN) for n in (2, 14, 15)]\n    while True: pass", LIMIT),
    "swallow every error and run": (
        "while True:\n        try: time.sleep(1e6)\n        except BaseException: pass", LIMIT),
    "a pattern without end": ("import re; re.match('(x+x+)+y', 'x' * 60)", LIMIT),
    "a number without end": ("return 9 ** 9 ** 9", LIMIT),
    "take memory": ("return len(bytearray(1 << 30))", LIMIT),
    "take memory piece by piece": ("a = []\n    while True: a.append(bytearray(1 << 20))", LIMIT),
    "take shared memory": ("a = [mmap.mmap(-1, 64 << 20) for _ in range(64)]", CODE_FAILURE),
    "recurse": ("f = lambda: f()\n    return f()", CODE_FAILURE),
    "recurse without a limit": ("sys.setrecursionlimit(1 << 30)\n    f = lambda: [f()]\n    return f()", None),
    "break the interpreter": ("ctypes.string_at(0)", CODE_FAILURE),
    "abort": ("os.abort()", CODE_FAILURE),
    "end the process": ("os._exit(0)", CODE_FAILURE),
    "close all files": ("os.closerange(0, 64)", CODE_FAILURE),
    "write much into the protocol": ("[os.write(n, b'x' * 65536) for n in range(3, 9) for _ in range(64)]", None),
    "write an answer of its own": ("[os.write(n, b'{}\\n') for n in range(3, 9)]", None),
    "write an answer with two lines": (
        "[os.write(n, b'{\"number\":1,\"reward\":\"1\"}\\n' * 2) for n in range(3, 9)]", CODE_FAILURE),
    "write an answer that is no JSON": ("[os.write(n, b'[' * 60000 + b'\\n') for n in range(3, 9)]", None),
    "read the next question": ("[os.read(n, 65536) for n in range(3, 9)]", None),
    "patch the program": ("import json; json.dumps = lambda value: 'x' * (1 << 20)", CODE_FAILURE),
    "patch the writer": (
        "sys.modules['__main__']._write = lambda *a: None; import builtins; builtins.float = str", CODE_FAILURE),
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    folder: Path
    port: int
    peer: int
    workers: CodeWorkers

    def run(self, name: str, line: str, then: str = "return 1.0") -> Scored:
        snippet = self.snippet(line) + f"    {then}\n"
        example = {"contents": [], "references": {}}
        [scored] = asyncio.run(self.workers.execute(snippet, [(example, {"parts": [{"text": name}]})]))
        return scored

    def snippet(self, line: str) -> str:
        import sarto.rewards.scoring

        facts = {"folder": self.folder, "port": self.port, "peer": self.peer, "unix": self.folder / "unix"}
        text = HEAD + f"    {line}\n"
        for name, value in facts.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text.replace("{scoring!r}", repr(sarto.rewards.scoring.__file__)).replace("{{", "{").replace("}}", "}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "secret").write_text("sesame")
    waiting = [sys.executable, "-c", "secret = 'sesame' * 99; input()"]
    workers = CodeWorkers(1, CodeLimits(SECONDS, MEMORY), keep=True)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as unix,
        subprocess.Popen(waiting, stdin=subprocess.PIPE, env={"SECRET": "sesame"}) as peer,
    ):
        unix.bind(str(folder / "unix"))
        unix.listen()
        yield Site(folder, server.getsockname()[1], peer.pid, workers)
        assert peer.poll() is None, "an attack ended the peer"
        peer.kill()
    workers.close()
    assert sorted(path.name for path in folder.iterdir()) == ["secret", "unix"]
    assert (folder / "secret").read_text() == "sesame"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of calls are those of x86-64")
def test_the_worker_refuses_every_attack(site: Site) -> None:
    """70 attempts, each in a snippet of its own."""
    assert len(REFUSED) == 70
    done = {name: site.run(name, line) for name, line in REFUSED.items()}
    assert {name: one for name, one in done.items() if one.reward is not None} == {}
    assert {one.failure for one in done.values()} == {CODE_FAILURE}
    broken = [name for name, one in done.items() if "SyntaxError" in one.message or "NameError" in one.message]
    assert broken == []


@pytest.mark.parametrize("name", STOPPED)
def test_the_worker_is_stopped_or_fails_and_the_next_call_is_right(site: Site, name: str) -> None:
    line, kind = STOPPED[name]
    began = time.monotonic()
    scored = site.run(name, line)
    if kind is not None:
        assert (scored.reward, scored.failure) == (None, kind), scored
    assert time.monotonic() - began < SECONDS + 20
    assert site.run("good", "pass").reward == 1.0


def test_there_is_nothing_to_read_in_a_worker(site: Site) -> None:
    """Its environment, arguments and open files hold no secret, and its answers are its own."""
    line = """
    names = set(os.environ) - {"LANG", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS",
                               "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LC_CTYPE"}
    kinds = []
    for number in range(32):
        try:
            kinds.append(os.fstat(number).st_mode >> 12)
        except OSError:
            pass
    if names or sys.argv != ["reward_snippet"] or set(kinds) - {1, 2} or len(kinds) > 8:
        raise ValueError(f"{names} {sys.argv} {kinds}")
    """
    scored = site.run("look", textwrap.dedent(line).strip().replace("\n", "\n    "))
    assert scored.reward == 1.0, scored.message


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """Also during a call that ignores everything, and when the parent was killed."""
    program = """
import asyncio, sys
from sarto.rewards.code_workers import CodeLimits, CodeWorkers
snippet = "import signal\\ndef evaluate(e, r):\\n    signal.signal(2, signal.SIG_IGN)\\n    while True: pass"
workers = CodeWorkers(1, CodeLimits(seconds=60), keep=True)
async def main():
    task = asyncio.create_task(workers.execute(snippet, [({}, {})]))
    while not workers.pids:
        await asyncio.sleep(0.01)
    print(workers.pids[0], flush=True)
    await task
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
