"""The ranks of one run: processes that each compute a share of every step, on devices of their own.

Rank 0 is the run itself. It starts the others (`rank.py`) as its children and tells them what to do in lines of JSON on
their standard input, whose end is theirs; tensors go by torch.distributed, over the loopback and shared memory. A rank
that dies takes the run with it, which is then tried again like any other. With one rank every call is a no-op.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sarto.engine.tuning.supervised import MemoryPlan

logger = logging.getLogger(__name__)
RANK_PROGRAM = (sys.executable, "-m", "sarto.engine.tuning.rank")
RANK_LOST = 71
"""Exit code of a run that lost one of its ranks."""
MEETING_FILE = ".ranks"


class Order(BaseModel):
    """What all ranks do next, together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["step", "probe", "evaluate", "logits"]
    number: int
    """The step that is meant, for its examples and for messages."""
    memory: MemoryPlan
    tokens: list[int] = Field(default_factory=list)
    """One sequence, whose logits are asked for."""


class Team:
    """Its members call `share`, `sum` and `most` in the same order; `order` is the leader's, `orders` the others'."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self._children: list[subprocess.Popen[bytes]] = []
        self._closing = False

    def start(self, requests: list[bytes]) -> None:
        """Start ranks 1, 2 … with a line each. They are loading while the caller does; then all `meet`."""
        for rank, request in enumerate(requests, 1):
            child = subprocess.Popen(RANK_PROGRAM, stdin=subprocess.PIPE, stdout=sys.stderr)
            self._children.append(child)
            threading.Thread(target=self._watch, args=(rank, child), daemon=True).start()
            _say(child, request)

    def meet(self, folder: Path, device: torch.device) -> None:
        """Returns when every rank is there. `folder` is the run's own, so that no other run meets in it."""
        if self.count == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=(folder / MEETING_FILE).absolute().as_uri(),
            rank=self.rank,
            world_size=self.count,
        )

    def order(self, order: Order) -> None:
        for child in self._children:
            _say(child, order.model_dump_json().encode())

    def orders(self) -> Iterator[Order]:
        """Until the leader has gone; from now on this process ends then, wherever it stands."""
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(sys.stdin.buffer, lines), daemon=True).start()
        return (Order.model_validate_json(line) for line in iter(lines.get, None))

    def share(self, values: Tensor) -> None:
        """Everyone gets the leader's values, in place."""
        if self.count > 1:
            torch.distributed.broadcast(values, 0)

    def sum(self, values: Tensor) -> None:
        """Everyone gets the sum over all ranks, in place; the same bits everywhere and every time."""
        if self.count > 1:
            torch.distributed.all_reduce(values)

    def most(self, number: int, device: torch.device) -> int:
        """The largest of the ranks' numbers."""
        if self.count == 1:
            return number
        found = torch.tensor(number, device=device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def least(self, number: int, device: torch.device) -> int:
        return -self.most(-number, device)

    def close(self) -> None:
        """End the other ranks; returns when they are gone."""
        self._closing = True
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child in self._children:
            child.wait()
        if self._children and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self._children = []

    def _watch(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        """In a thread: without one of its ranks a collective operation would wait for ever."""
        code = child.wait()
        if not self._closing:
            logger.error("rank lost", extra={"rank": rank, "code": code})
            sys.stderr.write(f"rank {rank} of this run ended with {code}\n")
            os._exit(RANK_LOST)


def _say(child: subprocess.Popen[bytes], line: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(line + b"\n")
    child.stdin.flush()


def _listen(pipe: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """In a thread, so that the leader's end is noticed in the middle of a step too."""
    for line in pipe:
        lines.put(line)
    os._exit(0)
