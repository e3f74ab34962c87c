"""The shipped demo data is what its page says, and its score is exact."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "support_tickets"
SIZES = {"train": 300, "validation": 40, "test": 40}
VALUES: dict[str, set[Any]] = {
    "lang": {"en", "de", "it", "es"},
    "product": {"kitchen", "garden", "bike", "audio", "net", "none"},
    "topic": {"return", "repair", "delivery", "billing", "account", "question"},
    "urgency": {"danger", "soon", "normal"},
}


@pytest.fixture(scope="module")
def scoring() -> ModuleType:
    spec = importlib.util.spec_from_file_location("support_tickets_score", FOLDER / "score.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def ticket(row: dict[str, Any]) -> str:
    return str(row["contents"][0]["parts"][0]["text"])


def record(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row["contents"][1]["parts"][0]["text"])
    return found


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", text.lower()))


@pytest.mark.parametrize("split", SIZES)
def test_every_row_is_a_ticket_and_a_record_under_one_system_instruction(split: str) -> None:
    found = rows(split)
    assert len(found) == SIZES[split]
    system = rows("train")[0]["systemInstruction"]
    for row in found:
        assert row["systemInstruction"] == system
        assert [turn["role"] for turn in row["contents"]] == ["user", "model"]
        fields = record(row)
        assert list(fields) == ["lang", "order", "product", "topic", "urgency"]
        for field, values in VALUES.items():
            assert fields[field] in values, fields


@pytest.mark.parametrize("split", SIZES)
def test_order_is_the_one_five_digit_number_that_is_not_a_postcode(split: str) -> None:
    for row in rows(split):
        text = re.sub(r"PLZ \d{5}", "", ticket(row))
        numbers = set(re.findall(r"(?<!\d)\d{5}(?!\d)", text))
        order = record(row)["order"]
        assert numbers == (set() if order is None else {order}), text


def test_no_ticket_stands_twice_or_nearly_twice() -> None:
    tickets = [ticket(row) for split in SIZES for row in rows(split)]
    bags = [words(text) for text in tickets]
    for i, bag in enumerate(bags):
        for j in range(i):
            shared = len(bag & bags[j]) / max(1, len(bag | bags[j]))
            assert shared < 0.5, (tickets[i], tickets[j])


def test_no_order_number_is_in_two_tickets() -> None:
    orders = Counter(record(row)["order"] for split in SIZES for row in rows(split))
    del orders[None]
    assert max(orders.values()) == 1


def test_every_value_is_learnable_and_tested() -> None:
    for field, values in VALUES.items():
        assert {record(row)[field] for row in rows("test")} == values
        least = min(Counter(record(row)[field] for row in rows("train")).values())
        assert least >= 15, field


def test_danger_words_and_urgency_agree() -> None:
    danger = re.compile(r"\b(shock|flames|sparks|carbon monoxide|exploded|caught fire|melted into)\b", re.I)
    for split in SIZES:
        for row in rows(split):
            if danger.search(ticket(row)):
                assert record(row)["urgency"] == "danger" or "no spark" in ticket(row), ticket(row)


def test_the_right_answers_score_one_and_a_chatty_one_scores_nothing(scoring: ModuleType) -> None:
    wanted = [row.record for row in scoring.read_rows(FOLDER / "test.jsonl")]
    right = [json.dumps(record) for record in wanted]
    assert scoring.score(right, wanted).whole == 1.0
    chatty = scoring.score(["Sure! " + text for text in right], wanted)
    assert (chatty.valid, chatty.fields, chatty.whole) == (0.0, 0.0, 0.0)


def test_one_wrong_field_costs_a_fifth_of_the_fields_and_the_whole_record(scoring: ModuleType) -> None:
    wanted = {"lang": "en", "order": "12345", "product": "bike", "topic": "repair", "urgency": "normal"}
    other = scoring.score([json.dumps(wanted | {"order": "12346"})], [wanted])
    assert (other.valid, other.fields, other.whole) == (1.0, 0.8, 0.0)
    assert other.by_field["order"] == 0.0


def test_null_is_not_the_word(scoring: ModuleType) -> None:
    wanted = {"lang": "en", "order": None, "product": "bike", "topic": "repair", "urgency": "normal"}
    assert scoring.score([json.dumps(wanted)], [wanted]).whole == 1.0
    assert scoring.score([json.dumps(wanted | {"order": "null"})], [wanted]).by_field["order"] == 0.0
