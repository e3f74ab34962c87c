"""Tokens of a dataset on disk: computed once, named by a hash of their inputs, read through memory maps.

A store is a folder `<cache>/<key>` that is created by one rename, so concurrent runs may create the same store.
Training reads rows; the data report reads the other columns.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sarto.engine.dataset.tokenise import COLUMNS, BlockResult, RowCounts, offsets
from sarto.engine.rendering.render import RENDERER_VERSION
from sarto.system.files import flush

STORE_VERSION = 2
Tokens = np.ndarray[Any, np.dtype[np.uint32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Array = np.ndarray[Any, np.dtype[Any]]


def store_key(tokenizer_digest: str, dataset_digest: str, data_format: str, max_tokens: int) -> str:
    """The name of a store: a hash of all inputs that decide its tokens."""
    parts = ["sarto", STORE_VERSION, RENDERER_VERSION, tokenizer_digest, dataset_digest, data_format, max_tokens]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


class TokenStore:
    """Rows of tokens with their loss masks. A row is one conversation, or one reply of it where the template requires
    that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.facts = RowCounts(**facts["facts"])
        self.columns: dict[str, Array] = {
            name: np.fromfile(folder / name, dtype=kind) for name, kind in COLUMNS.items()
        }
        self.lengths: Array = self.columns["lengths"]
        """Tokens of each row, (rows,) int32."""
        self._offsets = offsets(self.lengths)
        self._span_offsets = offsets(self.columns["span_counts"])
        self._row_lines = np.repeat(self.columns["lines"], self.columns["entries"])
        kind = f"<u{facts['token_bytes']}"
        size = (folder / "tokens").stat().st_size
        self._tokens = np.asarray(np.memmap(folder / "tokens", kind, "r")) if size else np.zeros(0, kind)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def line_count(self) -> int:
        """Lines that are used; each gives one example, or two that are a pair."""
        return int(np.count_nonzero(np.diff(self.columns["lines"], prepend=0)))

    @property
    def holds_pairs(self) -> bool:
        return len(self.columns["lines"]) > self.line_count

    @property
    def holds_prompts(self) -> bool:
        """Whether the rows are prompts without replies."""
        return "prompts" in self.facts.counts

    @property
    def token_count(self) -> int:
        return int(self._offsets[-1])

    def tokens(self, index: int) -> Tokens:
        """(T,) uint32."""
        return self._tokens[self._offsets[index] : self._offsets[index + 1]].astype(np.uint32)

    def loss_mask(self, index: int) -> Mask:
        """(T,), true where the token is learned."""
        mask = np.zeros(int(self.lengths[index]), dtype=bool)
        first, last = self._span_offsets[index], self._span_offsets[index + 1]
        for start, end in self.columns["spans"][2 * first : 2 * last].reshape(-1, 2):
            mask[start:end] = True
        return mask

    def line(self, index: int) -> int:
        """1-based line of the row in the dataset."""
        return int(self._row_lines[index])

    def reference(self, index: int) -> float:
        """0: a method that compares the model with the one it began as keeps that one's values beside the store."""
        return 0.0

    def stretches(self, rows: int) -> Iterator[tuple[int, Array, Array]]:
        """All tokens in parts of about `rows` rows: (first row, tokens of the part, lengths of its rows)."""
        for first in range(0, len(self), rows):
            last = min(first + rows, len(self))
            yield first, self._tokens[self._offsets[first] : self._offsets[last]], self.lengths[first:last]


class StoreWriter:
    """Writes a store into a temporary folder beside its path; `finish` moves it there by one rename."""

    def __init__(self, folder: Path, token_bytes: int) -> None:
        self._target, self._token_bytes = folder, token_bytes
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        self._files: dict[str, BinaryIO] = {name: (self._folder / name).open("wb") for name in (*COLUMNS, "tokens")}
        self.facts = RowCounts()

    def add(self, block: BlockResult) -> None:
        for name, file in self._files.items():
            file.write(block.arrays[name].data)
        self.facts.merge(block.facts)

    def finish(self) -> TokenStore:
        """The store at its path: this one, or that of a concurrent run, which has the same content."""
        for file in self._files.values():
            file.close()
        facts = {"facts": self.facts.to_json(), "token_bytes": self._token_bytes}
        (self._folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        for file_name in (*self._files, "facts.json"):
            flush(self._folder / file_name)
        try:
            self._folder.rename(self._target)
        except OSError:
            if not (self._target / "facts.json").exists():
                raise
            self.discard()
        return TokenStore(self._target)

    def discard(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)
