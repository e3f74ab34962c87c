"""A dataset file into a token store: every row checked, nothing cut, nothing dropped in silence.

Streams, so memory stays bounded whatever the file's size; a dataset that was prepared before is only opened. Used by
the run, and by the data report without a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sarto.engine.data.blocks import Block, scan
from sarto.engine.data.rows import BlockResult, Facts, Options, process_block
from sarto.engine.data.statistics import data_stats
from sarto.engine.data.store import StoreWriter, TokenStore, store_key
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.data.worker import Workers
from sarto.errors import FieldViolation, InvalidArgument
from sarto.schema.examples import DataFormat, RowFault
from sarto.schema.runs import DatasetRef, DataStats

SHOWN_FAULTS = 100
FAULTS_IN_MESSAGE = 10
ALONE_BYTES = 6 << 20
"""Up to this size one process is faster than starting more."""
SMALL_VALIDATION, LARGEST_SHARE = 1000, 0.3
"""More validation rows than this may be at most that share of the training rows."""


@dataclass(frozen=True)
class Limits:
    """Bounds on a dataset, each refused by name."""

    max_bytes: int = 1 << 30
    max_examples: int = 10_000_000
    max_line_bytes: int = 16 << 20
    max_dropped_share: float = 0.1
    role: str = "training"
    """What the data is for, in messages."""


@dataclass(frozen=True)
class Prepared:
    """A dataset ready to train on, with what there is to say about it."""

    dataset: DatasetRef
    store: TokenStore
    was_cached: bool

    @property
    def faults(self) -> list[RowFault]:
        """Every dropped row, in order."""
        return [RowFault(path, seen, wanted, fix, line) for line, path, seen, wanted, fix in self.store.facts.faults]

    @property
    def name(self) -> str:
        """What messages call the file."""
        return _name(self.dataset)

    @property
    def example_count(self) -> int:
        """Rows that are used."""
        return len(self.store.columns["lines"])

    def stats(self, step_count: int) -> DataStats:
        return data_stats(self.store, step_count)


def prepare(
    dataset: DatasetRef,
    tokenizer: ChatTokenizer,
    *,
    max_tokens: int,
    cache_folder: Path | str,
    data_format: DataFormat = "auto",
    limits: Limits = Limits(),
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Tokens and facts of a dataset. `progress` hears bytes done and bytes in all.

    Raises InvalidArgument for a file that is too large, empty, or of whose rows too many cannot be used."""
    path = Path(dataset.path)
    name = _name(dataset)
    if path.stat().st_size > limits.max_bytes:
        raise InvalidArgument(f"{name} has {path.stat().st_size:,} bytes; at most {limits.max_bytes:,} are allowed")
    digest = dataset.digest or _digest(path)
    place = Path(cache_folder) / store_key(tokenizer.digest, digest, data_format, max_tokens)
    was_cached = (place / "facts.json").exists()
    if was_cached:
        store = TokenStore(place)
    else:
        options = Options(data_format, max_tokens, 2 if tokenizer.vocabulary_size <= 1 << 16 else 4)
        store = _make(path, name, place, tokenizer, options, limits, processes, progress)
    _check_examples(store.facts, len(store.columns["lines"]), name, limits)
    return Prepared(dataset, store, was_cached)


def check_usable(training: Prepared, validation: Prepared | None, limits: Limits = Limits()) -> None:
    """What a job may begin with, of data that was prepared whatever it holds. Raises InvalidArgument naming a limit."""
    for prepared in filter(None, (training, validation)):
        _check_examples(prepared.store.facts, prepared.example_count, prepared.name, limits)
    if validation is None or validation.example_count <= SMALL_VALIDATION:
        return
    if validation.example_count > LARGEST_SHARE * training.example_count:
        raise InvalidArgument(
            f"{validation.name} has {validation.example_count:,} examples for {training.example_count:,} to learn from:"
            f" a validation file of more than {SMALL_VALIDATION:,} examples may have at most {LARGEST_SHARE:.0%}"
            " as many as the training file"
        )


def _make(
    path: Path,
    name: str,
    place: Path,
    tokenizer: ChatTokenizer,
    options: Options,
    limits: Limits,
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> TokenStore:
    size, done, examples = path.stat().st_size, 0, 0
    writer = StoreWriter(place, options.token_bytes)
    try:
        for block, result in _results(path, tokenizer, options, limits, processes if size > ALONE_BYTES else 1):
            writer.add(result)
            done += block.size
            examples += len(result.arrays["lines"])
            _check_not_too_many(examples, name, limits)
            if progress is not None:
                progress(done, size)
        _check_examples(writer.facts, examples, name, limits)
        return writer.finish()
    except BaseException:
        writer.discard()
        raise


def _results(
    path: Path, tokenizer: ChatTokenizer, options: Options, limits: Limits, processes: int
) -> Iterator[tuple[Block, BlockResult]]:
    """Blocks and what became of them, in order; by child processes when there is more than one."""

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


def _mark_oversized(result: BlockResult, block: Block, limits: Limits) -> BlockResult:
    if block.is_oversized:
        seen, wanted = f"a line of {block.size:,} bytes", f"at most {limits.max_line_bytes:,} bytes in a line"
        result.facts.faults.append([block.first_line, "", seen, wanted, "write each example on one line of its own"])
    return result


def _name(dataset: DatasetRef) -> str:
    return dataset.uri.rsplit("/", 1)[-1] or Path(dataset.path).name


def _check_not_too_many(examples: int, name: str, limits: Limits) -> None:
    if examples > limits.max_examples:
        raise InvalidArgument(
            f"{name} has more than {limits.max_examples:,} examples, the limit for {limits.role} data on this service;"
            " make it smaller"
        )


def _check_examples(facts: Facts, examples: int, name: str, limits: Limits) -> None:
    """Raise InvalidArgument when nothing is left to learn from, or too much was dropped."""
    _check_not_too_many(examples, name, limits)
    dropped, rows = len(facts.faults), examples + len(facts.faults)
    if rows == 0:
        raise InvalidArgument(f"{name} has no rows; write one JSON object per line")
    if examples and dropped <= limits.max_dropped_share * rows:
        return
    faults = [RowFault(path, seen, wanted, fix, line) for line, path, seen, wanted, fix in facts.faults[:SHOWN_FAULTS]]
    listed = "\n".join(f"  {fault}" for fault in faults[:FAULTS_IN_MESSAGE])
    more = f"\n  … and {dropped - FAULTS_IN_MESSAGE:,} more" if dropped > FAULTS_IN_MESSAGE else ""
    share = f"{100 * dropped / rows:.3g} %"
    allowed = f"at most {100 * limits.max_dropped_share:g} % may be dropped"
    message = f"{name}: {dropped:,} of {rows:,} rows cannot be used ({share}; {allowed}). The first:\n{listed}{more}"
    raise InvalidArgument(message, [FieldViolation(f"{name} line {fault.line}", fault.reason) for fault in faults])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
