"""Our renderer against `transformers`: the same text and the same tokens for every family and conversation, the mask on
the model's replies and their end alone, and the prompt in front of each reply exactly what serving sends."""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from sarto.conversations.examples import parse_line
from sarto.engine.rendering.render import (
    Rendered,
    pack_row,
    render,
    render_fully,
    render_packed,
    render_prompt,
    replies,
)
from sarto.engine.rendering.template_sandbox import FIXED_DAY
from sarto.engine.rendering.tokenizer import ChatTokenizer
from tests.engine.conversations import CASES, FAMILIES, FAMILY_NAMES, SMALL_BASE, Case

DAY = FIXED_DAY.strftime("%d %b %Y")
PAIRS = [(family, case) for family in FAMILY_NAMES for case in CASES if family in case.families]
OURS: dict[Path, ChatTokenizer] = {}
THEIRS: dict[Path, PreTrainedTokenizerFast] = {}


def ours(folder: Path) -> ChatTokenizer:
    if folder not in OURS:
        OURS[folder] = ChatTokenizer.load(folder)
    return OURS[folder]


def theirs(folder: Path) -> PreTrainedTokenizerFast:
    """The reference, given the same files and the names of the special tokens."""
    if folder not in THEIRS:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(config["bos_token_id"])
        ends = config["eos_token_id"]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0] if isinstance(ends, list) else ends)
        tokenizer.chat_template = (folder / "chat_template.jinja").read_text()
        THEIRS[folder] = tokenizer
    return THEIRS[folder]


def reference(folder: Path, case: Case, messages: list[dict[str, Any]], *, prompt: bool, thinking: bool) -> str:
    text = theirs(folder).apply_chat_template(
        messages,
        tools=case.tools or None,
        tokenize=False,
        add_generation_prompt=prompt,
        enable_thinking=thinking,
        date_string=DAY,
    )
    assert isinstance(text, str)
    return text


def reference_tokens(folder: Path, text: str) -> list[int]:
    return list(theirs(folder)(text, add_special_tokens=False)["input_ids"])


def check(folder: Path, case: Case) -> None:
    tokenizer = ours(folder)
    example = parse_line(case.line, 1)
    rows = render(example, tokenizer)
    conversations = replies(example)
    assert render_packed(example, tokenizer) == [pack_row(row, tokenizer) for row in render_fully(example, tokenizer)]
    at = [index for index, message in enumerate(case.messages) if message["role"] == "assistant"]
    for number, ((conversation, turn), index) in enumerate(zip(conversations, at, strict=True)):
        thinking = bool(turn.thought)
        prompt_text = reference(folder, case, case.messages[:index], prompt=True, thinking=thinking)
        through = reference(folder, case, case.messages[: index + 1], prompt=False, thinking=thinking)
        prompt = render_prompt(conversation, tokenizer, thinking=thinking)
        assert prompt == reference_tokens(folder, prompt_text)
        row = rows[number] if len(rows) > 1 else rows[0]
        start, end = spans(row)[0 if len(rows) > 1 else number]
        assert row.tokens[:start] == prompt
        assert through.startswith(prompt_text)
        learned = tokenizer.decode(row.tokens[start:end], skip_special_tokens=False)
        reply = through[len(prompt_text) :].rstrip("\n")
        assert unicodedata.normalize("NFC", learned) == unicodedata.normalize("NFC", reply)
        assert row.tokens[end - 1] in tokenizer.end_of_turn_ids
        assert row.tokens[:end] == reference_tokens(folder, through)[:end]
    assert sum(len(spans(row)) for row in rows) == len(at)
    assert all(row.loss_mask[-1] for row in rows)


def spans(row: Rendered) -> list[tuple[int, int]]:
    """The learned stretches of a row."""
    edges = [0, *(i for i in range(1, len(row.loss_mask)) if row.loss_mask[i] != row.loss_mask[i - 1]), len(row.tokens)]
    return [(a, b) for a, b in pairwise(edges) if row.loss_mask[a]]


@pytest.mark.parametrize(("family", "case"), PAIRS, ids=[f"{family}-{case.name}" for family, case in PAIRS])
def test_rendering_equals_the_reference(family: str, case: Case) -> None:
    check(FAMILIES / family, case)


@pytest.mark.real_base
@pytest.mark.parametrize("case", [case for case in CASES if "smollm2" in case.families], ids=lambda case: case.name)
def test_rendering_of_the_real_small_base_equals_the_reference(case: Case) -> None:
    if not (SMALL_BASE / "tokenizer.json").exists():
        pytest.skip("the small base is not on this machine")
    check(SMALL_BASE, case)


def test_a_reasoning_template_splits_a_conversation_by_reply() -> None:
    tokenizer = ours(FAMILIES / "qwen3")
    row = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 3]}
    rows = render(parse_line(json.dumps(row).encode(), 1), tokenizer)
    assert len(rows) == 3
    assert [len(spans(rendered)) for rendered in rows] == [1, 1, 1]


def test_reasoning_spelled_in_the_reply_is_the_thought_of_the_turn() -> None:
    tokenizer = ours(FAMILIES / "qwen3")
    parts = [{"text": "hm", "thought": True}, {"text": "42"}]
    apart = {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": parts}]}
    spelled = {"prompt": "q", "completion": "<think>\nhm\n</think>\n\n42"}
    first, second = (render(parse_line(json.dumps(row).encode(), 1), tokenizer) for row in (apart, spelled))
    assert first == second
