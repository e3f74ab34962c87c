"""What a system answered to the rows of a dataset, in memory and as a file of JSON lines, so that no answer is asked
for twice: not for two reports, and not after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True)
class Answer:
    """What a system answered to the row of that line, or the google.rpc.Status of why it did not."""

    line: int
    text: str = ""
    error: dict[str, Any] | None = None
    finish_reason: str = ""
    output_tokens: int = 0


def save_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(b"".join(orjson.dumps(asdict(answer)) + b"\n" for answer in answers))
    unfinished.replace(path)


def load_answers(path: Path) -> list[Answer]:
    """The answers of a file, none where there is no such file."""
    if not path.exists():
        return []
    return [Answer(**orjson.loads(line)) for line in path.read_bytes().splitlines()]
