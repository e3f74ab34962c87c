"""Answers of a system to the rows of a dataset, in memory and as a file of JSON lines. Each answer is generated once,
for several reports and across restarts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from sarto.system.files import write_whole


@dataclass(frozen=True)
class Answer:
    """The answer of a system to the row of this line, or the google.rpc.Status of its failure."""

    line: int
    text: str = ""
    error: dict[str, Any] | None = None
    finish_reason: str = ""
    output_tokens: int = 0


def save_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write all answers to a file by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, b"".join(orjson.dumps(asdict(answer)) + b"\n" for answer in answers))


def load_answers(path: Path) -> list[Answer]:
    """The answers in a file; none if there is no such file."""
    if not path.exists():
        return []
    return [Answer(**orjson.loads(line)) for line in path.read_bytes().splitlines()]
