"""`python -m sarto.engine.dataset.worker`: tokenises blocks of a dataset file, so that all cores work.

Reads one JSON object per line from its parent and writes frames; ends when its parent ends. `Workers` is the parent's
side. Loads no torch.
"""

from __future__ import annotations

import json
import queue
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from sarto.engine.dataset.blocks import Block
from sarto.engine.dataset.tokenise import COLUMNS, BlockResult, RowCounts, TokeniseOptions, process_block
from sarto.engine.rendering.tokenizer import ChatTokenizer

_LENGTH = struct.Struct("<Q")


def main() -> None:
    """Process blocks until the parent closes standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it closes our input
    start = json.loads(sys.stdin.buffer.readline())
    tokenizer = ChatTokenizer.load(start["tokenizer"])
    options = TokeniseOptions(**start["options"])
    path = Path(start["path"])
    for line in sys.stdin.buffer:
        block = Block(**json.loads(line))
        _send(sys.stdout.buffer, process_block(block.read(path), block.first_line, tokenizer, options))


class Workers:
    """Child processes that share one file. Blocks are distributed, results are returned in the order of the blocks."""

    def __init__(self, count: int, tokenizer_folder: Path, path: Path, options: TokeniseOptions) -> None:
        start = {"tokenizer": str(tokenizer_folder), "path": str(path.absolute()), "options": asdict(options)}
        self._children = [_start(start) for _ in range(count)]
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for child in self._children:
            self._free.put(child)
        self._threads = ThreadPoolExecutor(count)

    def map(self, blocks: Iterable[Block]) -> Iterator[BlockResult]:
        """Results in order, with at most two blocks in progress per child."""
        under_way: deque[Future[BlockResult]] = deque()
        for block in blocks:
            under_way.append(self._threads.submit(self._process, block))
            if len(under_way) >= 2 * len(self._children):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def close(self) -> None:
        """End the children. Results that were returned are not affected."""
        for child in self._children:
            child.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in self._children:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
            child.wait()

    def _process(self, block: Block) -> BlockResult:
        child = self._free.get()
        try:
            _write_line(child, asdict(block))
            assert child.stdout is not None
            return _receive(child.stdout)
        finally:
            self._free.put(child)


def _start(message: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sarto.engine.dataset.worker"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    _write_line(child, message)
    return child


def _write_line(child: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(message).encode() + b"\n")
    child.stdin.flush()


def _send(stream: BinaryIO, result: BlockResult) -> None:
    """Write a frame: lengths and names as JSON, then the bytes of each column."""
    parts = {name: array.data for name, array in result.arrays.items()}
    head = {"facts": result.facts.to_json(), "columns": {name: part.nbytes for name, part in parts.items()},
            "tokens": result.arrays["tokens"].dtype.str}  # fmt: skip
    text = json.dumps(head).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for part in parts.values():
        stream.write(part)
    stream.flush()


def _receive(stream: IO[bytes]) -> BlockResult:
    head = json.loads(_read(stream, _LENGTH.unpack(_read(stream, _LENGTH.size))[0]))
    kinds = {**COLUMNS, "tokens": head["tokens"]}
    arrays = {name: np.frombuffer(_read(stream, size), dtype=kinds[name]) for name, size in head["columns"].items()}
    return BlockResult(arrays, RowCounts(**head["facts"]))


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise RuntimeError("a process that prepares the data ended early")
    return data


if __name__ == "__main__":
    main()
