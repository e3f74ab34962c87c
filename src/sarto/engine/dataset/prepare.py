"""Prepare a dataset file as a token store: every row is checked, no row is cut, and every dropped row is reported.

The file is streamed, so memory stays bounded. A dataset that was prepared before is only opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sarto.contract.common import DatasetRef
from sarto.contract.tuning_run import DataStats
from sarto.conversations.dropping import DROPPED_SHARE, refusal
from sarto.conversations.examples import DataFormat, RowFault
from sarto.engine.dataset.blocks import Block, read_line, scan
from sarto.engine.dataset.statistics import data_stats
from sarto.engine.dataset.token_store import StoreWriter, TokenStore, store_key
from sarto.engine.dataset.tokenise import BlockResult, TokeniseOptions, process_block
from sarto.engine.dataset.worker import Workers
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.errors import FieldViolation, InvalidArgument

SHOWN_FAULTS = 100
FAULTS_IN_MESSAGE = 10
ALONE_BYTES = 6 << 20
"""Up to this size one process is faster than several."""
SMALL_VALIDATION, LARGEST_SHARE = 1000, 0.3
"""With more validation rows than the first, they may be at most the second as a share of the training rows."""


@dataclass(frozen=True)
class DatasetLimits:
    """Limits of a dataset; each is refused by name."""

    max_bytes: int = 1 << 30
    max_examples: int = 10_000_000
    max_line_bytes: int = 16 << 20
    max_dropped_share: float = DROPPED_SHARE
    role: str = "training"
    """The purpose of the data in messages."""


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset that is ready for training, with the facts for its report."""

    dataset: DatasetRef
    store: TokenStore
    was_cached: bool
    origins: tuple[int, ...] = ()
    """Of labelled prompts: the line of the prompt of each row."""

    def with_origins(self, lines: Iterable[int]) -> PreparedDataset:
        return replace(self, origins=tuple(lines))

    @property
    def faults(self) -> list[RowFault]:
        """Every dropped row, in order."""
        return [
            RowFault(path, seen, expected, fix, line) for line, path, seen, expected, fix in self.store.facts.faults
        ]

    @property
    def name(self) -> str:
        """The file's name in messages."""
        return _name(self.dataset)

    @property
    def example_count(self) -> int:
        """The number of usable rows."""
        return self.store.line_count

    def raw(self, line: int) -> bytes:
        """A usable row as in the file."""
        line_bytes = read_line(Path(self.dataset.path), line, DatasetLimits().max_line_bytes)
        assert line_bytes is not None
        return line_bytes

    def stats(self, step_count: int) -> DataStats:
        return data_stats(self.store, step_count)


def prepare(
    dataset: DatasetRef,
    tokenizer: ChatTokenizer,
    *,
    max_tokens: int,
    cache_folder: Path | str,
    data_format: DataFormat = "auto",
    limits: DatasetLimits = DatasetLimits(),
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> PreparedDataset:
    """Tokenise a dataset and collect its facts. `progress` is called with the bytes done and the total bytes.

    Raises InvalidArgument for a file that is too large or empty, or that has too many unusable rows."""
    path = Path(dataset.path)
    name = _name(dataset)
    if path.stat().st_size > limits.max_bytes:
        raise InvalidArgument(f"{name} has {path.stat().st_size:,} bytes; at most {limits.max_bytes:,} are allowed.")
    digest = dataset.digest or _digest(path)
    folder = Path(cache_folder) / store_key(tokenizer.digest, digest, data_format, max_tokens)
    was_cached = (folder / "facts.json").exists()
    if was_cached:
        store = TokenStore(folder)
    else:
        options = TokeniseOptions(data_format, max_tokens, 2 if tokenizer.vocabulary_size <= 1 << 16 else 4)
        store = _make(path, name, folder, tokenizer, options, limits, processes, progress)
    check_examples(store.facts.faults, store.line_count, name, limits)
    return PreparedDataset(dataset, store, was_cached)


def check_usable(
    training: PreparedDataset, validation: PreparedDataset | None, limits: DatasetLimits = DatasetLimits()
) -> None:
    """Check that a job may start with prepared data. Raises InvalidArgument with the limit that it exceeds."""
    for prepared in filter(None, (training, validation)):
        check_examples(prepared.store.facts.faults, prepared.example_count, prepared.name, limits)
    if validation is None or validation.example_count <= SMALL_VALIDATION:
        return
    if validation.example_count > LARGEST_SHARE * training.example_count:
        raise InvalidArgument(
            f"{validation.name} has {validation.example_count:,} examples for {training.example_count:,} to learn from:"
            f" a validation file of more than {SMALL_VALIDATION:,} examples may have at most {LARGEST_SHARE:.0%}"
            " as many as the training file."
        )


def _make(
    path: Path,
    name: str,
    folder: Path,
    tokenizer: ChatTokenizer,
    options: TokeniseOptions,
    limits: DatasetLimits,
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> TokenStore:
    size, done, examples = path.stat().st_size, 0, 0
    writer = StoreWriter(folder, options.token_bytes)
    try:
        for block, result in _results(path, tokenizer, options, limits, processes if size > ALONE_BYTES else 1):
            writer.add(result)
            done += block.size
            examples += int(np.count_nonzero(np.diff(result.arrays["lines"], prepend=0)))
            _check_not_too_many(examples, name, limits)
            if progress is not None:
                progress(done, size)
        check_examples(writer.facts.faults, examples, name, limits)
        return writer.finish()
    except BaseException:
        writer.discard()
        raise


def _results(
    path: Path, tokenizer: ChatTokenizer, options: TokeniseOptions, limits: DatasetLimits, processes: int
) -> Iterator[tuple[Block, BlockResult]]:
    """Blocks with their results, in order; computed by child processes if `processes` is more than one."""

    def blocks() -> Iterator[Block]:
        for block in scan(path, limits.max_line_bytes):
            sent.append(block)
            yield block

    sent: list[Block] = []
    if processes <= 1:
        for block in blocks():
            result = process_block(block.read(path), block.first_line, tokenizer, options)
            yield sent.pop(0), _mark_oversized(result, block, limits)
        return
    workers = Workers(processes, tokenizer.folder, path, options)
    try:
        for result in workers.map(blocks()):
            block = sent.pop(0)
            yield block, _mark_oversized(result, block, limits)
    finally:
        workers.close()


def _mark_oversized(result: BlockResult, block: Block, limits: DatasetLimits) -> BlockResult:
    if block.is_oversized:
        seen, expected = f"a line of {block.size:,} bytes", f"at most {limits.max_line_bytes:,} bytes in a line"
        result.facts.faults.append([block.first_line, "", seen, expected, "write each example on one line of its own"])
    return result


def _name(dataset: DatasetRef) -> str:
    return dataset.uri.rsplit("/", 1)[-1] or Path(dataset.path).name


def _check_not_too_many(examples: int, name: str, limits: DatasetLimits) -> None:
    if examples > limits.max_examples:
        raise InvalidArgument(
            f"{name} has more than {limits.max_examples:,} examples, the limit for {limits.role} data on this service;"
            " make it smaller."
        )


def check_examples(dropped_rows: Sequence[list[Any]], examples: int, name: str, limits: DatasetLimits) -> None:
    """Raise InvalidArgument when no row is usable, or when too many were dropped."""
    _check_not_too_many(examples, name, limits)
    dropped = len(dropped_rows)
    words = refusal(name, dropped, examples + dropped, limits.max_dropped_share)
    if not words:
        return
    if not dropped:
        raise InvalidArgument(words)
    faults = [
        RowFault(path, seen, expected, fix, line) for line, path, seen, expected, fix in dropped_rows[:SHOWN_FAULTS]
    ]
    listed = "\n".join(f"  {fault}" for fault in faults[:FAULTS_IN_MESSAGE])
    more = f"\n  … and {dropped - FAULTS_IN_MESSAGE:,} more" if dropped > FAULTS_IN_MESSAGE else ""
    message = f"{words}. The first:\n{listed}{more}"
    raise InvalidArgument(message, [FieldViolation(f"{name} line {fault.line}", fault.reason) for fault in faults])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
