"""The shipped pairs are what their page says, and their score counts right."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sarto.conversations.examples import parse_examples

FOLDER = Path(__file__).parents[2] / "examples" / "preference"
SIZES = {"train": 120, "validation": 20, "test": 20}


@pytest.fixture(scope="module")
def scoring() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preference_score", FOLDER / "score.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def lines(split: str) -> list[bytes]:
    return (FOLDER / f"{split}.jsonl").read_bytes().splitlines()


def replies(raw: bytes) -> tuple[str, str]:
    chosen, rejected = parse_examples(raw, 1, data_format="preference")
    return chosen.turns[-1].text, rejected.turns[-1].text


def question(raw: bytes) -> str:
    row: dict[str, Any] = json.loads(raw)
    return str(row["contents"][0]["parts"][0]["text"])


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", text.lower()))


@pytest.mark.parametrize("split", SIZES)
def test_every_row_is_a_pair_under_one_system_instruction(split: str) -> None:
    found = lines(split)
    assert len(found) == SIZES[split]
    system = json.loads(lines("train")[0])["systemInstruction"]
    for raw in found:
        assert json.loads(raw)["systemInstruction"] == system
        preferred, other = (len(reply.split()) for reply in replies(raw))
        assert preferred <= 25 and other >= 55


@pytest.mark.parametrize("split", SIZES)
def test_the_preferred_reply_stands_first_in_every_other_row(split: str) -> None:
    first = [json.loads(raw)["completions"][0]["score"] for raw in lines(split)]
    assert first == [1.0, 0.0] * (len(first) // 2)


def test_no_question_stands_twice_or_nearly_twice() -> None:
    bags = [words(question(raw)) for split in SIZES for raw in lines(split)]
    for i, bag in enumerate(bags):
        for other in bags[:i]:
            assert len(bag & other) / max(1, len(bag | other)) < 0.6, (bag, other)


def test_both_replies_of_a_pair_give_the_same_facts() -> None:
    """Numbers, addresses and names in quotes that the terse reply gives are in the other one too."""
    facts = re.compile(r"\"[^\"]+\"|[\w.]+@[\w.]+\w|[a-z]+\.marlow\.example|\b\d{3,}\b")
    missing = []
    for split in SIZES:
        for raw in lines(split):
            preferred, other = replies(raw)
            missing += [(fact, preferred) for fact in facts.findall(preferred) if fact.strip('"') not in other]
    assert missing == []


def test_the_score_counts_words_and_phrases_of_courtesy(scoring: ModuleType) -> None:
    pairs = scoring.read_pairs(FOLDER / "test.jsonl")
    terse = scoring.score([pair.preferred for pair in pairs])
    padded = scoring.score([pair.other for pair in pairs])
    assert terse.answers == len(pairs) == 20
    assert terse.mean_words < 13 and padded.mean_words > 70
    assert (terse.short, padded.short) == (1.0, 0.0)
    assert terse.courteous <= 0.1 < padded.courteous
    assert scoring.score(["Thank you for asking!", "Yes."]).courteous == 0.5
