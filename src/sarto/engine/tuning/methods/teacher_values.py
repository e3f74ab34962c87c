"""The teacher's distribution over each supervised token: its most probable tokens, and the rest as one. Computed once
for each row before the first step, and kept in the job's resume folder, from which the next attempt continues."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.contract.common import JudgeModel
from sarto.engine.models.decoder import Adapters, Decoder, Group, Projection
from sarto.engine.models.load import load_base, read_config
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.ops.reference import LOSS_ROWS
from sarto.engine.tuning.methods.method import Start
from sarto.engine.tuning.methods.target_losses import target_states
from sarto.engine.tuning.packing import Batch, MemoryPlan, TokenizedRows, plan, supervised_count, take
from sarto.engine.weights.peft import read_adapter

LISTED = 64
"""Tokens with a probability of their own."""
BLOCK_ROWS = 64
"""Rows that are computed and stored together. The division decides the rounding of sums, so it depends only on this."""
BATCH_TOKENS = 1024
DIGEST_BYTES = 32
VERSION = 1
FORWARD = MemoryPlan(token_budget=0, keep_attention=False)
TOLD_SECONDS = 30.0


def record(width: int) -> np.dtype[np.void]:
    """One target: ids, their log-probabilities, and last that of all other tokens."""
    listed = min(LISTED, width)
    return np.dtype([("ids", "<u4", (listed,)), ("logs", "<f4", (listed + 1,))])


@dataclass(frozen=True)
class _Rows:
    """A dataset whose rows know their places in the values."""

    rows: TokenizedRows
    first: int

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, index: int) -> npt.NDArray[np.uint32]:
        return self.rows.tokens(index)

    def loss_mask(self, index: int) -> npt.NDArray[np.bool_]:
        return self.rows.loss_mask(index)

    def line(self, index: int) -> int:
        return self.rows.line(index)

    def reference(self, index: int) -> float:
        return float(self.first + index)


class TeacherValues:
    """The values of all rows of a run. `width`: tokens that teacher and student have in common."""

    def __init__(self, width: int, files: list[npt.NDArray[np.uint8]], places: list[tuple[int, int, int]]) -> None:
        """`places`: of each row its file, and the first and last byte in it."""
        self.width, self._record, self._files, self._places = width, record(width), files, places

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The tokens (P, K) and log-probabilities (P, K + 1) at the batch's targets, in their order."""
        numbers = torch.empty_like(batch.references)
        numbers[batch.order] = batch.references
        found = np.concatenate([self._row(int(number)) for number in numbers.tolist()])
        device = batch.tokens.device
        ids = torch.from_numpy(found["ids"].astype(np.int64)).to(device)
        return ids, torch.from_numpy(np.ascontiguousarray(found["logs"])).to(device)

    def _row(self, number: int) -> npt.NDArray[np.void]:
        file, first, last = self._places[number]
        return self._files[file][first:last].view(self._record)


def with_teacher_values(
    start: Start, model: JudgeModel, temperature: float
) -> tuple[TeacherValues, tuple[TokenizedRows, ...]]:
    """The values for the rows of a run, and the datasets that refer to them."""
    teacher: _Teacher | None = None
    files, places, rows, width = [], list[tuple[int, int, int]](), [], 0
    for number, (dataset, digest) in enumerate(zip(start.examples, start.digests, strict=True)):
        teacher = teacher or _Teacher(start, model, temperature)
        width = teacher.width
        known = _Values(start, dataset, _key(start, model, temperature, digest), width)
        known.complete(teacher)
        rows.append(_Rows(dataset, len(places)))
        places += [(number, first, last) for first, last in known.places]
        files.append(known.mapped())
    return TeacherValues(width, files, places), tuple(rows)


def _key(start: Start, model: JudgeModel, temperature: float, digest: str) -> str:
    facts = [
        VERSION, LISTED, start.spec.base.digest, model.base.digest, model.base.quantisation or "", model.adapter_digest,
        temperature, digest, str(start.decoder.dtype), start.decoder.device.type, start.decoder.ops.name,
        start.spec.threads, torch.__version__,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


class _NoAdapter:
    """A base as it is."""

    def project(self, layer: int, group: Group, x: Tensor, projection: Projection) -> Tensor:
        return F.linear(x, projection.weight, projection.bias)


class _Teacher:
    """A decoder of the teacher's own, beside the student's; loaded when it computes first."""

    def __init__(self, start: Start, model: JudgeModel, temperature: float) -> None:
        self._start, self._model, self._temperature = start, model, temperature
        widths = (read_config(Path(each.folder)).vocabulary for each in (model.base, start.spec.base))
        self.width = min(widths)
        self._loaded: tuple[Decoder, Adapters] | None = None

    def _decoder(self) -> tuple[Decoder, Adapters]:
        if self._loaded is None:
            model, student = self._model, self._start.decoder
            decoder = load_base(model.base, student.dtype, student.device)
            decoder.ops = student.ops
            adapters: Adapters = _NoAdapter()
            if model.adapter_folder:
                file = read_adapter(Path(model.adapter_folder))
                adapters = adapter = LoraAdapter(decoder, file.shape)
                adapter.load(file)
            self._loaded = decoder, adapters
        return self._loaded

    @torch.no_grad()
    def values(self, batch: Batch) -> npt.NDArray[np.void]:
        """A record for each target of the batch, in the order of its rows as they were given."""
        decoder, adapter = self._decoder()
        hidden = target_states(decoder, adapter, batch.to(decoder.device), FORWARD)
        found = np.empty(len(hidden), record(self.width))
        for first in range(0, len(hidden), LOSS_ROWS):
            part = slice(first, first + LOSS_ROWS)
            z = decoder.logits(hidden[part])[:, : self.width].float() / self._temperature
            z -= z.logsumexp(1, keepdim=True)
            logs, ids = z.topk(min(LISTED, self.width), 1)
            rest = z.scatter_(1, ids, -torch.inf).logsumexp(1, keepdim=True)
            found["ids"][part] = ids.cpu().numpy()
            found["logs"][part] = torch.cat([logs, rest], 1).cpu().numpy()
        packed = np.split(found, list(accumulate(batch.counts))[:-1])
        return np.concatenate([packed[at] for at in batch.order.tolist()])


class _Values:
    """The values of one dataset in a file of blocks, each behind the SHA-256 of its bytes."""

    def __init__(self, start: Start, rows: TokenizedRows, key: str, width: int) -> None:
        self._start, self._rows = start, rows
        folder = Path(start.spec.resume_folder or start.spec.cache_folder)
        self._path = folder / f"teacher-{key}"
        size = record(width).itemsize
        self._counts = [supervised_count(rows.loss_mask(index)) for index in range(len(rows))]
        self.places: list[tuple[int, int]] = []
        """First and last byte of each row."""
        at = 0
        for index, count in enumerate(self._counts):
            at += DIGEST_BYTES * (index % BLOCK_ROWS == 0)
            self.places.append((at, at + count * size))
            at += count * size

    def mapped(self) -> npt.NDArray[np.uint8]:
        return np.asarray(np.memmap(self._path, np.uint8, "r"))

    def complete(self, teacher: _Teacher) -> None:
        """Compute the blocks that the file lacks."""
        done = self._whole_blocks()
        if done >= len(self._rows):
            return
        more = f", after {done:,} that an earlier attempt computed" if done else ""
        self._start.say(f"Computing the teacher's probabilities for {len(self._rows):,} rows{more}.")
        told = time.monotonic()
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.truncate(self._end(done))
            file.seek(self._end(done))
            for first in range(done, len(self._rows), BLOCK_ROWS):
                data = self._block(teacher, first)
                file.write(hashlib.sha256(data).digest() + data)
                file.flush()
                if time.monotonic() - told >= TOLD_SECONDS:
                    self._start.say(f"Teacher's probabilities: {first:,} of {len(self._rows):,} rows.")
                    told = time.monotonic()

    def _end(self, rows: int) -> int:
        """The bytes of the first rows, which are whole blocks."""
        return self.places[rows - 1][1] if rows else 0

    def _whole_blocks(self) -> int:
        """Rows whose blocks are in the file and intact; the last block may have been cut."""
        if not self._path.exists():
            return 0
        done = 0
        with self._path.open("rb") as file:
            for last in self._lasts():
                size = self.places[last - 1][1] - self._end(done) - DIGEST_BYTES
                digest, data = file.read(DIGEST_BYTES), file.read(size)
                if len(data) < size or hashlib.sha256(data).digest() != digest:
                    return done
                done = last
        return done

    def _lasts(self) -> Iterator[int]:
        for first in range(0, len(self._rows), BLOCK_ROWS):
            yield min(first + BLOCK_ROWS, len(self._rows))

    def _block(self, teacher: _Teacher, first: int) -> bytes:
        rows = take(self._rows, range(first, min(first + BLOCK_ROWS, len(self._rows))))
        found: dict[int, npt.NDArray[np.void]] = {}
        for batch in plan(rows, BATCH_TOKENS):
            values = teacher.values(batch)
            counts = [self._counts[first + number] for number in batch.numbers]
            parts = np.split(values, list(accumulate(counts))[:-1])
            found.update(zip(batch.numbers, parts, strict=True))
        return b"".join(found[number].tobytes() for number in sorted(found))
