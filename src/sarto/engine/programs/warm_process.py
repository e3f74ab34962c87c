"""A process from which runs are forked: torch is imported and the base is in memory, so a run's first step starts at
once.

`python -m sarto.engine.programs.warm_process IDLE_SECONDS` serves its standard input, a socket, until it closes or no
run was requested for this time. A request is the arguments of a run as a JSON list, with two descriptors: the run's
connection, and its log. The process has one thread and no OpenMP threads, so that forking is safe. Bases are kept on
processors only, since a GPU cannot be shared by forking. Runs of a base share its weights; a run that is alone puts its
adapter beside them. Knows no jobs.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch

from sarto.contract.programs import files_of, read_spec
from sarto.contract.tuning_run import RunSpec
from sarto.engine.host_memory import free_memory_bytes
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import leave_room, make_room
from sarto.engine.ops.select import choose_operations, native_dtype
from sarto.engine.programs import tune
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.system.process import die_with_parent, unwatch_children, watch_children
from sarto.system.sandbox import narrow

logger = logging.getLogger(__name__)
RUN = "sarto.engine.programs.tune"
MACHINE_FAULT = 70
REQUEST_BYTES = 1 << 16
KEPT_SHARE = 0.25
"""A base is kept only if its files take at most this share of the free memory, because each run has a copy."""


class ResidentProcess:
    """Handles one request after the other. A run stops when its connection closes, and sends its exit code over it."""

    def __init__(self, requests: socket.socket, idle_seconds: float) -> None:
        self._requests, self._idle_seconds = requests, idle_seconds
        self._runs: dict[int, socket.socket] = {}
        self._loaded: tune.LoadedBase | None = None

    def serve(self) -> None:
        """Serve until standard input closes. Then the kernel kills every run, or the run sees its connection close."""
        woken = watch_children()
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
                    if connection in ready:  # only its end can be read: the run was stopped
                        _kill(pid)
                self._reap()
                if self._requests in ready and not self._start():
                    return

    def _start(self) -> bool:
        """Start a run; False when the parent's connection has closed."""
        request, descriptors, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES, 2)
        if not request:
            return False
        arguments: list[str] = json.loads(request)
        connection, log = socket.socket(fileno=descriptors[0]), descriptors[1]
        try:
            self._preload(read_spec(RunSpec, arguments))
        except Exception:
            # the run itself reports a fault of the base or the spec, as its result
            logger.warning("base not preloaded", exc_info=True)
        pid = os.fork()
        if pid == 0:
            self._become_run(connection, log, arguments)
        os.close(log)
        self._runs[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ)
        self._requests.sendall(b".")
        return True

    def _preload(self, spec: RunSpec) -> None:
        """Keep tokenizer and weights of the latest run's base, in this processor's native precision."""
        if self._loaded and self._loaded.base == spec.base:
            return
        self._loaded = None
        tokenizer = ChatTokenizer.load(spec.base.folder)
        self._loaded = tune.LoadedBase(spec.base, tokenizer, None)
        device = torch.device("cpu")
        size = sum(file.stat().st_size for file in Path(spec.base.folder).glob("*.safetensors"))
        if torch.cuda.device_count() or size > KEPT_SHARE * free_memory_bytes(device):
            return
        decoder = load_base(spec.base, native_dtype(device), device)
        decoder.ops = choose_operations(device)
        make_room(decoder)
        self._loaded = tune.LoadedBase(spec.base, tokenizer, decoder)

    def _become_run(self, connection: socket.socket, log: int, arguments: list[str]) -> None:
        """Execute the run in the child; does not return."""
        code = MACHINE_FAULT
        try:
            os.setsid()
            die_with_parent()
            unwatch_children()
            self._requests.close()
            for other in self._runs.values():
                other.close()
            for source, target in ((connection.fileno(), 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.chdir(Path(arguments[0]).parent)
            files = files_of(RUN, arguments)
            narrow(files.read, files.writable)
            if self._runs and self._loaded and self._loaded.decoder:
                leave_room(self._loaded.decoder)
            code = tune.main(arguments, self._loaded)
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
            _kill(pid)  # processes that it started
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
    ResidentProcess(requests, float(arguments[0])).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
