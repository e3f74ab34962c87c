"""One block of dataset lines into tokens, masks, faults and the facts that reports are made of.

Pure: bytes in, arrays and counts out, so that any number of processes may do it. Used by `prepare.py` and its workers.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from sarto.engine.data.observe import find_secrets, guess_language, script_of
from sarto.engine.data.render import Packed, render_packed, render_prompt, replies
from sarto.engine.data.tokenizer import ChatTokenizer, pack, unpack
from sarto.schema.examples import DataFormat, Example, RowFault, parse_line

Array = np.ndarray[Any, np.dtype[Any]]
LABEL_CHARACTERS = 40
LABELS = 200
"""A dataset with more different short answers than this has no labels worth counting."""
PROVED_ROWS = 16
"""Rows of a block whose prompts are rendered a second time the way serving does it, and compared."""
SHOWN_SECRETS = 1000
LANGUAGE_ROWS, LANGUAGE_EVERY = 1000, 16
"""The language is guessed of so many first rows, and of each sixteenth after them."""
SAMPLE_CHARACTERS = 400
TOO_LONG = "shorten the row, or tune a model with a longer context; rows are never cut"
COLUMNS: dict[str, str] = {
    "lines": "<i8",  # 1-based line of each example
    "entries": "<i4",  # token rows of each example; one unless the template splits it by reply
    "tokens_of": "<i4",  # rendered tokens of each example
    "learned_of": "<i4",  # those with loss
    "turns_of": "<i4",
    "characters_of": "<i4",
    "prompt_hash": "<u8",
    "row_hash": "<u8",
    "lengths": "<i4",  # tokens of each token row
    "span_counts": "<i4",
    "spans": "<i4",  # start, end pairs, one token row after the other
    "too_long": "<i4",  # tokens of each example that was dropped for its length
}


@dataclass
class Facts:
    """Counts over the rows of a block, or of a whole file once they are merged; plain JSON."""

    faults: list[list[Any]] = field(default_factory=list)
    """line, path, seen, wanted, fix"""
    secrets: list[list[Any]] = field(default_factory=list)
    """line, kind, the first characters"""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, int] | None = field(default_factory=dict)
    """How often each short answer occurs, "" for long ones; None once there are too many to be labels."""

    def merge(self, other: Facts) -> None:
        # Most words of a fault repeat; one copy of each keeps a file full of faults small.
        self.faults += [
            [sys.intern(word) if isinstance(word, str) else word for word in fault] for fault in other.faults
        ]
        self.secrets += other.secrets[: SHOWN_SECRETS - len(self.secrets)]
        self.samples += other.samples
        for name, counts in other.counts.items():
            mine = self.counts.setdefault(name, {})
            for key, count in counts.items():
                mine[key] = mine.get(key, 0) + count
        if self.labels is not None and other.labels is not None:
            self.labels = dict(Counter(self.labels) + Counter(other.labels))
        if other.labels is None or len(self.labels or ()) > LABELS:
            self.labels = None

    def to_json(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class Options:
    """What a block is read as."""

    data_format: DataFormat
    max_tokens: int
    token_bytes: int
    """2 where every id of the vocabulary fits, else 4."""


@dataclass
class BlockResult:
    """Columns as COLUMNS names them, `tokens` of all rows in a line, and the facts."""

    arrays: dict[str, Array]
    facts: Facts


class _Columns:
    """Grows with the rows of a block."""

    def __init__(self) -> None:
        self.values: dict[str, list[int]] = {name: [] for name in COLUMNS}
        self.tokens: list[bytes] = []

    def add(self, example: Example, rows: list[Packed], length: int) -> None:
        values = self.values
        learned = 0
        for row in rows:
            values["lengths"].append(len(row.tokens) >> 2)
            values["span_counts"].append(len(row.spans))
            for span in row.spans:
                values["spans"] += span
                learned += span[1] - span[0]
            self.tokens.append(row.tokens)
        last = rows[-1]
        values["lines"].append(example.line)
        values["entries"].append(len(rows))
        values["tokens_of"].append(length)
        values["learned_of"].append(learned)
        values["turns_of"].append(len(example.turns) - (example.turns[0].role == "system"))
        values["characters_of"].append(sum([len(turn.text) for turn in example.turns]))
        start = 4 * last.spans[-1][0]
        prompt = hashlib.blake2b(last.tokens[:start], digest_size=8)
        values["prompt_hash"].append(int.from_bytes(prompt.digest(), "little"))
        prompt.update(last.tokens[start:])
        values["row_hash"].append(int.from_bytes(prompt.digest(), "little"))


def process_block(data: bytes, first_line: int, tokenizer: ChatTokenizer, options: Options) -> BlockResult:
    """Every line of a block. A line that cannot be used is a fault, never an exception."""
    columns, facts = _Columns(), Facts()
    shapes: Counter[tuple[str, ...]] = Counter()
    formats: Counter[str] = Counter()
    observed = _Observations()
    line = first_line - 1
    proved = 0
    for raw in data.split(b"\n"):
        line += 1
        if not raw or raw.isspace():
            continue
        try:
            example = parse_line(raw, line, data_format=options.data_format)
            _check_characters(example, tokenizer, options.max_tokens, columns.values["too_long"])
            rows = render_packed(example, tokenizer)
            length = sum([len(row.tokens) for row in rows]) >> 2
            _check_length(rows, options.max_tokens, columns.values["too_long"])
            if proved < PROVED_ROWS:
                _prove(example, rows, tokenizer)
                proved += 1
        except RowFault as fault:
            facts.faults.append([line, fault.path, fault.seen, fault.wanted, fault.fix])
            continue
        columns.add(example, rows, length)
        formats[example.format] += 1
        shapes[tuple([turn.role for turn in example.turns])] += 1
        observed.add(example, line)
        if first_line == 1 and len(facts.samples) < 3:
            facts.samples.append(sample(example))
    secrets = find_secrets(data, first_line)
    facts.secrets = secrets[:SHOWN_SECRETS]
    facts.labels = observed.labels
    facts.counts = {
        **_count_shapes(shapes),
        "formats": dict(formats),
        "secrets": dict(Counter(kind for _, kind, _ in secrets)),
        "scripts": dict(observed.scripts),
        "languages": dict(observed.languages),
    }
    _count_token_faults(columns, tokenizer, facts)
    return BlockResult(_arrays(columns, options), facts)


def _count_shapes(shapes: Counter[tuple[str, ...]]) -> dict[str, dict[str, int]]:
    """Turns by role, and rows by their number of turns."""
    roles: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    for shape, count in shapes.items():
        turns[str(len(shape))] += count
        for role in shape:
            roles[role] += count
    return {"roles": dict(roles), "turns": dict(turns)}


def _check_length(rows: list[Packed], max_tokens: int, too_long: list[int]) -> None:
    longest = max([len(row.tokens) for row in rows]) >> 2
    if longest > max_tokens:
        too_long.append(longest)
        raise RowFault("", f"{longest:,} tokens", f"at most {max_tokens:,} tokens", TOO_LONG)


def _check_characters(example: Example, tokenizer: ChatTokenizer, max_tokens: int, too_long: list[int]) -> None:
    """Refuse by its characters what is too long for certain, before time goes into its tokens."""
    fewest = tokenizer.fewest_tokens(sum([len(turn.text) for turn in example.turns]))
    if fewest > max_tokens:
        too_long.append(fewest)
        raise RowFault("", f"more than {fewest:,} tokens", f"at most {max_tokens:,} tokens", TOO_LONG)


def _prove(example: Example, rows: list[Packed], tokenizer: ChatTokenizer) -> None:
    """The tokens in front of each reply are those that serving sends for the conversation up to there."""
    spans = [(row, span) for row in rows for span in row.spans]
    for (conversation, turn), (row, (start, _)) in zip(replies(example), spans, strict=True):
        prompt = render_prompt(conversation, tokenizer, thinking=tokenizer.template.thinks(turn))
        if unpack(row.tokens)[:start].tolist() != prompt:
            seen = "a prompt that serving would send as other tokens"
            raise RowFault("", seen, "the same tokens in training and serving", "report this row; it was not trained")


def _count_token_faults(columns: _Columns, tokenizer: ChatTokenizer, facts: Facts) -> None:
    """Rows whose tokens begin twice, or whose reply does not end with an end-of-turn token; both should be none."""
    counts = {"double_bos": 0, "no_end_of_turn": 0}
    ends = {pack([number]) for number in tokenizer.end_of_turn_ids}
    counts["no_end_of_turn"] = sum(row[-4:] not in ends for row in columns.tokens)
    if tokenizer.bos_id is not None:
        twice = pack([tokenizer.bos_id] * 2)
        counts["double_bos"] = sum(row[:8] == twice for row in columns.tokens)
    facts.counts["tokens"] = counts


def _arrays(columns: _Columns, options: Options) -> dict[str, Array]:
    arrays = {name: np.array(columns.values[name], dtype=kind) for name, kind in COLUMNS.items()}
    tokens = unpack(b"".join(columns.tokens))
    arrays["tokens"] = tokens.astype("<u2") if options.token_bytes == 2 else tokens
    return arrays


class _Observations:
    """What is cheap to see about the texts themselves."""

    def __init__(self) -> None:
        self.scripts: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.labels: Counter[str] | None = Counter()

    def add(self, example: Example, line: int) -> None:
        reply = example.turns[-1].text
        self.scripts[script_of(reply)] += 1
        if self.labels is not None:
            self.labels[reply if len(reply) <= LABEL_CHARACTERS else ""] += 1
            if len(self.labels) > LABELS:
                self.labels = None
        if line % LANGUAGE_EVERY == 1 or line <= LANGUAGE_ROWS:
            self.languages[guess_language(" ".join([turn.text for turn in example.turns[-2:]]))] += 1


def sample(example: Example) -> dict[str, Any]:
    """The contents of an example as the API shows them, each text cut near 400 characters."""
    contents: list[dict[str, Any]] = []
    for turn in example.turns:
        parts: list[dict[str, Any]] = []
        if turn.text:
            cut = turn.text if len(turn.text) <= SAMPLE_CHARACTERS else turn.text[:SAMPLE_CHARACTERS] + "…"
            parts.append({"text": cut})
        parts += [{"functionCall": {"name": call.name, "args": call.arguments}} for call in turn.calls]
        for response in turn.responses:
            content = response.content if isinstance(response.content, dict) else {"result": response.content}
            parts.append({"functionResponse": {"name": response.name, "response": content}})
        contents.append({"role": "model" if turn.role == "model" else "user", "parts": parts})
        if turn.role == "system":
            contents.pop()
    return {"line": example.line, "contents": contents}


def offsets(lengths: Array) -> Array:
    """Where each of consecutive stretches begins, and where the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
