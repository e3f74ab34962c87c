"""What `sarto data` prints of a real report and a real proof."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sarto.cli import output
from sarto.cli.datasets import data
from sarto.engine.dataset_report.mask_proof import show_row
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.errors import FailedPrecondition
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(make_tiny_base(tmp_path_factory.mktemp("base") / "tiny").folder)


def test_the_mask_proof_colours_the_reply_and_nothing_else(tickets: Path, tokenizer: ChatTokenizer) -> None:
    proof = show_row(tickets, 4, tokenizer)
    text = data.masked(proof["training"][0]["tokens"])
    learned = "".join(text.plain[span.start : span.end] for span in text.spans if span.style == data.LEARNED)
    assert learned == "3<|im_end|>"
    assert "say 3" in text.plain.replace("|", "")


def test_a_row_that_cannot_be_used_is_explained(
    tmp_path: Path, tokenizer: ChatTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}) + "\n")
    with pytest.raises(FailedPrecondition):
        data.print_proof(show_row(path, 1, tokenizer))
    assert "line 1" in capsys.readouterr().out


def test_durations_are_words_people_use() -> None:
    assert [output.duration(seconds) for seconds in (0.4, 59.6, 61, 3600, 7384)] == [
        "0s", "1m 00s", "1m 01s", "1h 00m", "2h 03m",
    ]  # fmt: skip
