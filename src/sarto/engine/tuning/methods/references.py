"""Log-probabilities of a dataset's supervised tokens under the job's initial model, computed once.

They are in a cache, keyed by all their inputs, so that other runs on the same data use them. Until they are complete
they are in the job's resume folder, from which the next attempt continues.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarto.engine.tuning.memory_plan import GPU_ROWS
from sarto.engine.tuning.methods.method import Start
from sarto.engine.tuning.packing import Batch, TokenizedRows, plan, take
from sarto.system.files import write_whole

Values = npt.NDArray[np.float64]
VERSION = 2
"""Changes when the same rows would have other values."""
BLOCK_ROWS = 64
"""Rows that are planned together, a whole number of examples. The division decides the rounding of sums, so it depends
only on this number."""
BATCH_TOKENS = 1024
DIGEST_BYTES = 32


@dataclass(frozen=True)
class ReferencedRows:
    """A dataset with its references."""

    rows: TokenizedRows
    values: Values

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, index: int) -> npt.NDArray[np.uint32]:
        return self.rows.tokens(index)

    def loss_mask(self, index: int) -> npt.NDArray[np.bool_]:
        return self.rows.loss_mask(index)

    def line(self, index: int) -> int:
        return self.rows.line(index)

    def reference(self, index: int) -> float:
        return float(self.values[index])


def with_references(
    start: Start, per_example: int, log_probabilities: Callable[[Batch], Tensor]
) -> tuple[TokenizedRows, ...]:
    """The datasets of a run with their references. `log_probabilities` returns those of a batch, (N,) in the order of
    its rows. Every rank calls it and gets the same values."""
    weights = _weights(start)
    return tuple(
        ReferencedRows(
            rows, _References(start, rows, _key(start, digest, weights)).values(per_example, log_probabilities)
        )
        for rows, digest in zip(start.examples, start.digests, strict=True)
    )


def _weights(start: Start) -> str:
    """Digest of the adapter with which the job begins; empty for a new one, which does not change the base."""
    if start.spec.parent_adapter is None:
        return ""
    values = start.adapter.values.detach().cpu().contiguous()
    shape = repr(start.adapter.shape).encode()
    return hashlib.sha256(shape + values.view(torch.uint8).numpy().tobytes()).hexdigest()


def _key(start: Start, digest: str, weights: str) -> str:
    spec, decoder = start.spec, start.decoder
    facts: list[Any] = [
        VERSION, spec.base.digest, spec.base.quantisation or "", weights, digest, str(decoder.dtype),
        decoder.device.type, decoder.ops.name, spec.threads, torch.__version__,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


class _References:
    """The references of one dataset. Only rank 0 reads and writes files."""

    def __init__(self, start: Start, rows: TokenizedRows, key: str) -> None:
        self.start, self.rows = start, rows
        self.place = Path(start.spec.cache_folder) / f"references-{key}" / "values"
        folder = start.spec.resume_folder
        self.partial = Path(folder) / f"references-{key}.part" if folder else None

    def values(self, per_example: int, log_probabilities: Callable[[Batch], Tensor]) -> Values:
        ranks, device = self.start.ranks, self.start.decoder.device
        known = self._read() if ranks.rank == 0 else np.zeros(0)
        done = ranks.most(len(known), device)
        values = torch.zeros(len(self.rows), dtype=torch.float64, device=device)
        values[: len(known)] = torch.from_numpy(known).to(device)
        ranks.share(values)
        if done < len(self.rows):
            self.start.say(_words(len(self.rows) // per_example, done // per_example))
            self._compute(values, done, per_example, log_probabilities)
            if ranks.rank == 0:
                self.place.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.place, _sealed(values.cpu().numpy()))
        if self.partial and ranks.rank == 0:
            self.partial.unlink(missing_ok=True)
        return values.cpu().numpy()

    def _read(self) -> Values:
        """Complete values, or those that an earlier attempt stored; none if no file is intact."""
        for path in filter(None, (self.place, self.partial)):
            if path.exists() and (known := _opened(path.read_bytes())) is not None and len(known) <= len(self.rows):
                return known
        return np.zeros(0)

    @torch.no_grad()
    def _compute(
        self, values: Tensor, done: int, per_example: int, log_probabilities: Callable[[Batch], Tensor]
    ) -> None:
        """Compute a block on each rank, then the next; all ranks have the same values after each round."""
        ranks, saved_at = self.start.ranks, time.monotonic()
        firsts = iter(range(done, len(self.rows), BLOCK_ROWS))
        while own := list(islice(firsts, ranks.count)):
            first, last = own[0], min(own[-1] + BLOCK_ROWS, len(self.rows))
            mine = own[ranks.rank] if ranks.rank < len(own) else own[0]  # a rank without a block computes in step
            part = self._block(mine, per_example, log_probabilities)
            shard = torch.zeros(last - first, dtype=torch.float64, device=values.device)
            if ranks.rank < len(own):
                shard[mine - first : mine - first + len(part)] = part
            ranks.sum(shard)
            values[first:last] = shard
            is_due = last < len(self.rows) and time.monotonic() - saved_at >= self.start.spec.resume_seconds
            if self.partial and ranks.rank == 0 and is_due:
                write_whole(self.partial, _sealed(values[:last].cpu().numpy()))
                saved_at = time.monotonic()

    def _block(self, first: int, per_example: int, log_probabilities: Callable[[Batch], Tensor]) -> Tensor:
        """The values of one block. With a sharded base ranks compute in step: all make the same number of calls, that
        of the rank with most batches."""
        decoder, ranks = self.start.decoder, self.start.ranks
        rows = take(self.rows, range(first, min(first + BLOCK_ROWS, len(self.rows))))
        values = torch.zeros(len(rows), dtype=torch.float64, device=decoder.device)
        budget = BATCH_TOKENS * (1 if decoder.device.type == "cpu" else GPU_ROWS)
        batches = plan(rows, budget, per_example=per_example)
        for batch in batches:
            values[list(batch.numbers)] = log_probabilities(batch.to(decoder.device))
        for _ in range((ranks.most(len(batches), decoder.device) if decoder.is_sharded else 0) - len(batches)):
            log_probabilities(batches[0].to(decoder.device))
        return values


def _sealed(values: Values) -> bytes:
    content = values.astype("<f8").tobytes()
    return hashlib.sha256(content).digest() + content


def _opened(data: bytes) -> Values | None:
    """The values in a file; None if its bytes have changed, because they must not become part of a model."""
    digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if len(content) % 8 or hashlib.sha256(content).digest() != digest:
        return None
    return np.frombuffer(content, "<f8").astype(np.float64)


def _words(examples: int, done: int) -> str:
    more = f", after {done:,} that an earlier attempt computed" if done else ""
    return f"Computing the references of {examples:,} pairs: the model's own values before it is tuned{more}."
