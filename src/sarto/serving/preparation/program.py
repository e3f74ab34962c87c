"""Server of the preparation processes: one parent forks a process for each seat, so a killed one is replaced at once.

`python -m sarto.serving.preparation.program --fd=N` accepts requests for processes on a socket. A message names the
process and its base, and carries the connection for its responses. Standard output reports each start and each end. The
parent has one thread, no torch, and each base of the catalogue in memory after its first use. Only a forked process
reads a custom base. A forked process answers one frame after another, each within limits of processor time and memory;
the kernel ends a process that exceeds them. The parent ends with its own parent.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import resource
import selectors
import signal
import socket
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import orjson

from sarto.contract.common import BaseWeights
from sarto.engine.evaluation.evaluate_instances import score_metric
from sarto.engine.serving.text_queries import TextModel, answer_text
from sarto.errors import Internal, SartoError
from sarto.serving.protocol import pack
from sarto.system.process import die_with_parent, keep_memory_private, unwatch_children, watch_children
from sarto.system.sandbox import narrow

logger = logging.getLogger(__name__)
REQUEST_BYTES = 1 << 16
MOST_BASES = 4
OUT_OF_MEMORY = 72
"""Exit code of a process that Python's own allocator refused; native code aborts."""
Bases = OrderedDict[str, TextModel]


def main(arguments: list[str] | None = None) -> None:
    keep_memory_private()
    parser = argparse.ArgumentParser(description="Forks the processes that read requests; started by a server.")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the socket with requests")
    options = parser.parse_args(arguments)
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ForkServer(socket.socket(fileno=options.fd)).serve()


class ForkServer:
    """Forks, reaps and reports."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._children: dict[int, int] = {}
        """Process id → number."""
        self._bases: Bases = OrderedDict()

    def serve(self) -> None:
        woken = watch_children()
        with selectors.DefaultSelector() as selector:
            for source in (woken, self._requests, sys.stdin):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if sys.stdin in ready:
                    return  # closed: the parent has ended
                if woken in ready:
                    woken.recv(REQUEST_BYTES)
                self._reap()
                if self._requests in ready:
                    self._start()

    def _start(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES, 1)
        if not descriptors:
            return
        request = orjson.loads(message)
        if request["base"] is not None:
            self._preload(BaseWeights(**request["base"]))
        pid = os.fork()
        if pid == 0:
            self._be_child(socket.socket(fileno=descriptors[0]), request)
        os.close(descriptors[0])
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # here as well, so that the group exists before the pid is reported
        self._children[pid] = request["id"]
        _report({"id": request["id"], "pid": pid})

    def _preload(self, base: BaseWeights) -> None:
        """Load a base once for all processes. If that fails, the forked process reports the error."""
        try:
            _find(self._bases, base).grammars  # noqa: B018
        except Exception:
            logger.exception("base not read", extra={"base": base.name})
        while len(self._bases) > MOST_BASES:
            self._bases.popitem(last=False)
        gc.collect()
        gc.freeze()  # else collecting in a child copies every page

    def _be_child(self, connection: socket.socket, request: dict[str, Any]) -> NoReturn:
        code = 1
        try:
            unwatch_children()
            os.setpgid(0, 0)
            die_with_parent()
            self._requests.close()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for inherited in (0, 1):
                os.dup2(nowhere, inherited)
            os.nice(request["niceness"])
            narrow(request["read"], request["write"])
            code = _serve(connection, self._bases)
        except BaseException:
            logger.exception("preparation process failed")
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _report({"id": self._children.pop(pid), "ended": os.waitstatus_to_exitcode(status)})


def _serve(connection: socket.socket, bases: Bases) -> int:
    """Answer one frame after another, until the connection closes."""
    stream = connection.makefile("rb")
    while head := stream.read(4):
        frame = orjson.loads(stream.read(int.from_bytes(head, "big")))
        _limit(frame["seconds"], frame["bytes"])
        try:
            answer = _answer(frame, bases)
        except MemoryError:
            return OUT_OF_MEMORY
        connection.sendall(answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return 0


def _answer(frame: dict[str, Any], bases: Bases) -> bytes:
    try:
        try:
            return pack({"answer": _computed(frame, bases)})
        except SartoError as error:
            return pack({"error": error.to_status()})
    except MemoryError:
        raise
    except Exception:
        incident = uuid4().hex[:12]
        logger.exception("request failed", extra={"incident": incident})
        return pack({"error": Internal(f"Internal error; incident {incident} is in the worker's log.").to_status()})


def _computed(frame: dict[str, Any], bases: Bases) -> dict[str, Any]:
    if frame["base"] is None:
        return score_metric(frame["payload"])
    known = _find(bases, BaseWeights(**frame["base"]))
    return {} if frame["method"] == "load" else answer_text(known, frame["method"], frame["payload"])


def _find(bases: Bases, base: BaseWeights) -> TextModel:
    if base.digest not in bases:
        bases[base.digest] = TextModel(base)
    bases.move_to_end(base.digest)
    return bases[base.digest]


def _limit(seconds: float, more_bytes: int) -> None:
    """Set the limits of the next response: processor time, independent of other load, and memory above the present
    use."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    used = Path("/proc/self/statm")
    if used.exists():
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = int(used.read_text().split()[5]) * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _report(message: dict[str, int]) -> None:
    os.write(1, orjson.dumps(message) + b"\n")


if __name__ == "__main__":
    main()
