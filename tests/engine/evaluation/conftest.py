"""The shipped corpus of predictions and references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus() -> list[tuple[str, str]]:
    """(prediction, reference) of the shipped corpus."""
    lines = Path(__file__).with_name("corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["prediction"], row["reference"]) for row in map(json.loads, lines)]
