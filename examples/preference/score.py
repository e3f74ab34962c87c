"""How long answers are, and how many of them are padded: plain counts, no judge."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

COURTESY = re.compile(
    r"\b(thank(s| you)|sorry|apolog\w+|happy to|glad to|great question|feel free|hesitate|hope (this|that|you)|"
    r"let (me|us) know|reach(ing)? out|appreciate|certainly|of course)\b",
    re.IGNORECASE,
)
SHORT_WORDS = 30


@dataclass(frozen=True)
class Pair:
    """A question with the preferred answer and the other one."""

    system: str
    question: str
    preferred: str
    other: str


@dataclass(frozen=True)
class Score:
    answers: int
    mean_words: float
    short: float
    """Share of answers with at most SHORT_WORDS words."""
    courteous: float
    """Share of answers with a phrase of courtesy."""


def read_pairs(path: Path) -> list[Pair]:
    return [_pair(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def score(answers: Sequence[str]) -> Score:
    lengths = [len(answer.split()) for answer in answers]
    return Score(
        answers=len(answers),
        mean_words=fmean(lengths),
        short=fmean(length <= SHORT_WORDS for length in lengths),
        courteous=fmean(bool(COURTESY.search(answer)) for answer in answers),
    )


def _pair(row: dict[str, Any]) -> Pair:
    preferred, other = sorted(row["completions"], key=lambda each: -each["score"])
    return Pair(
        _text(row["systemInstruction"]), _text(row["contents"][0]), _text(preferred["completion"]),
        _text(other["completion"]),
    )  # fmt: skip


def _text(content: dict[str, Any]) -> str:
    return str(content["parts"][0]["text"])
