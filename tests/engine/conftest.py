"""Datasets and tokenizers of the data tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from sarto.contract.common import DatasetRef
from sarto.engine.rendering.tokenizer import ChatTokenizer
from tests.engine.conversations import FAMILIES

Write = Callable[[Iterable[Any]], DatasetRef]


def row(prompt: str, reply: str) -> dict[str, Any]:
    turns = (("user", prompt), ("model", reply))
    return {"contents": [{"role": role, "parts": [{"text": text}]} for role, text in turns]}


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(FAMILIES / "smollm2")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows (bytes as they are, anything else as JSON) into a new file and gives its reference."""

    def write_rows(rows: Iterable[Any]) -> DatasetRef:
        path = tmp_path / f"data-{len(list(tmp_path.iterdir()))}.jsonl"
        lines = (each if isinstance(each, bytes) else json.dumps(each, ensure_ascii=False).encode() for each in rows)
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return DatasetRef(uri=f"gs://bucket/{path.name}", path=str(path), size_bytes=path.stat().st_size)

    return write_rows
