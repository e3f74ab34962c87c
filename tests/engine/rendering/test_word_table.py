"""Many texts at once give the tokens of each alone: across blocks, when the table is full, and for odd tokenizers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sarto.conversations.examples import parse_line
from sarto.engine.dataset.gather import gather
from sarto.engine.rendering import word_table
from sarto.engine.rendering.render import pack_row, render_open
from sarto.engine.rendering.tokenizer import ChatTokenizer, unpack
from sarto.engine.rendering.word_table import WordTable
from tests.engine.conversations import CASES, FAMILIES, FAMILY_NAMES

LOADED = {name: ChatTokenizer.load(FAMILIES / name) for name in FAMILY_NAMES}
PLAIN = {name: Tokenizer.from_file(str(FAMILIES / name / "tokenizer.json")) for name in FAMILY_NAMES}
for _plain in PLAIN.values():
    _plain.encode_special_tokens = True
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2028", "\x1c", "\u200d"]
LETTERS = [
    "a",
    "The",
    "don't",
    "'S",
    "12",
    "3456",
    "\u00bd",
    "\u00e9",
    "e\u0301",
    "\u6f22\u5b57",
    "\U0001f600",
    "\u017f",
    "\u0130",
]
MARKS = [".", "...", '"', "{", "<think>", "<|im_end|>", "<eos>", "\ufb01", "\u0968\u0969", "\U0001f44d\U0001f3fd"]
PIECES = st.sampled_from([*SPACES, *LETTERS, *MARKS])
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join))
WORDS = ["The", "quick", "fox,", "don't", "1234", "\u00fcber", "caf\u00e9", "\u043f\u0440\u0438", "\u6f22\u5b57"]
WORDS += ["\U0001f600\nnew", "", "two\n\n", "", "three", ".", "\t", "x"]


def check(table: WordTable, family: str, texts: list[str]) -> None:
    tokens, counts = table.encode_texts(texts)
    at = 0
    for text, count in zip(texts, counts.tolist(), strict=True):
        assert tokens[at : at + count].tolist() == PLAIN[family].encode(text, add_special_tokens=False).ids
        at += count
    assert at == len(tokens)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS, max_size=6))
def test_texts_at_once_are_texts_alone(family: str, texts: list[str]) -> None:
    check(LOADED[family].words, family, texts)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_table_that_is_full_or_crowded_stays_exact(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_table, "SLOT_BITS", 9)
    monkeypatch.setattr(word_table, "WORD_LIMIT", 300)
    table = WordTable(LOADED[family]._encode_many, splits_at_spaces=True)
    generator = random.Random(5)
    for _ in range(30):
        texts = []
        for _ in range(20):
            made = ["".join(generator.choices("abcdefgh", k=generator.randint(1, 12))) for _ in range(10)]
            texts.append(" ".join(generator.choices(WORDS, k=20) + made + ["y" * generator.randint(100, 160)]))
        check(table, family, texts)
    assert 300 <= len(table) < 1000


def test_a_tokenizer_that_splits_elsewhere_has_each_text_as_one_word() -> None:
    table = WordTable(LOADED["llama3"]._encode_many, splits_at_spaces=False)
    check(table, "llama3", ["a b c", "", "a b c", " d", "x" * 500])
    assert len(table) == 3


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_rows_gathered_are_rows_packed(family: str) -> None:
    tokenizer = ChatTokenizer.load(FAMILIES / family)
    rows = [
        row for case in CASES if family in case.families for row in render_open(parse_line(case.line, 1), tokenizer)
    ]
    gathered = gather(rows, tokenizer.words)
    at, span = 0, 0
    for number, row in enumerate(rows):
        packed = pack_row(row, tokenizer)
        length, spans = int(gathered.lengths[number]), int(gathered.span_counts[number])
        assert gathered.tokens[at : at + length].tolist() == unpack(packed.tokens).tolist()
        assert [tuple(pair) for pair in gathered.spans[span : span + spans].tolist()] == list(packed.spans)
        assert gathered.learned[number] == sum(end - start for start, end in packed.spans)
        at, span = at + length, span + spans
    assert at == len(gathered.tokens)


def test_hashes_tell_rows_apart_by_tokens_and_order_alone(tokenizer: ChatTokenizer) -> None:
    def hashes(prompt: str, reply: str, before: str = "") -> tuple[int, int]:
        rows = [render_open(parse_line(f'{{"prompt": "{p}", "completion": "{r}"}}'.encode(), 1), tokenizer)[0]
                for p, r in ((before or "other", "row"), (prompt, reply))]  # fmt: skip
        gathered = gather(rows, tokenizer.words)
        return int(gathered.prompt_hash[1]), int(gathered.row_hash[1])

    assert hashes("a b", "c") == hashes("a b", "c", before="a much longer row stands in front of it")
    assert hashes("a b", "c")[0] == hashes("a b", "d")[0]
    assert hashes("a b", "c")[1] != hashes("a b", "d")[1]
    assert hashes("a b", "c")[0] != hashes("b a", "c")[0]
