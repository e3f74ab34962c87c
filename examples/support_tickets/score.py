"""The exact score of the support-ticket task: answers against records, field by field and whole. Standard library only.

python examples/support_tickets/score.py ANSWERS.txt [test.jsonl]    # one answer a line, in order
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
FIELDS = ("lang", "order", "product", "topic", "urgency")


@dataclass(frozen=True)
class Row:
    """One ticket of a dataset file."""

    system: str
    ticket: str
    answer: str

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.answer)
        return record


@dataclass(frozen=True)
class Score:
    """Shares between 0 and 1: answers that are a record at all, fields that match, whole records that match."""

    rows: int
    valid: float
    fields: float
    by_field: dict[str, float]
    whole: float


def read_rows(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        user, model = (turn["parts"][0]["text"] for turn in example["contents"])
        rows.append(Row(example["systemInstruction"]["parts"][0]["text"], user, model))
    return rows


def read_record(answer: str) -> dict[str, Any] | None:
    """The record an answer holds, or None: one JSON object, exactly the five keys, nothing around it."""
    try:
        record = json.loads(answer)
    except ValueError:
        return None
    return record if isinstance(record, dict) and set(record) == set(FIELDS) else None


def matches(answer: str, wanted: dict[str, Any]) -> dict[str, bool]:
    """Per field, whether it equals the wanted value in type and content. All false where the answer is no record."""
    record = read_record(answer)
    return {
        field: record is not None and type(record[field]) is type(wanted[field]) and record[field] == wanted[field]
        for field in FIELDS
    }


def score(answers: Sequence[str], wanted: Iterable[dict[str, Any]]) -> Score:
    found = [matches(answer, record) for answer, record in zip(answers, wanted, strict=True)]
    count = len(found)
    by_field = {field: sum(row[field] for row in found) / count for field in FIELDS}
    return Score(
        rows=count,
        valid=sum(read_record(answer) is not None for answer in answers) / count,
        fields=sum(by_field.values()) / len(FIELDS),
        by_field=by_field,
        whole=sum(all(row.values()) for row in found) / count,
    )


def main() -> None:
    answers = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    rows = read_rows(Path(sys.argv[2]) if len(sys.argv) > 2 else FOLDER / "test.jsonl")
    print(score(answers, [row.record for row in rows]))


if __name__ == "__main__":
    main()
