"""A process that runs are forked from: torch is imported and the base in memory, so a run's first step comes at once.

`python -m sarto.engine.resident SOCKET` serves until its standard input ends; `python -m sarto.engine.warm SOCKET SPEC`
asks it for a run. One thread and no OpenMP team here, so that forking is safe; for processors only, since a GPU cannot
be shared by forking. Weights are shared between the runs of a base, page by page. Knows no jobs.
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import socket
import sys
from pathlib import Path

import torch

from sarto.engine import run
from sarto.engine.families.decoder import Decoder
from sarto.engine.families.load import load_base
from sarto.engine.ops.choose import choose_operations, native_dtype
from sarto.schema.runs import BaseWeights, RunSpec

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
MACHINE_FAULT = 70
REQUEST_BYTES = 1 << 16


class Resident:
    """Accepts connections; each is one run, whose standard input the connection becomes."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen()
        self._runs: dict[int, socket.socket] = {}
        self._loaded: tuple[BaseWeights, Decoder] | None = None

    def serve(self) -> None:
        """Until standard input ends; then every run is told to stop, since its connection closes."""
        woken, waker = socket.socketpair()
        woken.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            for source in (self._listener, woken, sys.stdin):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if woken in ready:
                    woken.recv(REQUEST_BYTES)
                    self._reap()
                if self._listener in ready:
                    self._start(self._listener.accept()[0])
                if sys.stdin in ready and not os.read(sys.stdin.fileno(), REQUEST_BYTES):
                    return

    def _start(self, connection: socket.socket) -> None:
        request, streams, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 2)
        path = request.decode().strip()
        try:
            self._preload(RunSpec.model_validate_json(Path(path).read_bytes()))
        except Exception:
            # whatever is wrong with the base or the spec, the run says it better, in its own place
            logger.warning("base not preloaded", exc_info=True)
        pid = os.fork()
        if pid == 0:
            self._become_run(connection, streams, path)
        for stream in streams:
            os.close(stream)
        self._runs[pid] = connection

    def _preload(self, spec: RunSpec) -> None:
        """Keep the base of the latest run, at the precision this processor works in."""
        if spec.device.startswith("cuda") or (self._loaded and self._loaded[0] == spec.base):
            return
        self._loaded = None
        device = torch.device("cpu")
        decoder = load_base(spec.base, native_dtype(device), device)
        decoder.ops = choose_operations(device)
        self._loaded = (spec.base, decoder)

    def _become_run(self, connection: socket.socket, streams: list[int], path: str) -> None:
        """In the child, never to return."""
        code = MACHINE_FAULT
        try:
            if sys.platform.startswith("linux"):
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._listener.close()
            for source, target in zip((connection.fileno(), *streams), range(3), strict=False):
                os.dup2(source, target)
            for other in self._runs.values():
                other.close()
            code = run.main([path], self._loaded)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._runs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._runs.pop(pid)
            try:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError:
                logger.info("run ended after its client")
            connection.close()


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    torch.set_num_threads(1)
    Resident(Path(arguments[0])).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
