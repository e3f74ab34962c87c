"""The ranks of one run: processes that each compute a share of every step, on devices of their own.

Rank 0 is the run itself. It starts the others (`rank_process.py`) as its children and sends them commands as lines of
JSON on their standard input; they end with it. Tensors are exchanged by torch.distributed, over the loopback and shared
memory. When a rank dies, the run ends and is retried. With one rank every call is a no-op.
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

from sarto.engine.tuning.packing import MemoryPlan

logger = logging.getLogger(__name__)
RANK_PROGRAM = (sys.executable, "-m", "sarto.engine.tuning.rank_process")
RANK_LOST = 71
"""Exit code of a run that lost a rank."""
MEETING_FILE = ".ranks"


class RankCommand(BaseModel):
    """The next command for all ranks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["step", "probe", "evaluate", "logits"]
    number: int
    """Number of the step, for its examples and for messages."""
    memory: MemoryPlan
    tokens: list[int] = Field(default_factory=list)
    """One sequence for which logits are computed."""


class Ranks:
    """All ranks call `share`, `sum` and `most` in the same order. `command` is called by the leader, `commands` by the
    others."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self._children: list[subprocess.Popen[bytes]] = []
        self._closing = False

    def start(self, requests: list[bytes]) -> None:
        """Start ranks 1, 2 … with a line each. They load while the caller does; `meet` then waits for all."""
        for rank, request in enumerate(requests, 1):
            child = subprocess.Popen(RANK_PROGRAM, stdin=subprocess.PIPE, stdout=sys.stderr)
            self._children.append(child)
            threading.Thread(target=self._watch, args=(rank, child), daemon=True).start()
            _say(child, request)

    def meet(self, folder: Path, device: torch.device) -> None:
        """Wait until every rank is connected. `folder` is the run's own, so that no other run connects."""
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

    def command(self, command: RankCommand) -> None:
        for child in self._children:
            _say(child, command.model_dump_json().encode())

    def commands(self) -> Iterator[RankCommand]:
        """Commands until the leader ends; from now on this process ends with the leader, also within a command."""
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(sys.stdin.buffer, lines), daemon=True).start()
        return (RankCommand.model_validate_json(line) for line in iter(lines.get, None))

    def share(self, values: Tensor) -> None:
        """Copy the leader's values to every rank, in place."""
        if self.count > 1:
            torch.distributed.broadcast(values, 0)

    def sum(self, values: Tensor) -> None:
        """Replace the values by their sum over all ranks, in place; the same bits on every rank and in every run."""
        if self.count > 1:
            torch.distributed.all_reduce(values)

    def most(self, number: int, device: torch.device) -> int:
        """The maximum over the ranks."""
        if self.count == 1:
            return number
        tensor = torch.tensor(number, device=device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return int(tensor)

    def least(self, number: int, device: torch.device) -> int:
        return -self.most(-number, device)

    def close(self) -> None:
        """End the other ranks and wait for them."""
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
        """In a thread: a collective operation would wait forever for a rank that died."""
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
    """In a thread, so that the leader's end is noticed within a step."""
    for line in pipe:
        lines.put(line)
    os._exit(0)
