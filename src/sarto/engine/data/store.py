"""Tokens of a dataset on disk: made once, named by what they depend on, read through memory maps.

A store is a folder `<cache>/<key>` that appears whole or not at all, so several runs may make the same one at once.
Training reads rows; the data report reads the columns beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sarto.engine.data.render import RENDERER_VERSION
from sarto.engine.data.rows import COLUMNS, BlockResult, Facts, offsets

STORE_VERSION = 2
Tokens = np.ndarray[Any, np.dtype[np.uint32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Array = np.ndarray[Any, np.dtype[Any]]


def store_key(tokenizer_digest: str, dataset_digest: str, data_format: str, max_tokens: int) -> str:
    """The name of a store: everything that decides its tokens."""
    parts = ["sarto", STORE_VERSION, RENDERER_VERSION, tokenizer_digest, dataset_digest, data_format, max_tokens]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


class TokenStore:
    """Rows of tokens with their loss masks. A row is one conversation, or one reply of it where templates need that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.facts = Facts(**facts["facts"])
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
        """1-based line of the dataset that the row comes from."""
        return int(self._row_lines[index])

    def stretches(self, rows: int) -> Iterator[tuple[int, Array, Array]]:
        """All tokens in stretches of about `rows` rows: (first row, tokens of the stretch, lengths of its rows)."""
        for first in range(0, len(self), rows):
            last = min(first + rows, len(self))
            yield first, self._tokens[self._offsets[first] : self._offsets[last]], self.lengths[first:last]


class StoreWriter:
    """Writes a store into a temporary folder beside its place; `finish` puts it there in one step."""

    def __init__(self, place: Path, token_bytes: int) -> None:
        self._place, self._token_bytes = place, token_bytes
        place.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
        self._files: dict[str, BinaryIO] = {name: (self._folder / name).open("wb") for name in (*COLUMNS, "tokens")}
        self.facts = Facts()

    def add(self, block: BlockResult) -> None:
        for name, file in self._files.items():
            file.write(block.arrays[name].data)
        self.facts.merge(block.facts)

    def finish(self) -> TokenStore:
        """The store at its place: ours, or the one another run put there meanwhile, which has the same content."""
        for file in self._files.values():
            file.close()
        facts = {"facts": self.facts.to_json(), "token_bytes": self._token_bytes}
        (self._folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        for file_name in (*self._files, "facts.json"):
            with (self._folder / file_name).open("rb") as written:
                os.fsync(written.fileno())
        try:
            self._folder.rename(self._place)
        except OSError:
            if not (self._place / "facts.json").exists():
                raise
            self.discard()
        return TokenStore(self._place)

    def discard(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)
