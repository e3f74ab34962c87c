"""A process that runs are forked from: torch is imported and the base in memory, so a run's first step comes at once.

`python -m sarto.engine.resident IDLE_SECONDS` serves its standard input, a socket, until it closes or nobody asked for
a run for so long. A request is the path of a spec, with two descriptors: the run's connection, and its log. One thread
and no OpenMP team here, so that forking is safe; bases are kept for processors only, since a GPU cannot be shared by
forking. Weights are shared between the runs of a base; a run that is alone lays its adapter around them where they are.
Knows no jobs.
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch

from sarto.engine import run
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.families.load import load_base
from sarto.engine.lora import leave_room, make_room
from sarto.engine.ops.choose import choose_operations, native_dtype
from sarto.engine.tuning.memory import free_memory_bytes
from sarto.schema.runs import RunSpec

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
MACHINE_FAULT = 70
REQUEST_BYTES = 1 << 16
KEPT_SHARE = 0.25
"""A base is kept only if its files take no more than this share of the free memory: each run has a copy of its own."""


class Resident:
    """One request after another; the run's connection tells it to stop by closing, and gets its exit code."""

    def __init__(self, requests: socket.socket, idle_seconds: float) -> None:
        self._requests, self._idle_seconds = requests, idle_seconds
        self._runs: dict[int, socket.socket] = {}
        self._loaded: run.Loaded | None = None

    def serve(self) -> None:
        """Then every run is killed by the kernel, or sees its connection close."""
        woken, waker = socket.socketpair()
        woken.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            selector.register(woken, selectors.EVENT_READ)
            selector.register(self._requests, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(None if self._runs else self._idle_seconds)}
                if not ready and not self._runs:
                    return
                if woken in ready:
                    woken.recv(REQUEST_BYTES)
                for pid, connection in self._runs.items():
                    if connection in ready:  # only its end can be read: whoever asked for the run wants it no more
                        _kill(pid)
                self._reap()
                if self._requests in ready and not self._start():
                    return

    def _start(self) -> bool:
        """False when there is nobody to ask any more."""
        request, descriptors, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES, 2)
        if not request:
            return False
        path = request.decode().strip()
        connection, log = socket.socket(fileno=descriptors[0]), descriptors[1]
        try:
            self._preload(RunSpec.model_validate_json(Path(path).read_bytes()))
        except Exception:
            # whatever is wrong with the base or the spec, the run says it better, in its own place
            logger.warning("base not preloaded", exc_info=True)
        pid = os.fork()
        if pid == 0:
            self._become_run(connection, log, path)
        os.close(log)
        self._runs[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ)
        self._requests.sendall(b".")
        return True

    def _preload(self, spec: RunSpec) -> None:
        """Keep tokenizer and weights of the latest run's base, at the precision this processor works in."""
        if self._loaded and self._loaded.base == spec.base:
            return
        self._loaded = None
        tokenizer = ChatTokenizer.load(spec.base.folder)
        self._loaded = run.Loaded(spec.base, tokenizer, None)
        device = torch.device("cpu")
        size = sum(file.stat().st_size for file in Path(spec.base.folder).glob("*.safetensors"))
        if torch.cuda.device_count() or size > KEPT_SHARE * free_memory_bytes(device):
            return
        decoder = load_base(spec.base, native_dtype(device), device)
        decoder.ops = choose_operations(device)
        make_room(decoder)
        self._loaded = run.Loaded(spec.base, tokenizer, decoder)

    def _become_run(self, connection: socket.socket, log: int, path: str) -> None:
        """In the child, never to return."""
        code = MACHINE_FAULT
        try:
            os.setsid()
            if sys.platform.startswith("linux"):
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._requests.close()
            for other in self._runs.values():
                other.close()
            for source, target in ((connection.fileno(), 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.chdir(Path(path).parent)
            if self._runs and self._loaded and self._loaded.decoder:
                leave_room(self._loaded.decoder)
            code = run.main([path], self._loaded)
        except Exception:
            traceback.print_exc()  # as the interpreter would, if this process were left to it
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._runs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _kill(pid)  # what it started and left behind
            connection = self._runs.pop(pid)
            self._selector.unregister(connection)
            try:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError:
                logger.info("run ended after its client")
            connection.close()


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    torch.set_num_threads(1)
    requests = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    Resident(requests, float(arguments[0])).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
