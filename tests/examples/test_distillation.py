"""The shipped prompts are what their page says: tickets of their own, without records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sarto.conversations.examples import parse_line

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = 144


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / path).read_text(encoding="utf-8").splitlines()]


def ticket(row: dict[str, Any]) -> str:
    return str(row["contents"][0]["parts"][0]["text"])


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", text.lower()))


PROMPTS = rows("distillation/train.jsonl")
TICKETS = [row for split in ("train", "validation", "test") for row in rows(f"support_tickets/{split}.jsonl")]


def test_every_row_is_a_prompt_under_the_instruction_of_the_tickets() -> None:
    assert len(PROMPTS) == ROWS
    raw = (EXAMPLES / "distillation" / "train.jsonl").read_bytes().splitlines()
    for number, (line, row) in enumerate(zip(raw, PROMPTS, strict=True), 1):
        assert row["systemInstruction"] == TICKETS[0]["systemInstruction"]
        assert [turn["role"] for turn in row["contents"]] == ["user"]
        assert parse_line(line, number, data_format="prompts").format == "contents"


def test_no_prompt_repeats_another_or_a_ticket_with_a_record() -> None:
    bags = [words(ticket(row)) for row in (*TICKETS, *PROMPTS)]
    for at in range(len(TICKETS), len(bags)):
        for other in bags[:at]:
            assert len(bags[at] & other) / max(1, len(bags[at] | other)) < 0.6, (bags[at], other)


def test_no_order_number_of_the_tickets_is_used_again() -> None:
    numbers = [set(re.findall(r"\b\d{5}\b", " ".join(map(ticket, part)))) for part in (TICKETS, PROMPTS)]
    assert not numbers[0] & numbers[1] and len(numbers[1]) > 90
