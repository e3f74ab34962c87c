"""Fifty thousand broken lines: none crashes the data stage, none is accepted that cannot be rendered and proved.

Hypothesis draws seeds for whole blocks of lines and a generator of our own mutates real rows from them: bytes flipped,
cut and doubled, JSON values swapped for values of every other kind, keys lost, repeated and misspelt. Deterministic.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from sarto.conversations.examples import RowFault, parse_examples, parse_line
from sarto.engine.dataset.tokenise import TokeniseOptions, process_block
from sarto.engine.rendering.render import render, render_prompt, replies
from sarto.engine.rendering.tokenizer import ChatTokenizer
from tests.engine.conversations import CASES, FAMILIES
from tests.schema.test_examples import BAD_ROWS, NASTY

BLOCKS, LINES = 210, 256
FAMILY_OF_SEED = ("smollm2", "llama3", "qwen3", "gemma3", "qwen2")
LOADED = {name: ChatTokenizer.load(FAMILIES / name) for name in FAMILY_OF_SEED}
STRANGE_TEXTS = [
    "",
    " ",
    "user",
    "\x00",
    "\ufdd0",
    "\ufdd20\ufdd3",
    "\u2028",
    "x" * 3000,
    "<|im_end|>",
    "</think>",
    "{{ 7 * 7 }}",
]
STRANGE_OBJECTS = [[], {}, [[]], [None], {"": ""}, {"text": None}, {"text": "a", "functionCall": {"name": "f"}}]
STRANGE: list[Any] = [None, True, 0, -1, 1.5, 2**70, *STRANGE_TEXTS, *STRANGE_OBJECTS]
OTHERS: list[dict[str, Any]] = [
    {"input_text": "a b c", "output_text": "d"},
    {"prompt": "a", "completion": "b"},
    {"context": "c", "messages": [{"author": "user", "content": "a"}, {"author": "bot", "content": "b"}]},
    {"messages": CASES[6].messages, "tools": CASES[6].tools},
]
SEEDS = [*(case.row for case in CASES), *OTHERS]


def mutated_value(value: Any, draw: random.Random) -> Any:
    """The same JSON with one place changed."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        changed = dict(value)
        kind = draw.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[key + draw.choice(["", "s", "_", "\u00e9"])] = changed.pop(key)
        elif kind == 2:
            changed[draw.choice(["role", "text", "parts", "content", "extra"])] = draw.choice(STRANGE)
        else:
            changed[key] = mutated_value(changed[key], draw)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        kind = draw.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value, value[at]]
        if kind == 2:
            return value[::-1]
        return [*value[:at], mutated_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(STRANGE)


def mutated_bytes(raw: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(raw) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            raw = raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :]
        elif kind == 1:
            raw = raw[:at]
        elif kind == 2:
            raw = raw[:at] + raw[at : at + 30] * 2 + raw[at + 30 :]
        elif kind == 3:
            raw = (
                raw[:at]
                + draw.choice([b"NaN", b"\\ud800", b"\\u0000", b"\xff", b'"', b"{", b"]", b",", b" :"])
                + raw[at:]
            )
        elif kind == 4:
            raw = raw[:at] + b"[" * draw.choice([1, 70, 2000]) + raw[at:]
        else:
            raw = raw[at:] + raw[:at]
    return raw


def line(draw: random.Random) -> bytes:
    row: Any = draw.choice(SEEDS)
    for _ in range(draw.randrange(4)):
        row = mutated_value(row, draw)
    raw = json.dumps(row, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if draw.random() < 0.4:
        raw = mutated_bytes(raw, draw)
    return raw.replace(b"\n", b" ")


def check_block(lines: list[bytes], tokenizer: ChatTokenizer) -> int:
    """Every line is a fault or a row, and each row is what rendering and serving give for that line. Rows, counted."""
    for block_format in ("auto", "translation"):
        result = process_block(b"\n".join(lines), 1, tokenizer, TokeniseOptions(block_format, 4096, 4))  # type: ignore[arg-type]
        used = result.arrays["lines"].tolist()
        faulty = [fault[0] for fault in result.facts.faults]
        assert sorted(used + faulty) == [number for number, raw in enumerate(lines, 1) if raw.strip()]
        assert all(isinstance(word, str) for fault in result.facts.faults for word in fault[1:])
        json.dumps(result.facts.to_json())
        assert (result.arrays["learned_of"] > 0).all()
    result = process_block(b"\n".join(lines), 1, tokenizer, TokeniseOptions("auto", 4096, 4))
    for number in result.arrays["lines"].tolist()[::8]:
        prove(lines[number - 1], number, tokenizer)
    for raw in lines[::8]:
        try:
            parse_examples(raw, 1, data_format="preference")
        except RowFault as fault:
            assert fault.line == 1
    return len(result.arrays["lines"])


def prove(raw: bytes, number: int, tokenizer: ChatTokenizer) -> None:
    example = parse_line(raw, number)
    rows = render(example, tokenizer)
    starts = [(row, at) for row in rows for at, m in enumerate(row.loss_mask) if m and not row.loss_mask[at - 1]]
    for (conversation, turn), (row, start) in zip(replies(example), starts, strict=True):
        thinking = tokenizer.template.thinks(turn)
        assert row.tokens[:start] == render_prompt(conversation, tokenizer, thinking=thinking)
        assert row.loss_mask[-1] and row.tokens[-1] in tokenizer.end_of_turn_ids


accepted: list[int] = []
pytestmark = pytest.mark.slow


@seed(20261123)
@settings(max_examples=BLOCKS, deadline=None, database=None)
@given(number=st.integers(min_value=0, max_value=2**40))
def test_no_broken_line_crashes_or_passes(number: int) -> None:
    draw = random.Random(number)
    tokenizer = LOADED[FAMILY_OF_SEED[number % len(FAMILY_OF_SEED)]]
    accepted.append(check_block([line(draw) for _ in range(LINES)], tokenizer))


def test_the_fuzz_reached_its_number_and_both_outcomes() -> None:
    assert len(accepted) * LINES >= 50_000
    assert 0.1 < sum(accepted) / (len(accepted) * LINES) < 0.9


def deep(levels: int) -> bytes:
    return b'{"contents":' + b'{"a":[' * levels + b"1" + b"]}" * levels + b"}"


CORPUS: list[Callable[[], bytes]] = [
    lambda: b'{"prompt": "' + b"x" * 50_000_000 + b'", "completion": "y"}',
    lambda: b'{"prompt": "a", "completion": "' + "\u6f22".encode() * 300_000 + b'"}',
    lambda: b"[" * 50_000_000,
    lambda: b"\x00" * 1_000_000,
    lambda: b'{"prompt": "' + b"a " * 200_000 + b'", "completion": "y"}',
    lambda: b'{"prompt": "' + b" " * 500_000 + b'b", "completion": "y"}',
    lambda: b'{"prompt": "' + b"\\n" * 300_000 + b'b", "completion": "y"}',
    lambda: deep(300),
    lambda: deep(900),
    lambda: b'{"prompt": "' + b"\\u00e9" * 100_000 + b'", "completion": "\\ud83d\\ude00"}',
    lambda: b'{"messages": [' + b",".join([b'{"role": "user", "content": "x"}'] * 20_000) + b"]}",
    lambda: json.dumps({"messages": [{"role": r, "content": "x"} for r in ("user", "assistant") * 900]}).encode(),
    lambda: json.dumps({"messages": [{"role": r, "content": "x"} for r in ("user", "assistant") * 150]}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_an_extreme_line_is_a_fault_or_a_row(number: int) -> None:
    tokenizer = LOADED["smollm2"]
    raw = CORPUS[number]()
    result = process_block(raw, 1, tokenizer, TokeniseOptions("auto", 131_072, 4))
    assert len(result.arrays["lines"]) + len(result.facts.faults) == 1
    assert all(len(word) < 400 for fault in result.facts.faults for word in fault[1:])


def test_every_known_bad_line_is_refused_in_a_block() -> None:
    lines = [raw for raw, _ in NASTY if raw.strip() and b"\n" not in raw]
    lines += [json.dumps(given).encode() for given, _, _ in BAD_ROWS]
    result = process_block(b"\n".join([b"{}", *lines]), 1, LOADED["qwen3"], TokeniseOptions("auto", 4096, 4))
    assert len(result.arrays["lines"]) == 0
    assert len(result.facts.faults) == len(lines) + 1
