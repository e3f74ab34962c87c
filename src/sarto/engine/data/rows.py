"""One block of dataset lines into tokens, masks, faults and the facts that reports are made of.

Pure: bytes in, arrays and counts out, so that any number of processes may do it. Used by `prepare.py` and its workers.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from sarto.engine.data.gather import Gathered, gather
from sarto.engine.data.observe import find_secrets, guess_language, script_of
from sarto.engine.data.render import OpenRow, render_fully, render_planned, render_prompt, replies
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.schema.examples import DataFormat, Example, Role, RowFault, parse_line

Array = np.ndarray[Any, np.dtype[Any]]
LABEL_CHARACTERS = 40
LABELS = 200
"""A dataset with more different short answers than this has no labels worth counting."""
PROVED_ROWS = 8
"""Rows of a block whose prompts are rendered and encoded a second time the way serving does it, and compared, although
they were rendered by a plan that is known to give serving's prompts. Every row rendered without a plan is."""
SHOWN_SECRETS = 1000
LANGUAGE_ROWS, LANGUAGE_EVERY = 1000, 16
"""The language is guessed of so many first rows, and of each sixteenth after them."""
PROVED_REPLIES = 4
"""Of a conversation with more replies, the last one is proved."""
SAMPLE_CHARACTERS = 400
UNLIKE_SERVING = (
    "a prompt that serving would send as other tokens",
    "the same tokens in training and serving",
    "report this row; it was not trained",
)
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


@dataclass(frozen=True, slots=True)
class _Row:
    """A line that could be read and rendered, its texts not yet encoded."""

    example: Example
    open_rows: list[OpenRow]
    is_planned: bool


def process_block(data: bytes, first_line: int, tokenizer: ChatTokenizer, options: Options) -> BlockResult:
    """Every line of a block. A line that cannot be used is a fault, never an exception."""
    facts = Facts()
    rows: list[_Row] = []
    too_long: list[int] = []
    line = first_line - 1
    for raw in data.split(b"\n"):
        line += 1
        if not raw or raw.isspace():
            continue
        try:
            example = parse_line(raw, line, data_format=options.data_format)
            _check_characters(example, tokenizer, options.max_tokens, too_long)
            planned = render_planned(example, tokenizer)
            rows.append(_Row(example, planned or render_fully(example, tokenizer), planned is not None))
        except RowFault as fault:
            facts.faults.append(_listed(fault, line))
    gathered, used = _gather(rows, tokenizer, options, too_long, facts)
    facts.faults.sort(key=lambda fault: int(fault[0]))
    secrets = find_secrets(data, first_line)
    facts.secrets = secrets[:SHOWN_SECRETS]
    _observe([row.example for row in used], facts, with_samples=first_line == 1)
    facts.counts["secrets"] = dict(Counter(kind for _, kind, _ in secrets))
    facts.counts["tokens"] = _token_faults(gathered, tokenizer)
    return BlockResult(_arrays(used, gathered, too_long, options), facts)


def _listed(fault: RowFault, line: int) -> list[Any]:
    return [line, fault.path, fault.seen, fault.wanted, fault.fix]


def _gather(
    rows: list[_Row], tokenizer: ChatTokenizer, options: Options, too_long: list[int], facts: Facts
) -> tuple[Gathered, list[_Row]]:
    """Tokens of the rows that can be used; a row that proves too long or unlike serving becomes a fault."""
    gathered = gather([each for row in rows for each in row.open_rows], tokenizer.words)
    firsts = np.cumsum([0, *(len(row.open_rows) for row in rows)])
    ends = offsets(gathered.lengths)
    bad: set[int] = set()
    for number in np.unique(
        np.searchsorted(firsts, np.flatnonzero(gathered.lengths > options.max_tokens), "right") - 1
    ).tolist():
        longest = int(gathered.lengths[firsts[number] : firsts[number + 1]].max())
        too_long.append(longest)
        fault = RowFault("", f"{longest:,} tokens", f"at most {options.max_tokens:,} tokens", TOO_LONG)
        facts.faults.append(_listed(fault, rows[number].example.line))
        bad.add(number)
    for number, row in enumerate(rows):
        if number in bad or (row.is_planned and number >= PROVED_ROWS):
            continue
        first, last = int(firsts[number]), int(firsts[number + 1])
        tokens = [gathered.tokens[ends[entry] : ends[entry + 1]] for entry in range(first, last)]
        if not _is_proved(row.example, tokens, gathered, first, tokenizer):
            facts.faults.append(_listed(RowFault("", *UNLIKE_SERVING), row.example.line))
            bad.add(number)
    if not bad:
        return gathered, rows
    rows = [row for number, row in enumerate(rows) if number not in bad]
    return gather([each for row in rows for each in row.open_rows], tokenizer.words), rows


def _is_proved(example: Example, tokens: list[Array], gathered: Gathered, first: int, tokenizer: ChatTokenizer) -> bool:
    """Whether the tokens in front of each reply are those that serving sends for the conversation up to there."""
    span_ends = np.cumsum(gathered.span_counts)
    starts = [
        (row, int(start))
        for entry, row in enumerate(tokens, first)
        for start in gathered.spans[span_ends[entry] - gathered.span_counts[entry] : span_ends[entry], 0]
    ]
    found = list(zip(replies(example), starts, strict=True))
    for (conversation, turn), (row, start) in found if len(found) <= PROVED_REPLIES else found[-1:]:
        prompt = render_prompt(conversation, tokenizer, thinking=tokenizer.template.thinks(turn))
        if row[:start].tolist() != prompt:
            return False
    return True


def _observe(examples: list[Example], facts: Facts, *, with_samples: bool) -> None:
    """What is cheap to see about the conversations and their texts."""
    shapes = Counter([tuple([turn.role for turn in example.turns]) for example in examples])
    scripts: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for example in examples:
        reply = example.turns[-1].text
        scripts[script_of(reply)] += 1
        if len(labels) <= LABELS:
            labels[reply if len(reply) <= LABEL_CHARACTERS else ""] += 1
        if example.line % LANGUAGE_EVERY == 1 or example.line <= LANGUAGE_ROWS:
            languages[guess_language(" ".join([turn.text for turn in example.turns[-2:]]))] += 1
    facts.labels = dict(labels) if len(labels) <= LABELS else None
    facts.samples = [sample(example) for example in examples[:3]] if with_samples else []
    facts.counts = {
        **_count_shapes(shapes),
        "formats": dict(Counter([example.format for example in examples])),
        "scripts": dict(scripts),
        "languages": dict(languages),
    }


def _count_shapes(shapes: Counter[tuple[Role, ...]]) -> dict[str, dict[str, int]]:
    """Turns by role, and rows by their number of turns."""
    roles: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    for shape, count in shapes.items():
        turns[str(len(shape))] += count
        for role in shape:
            roles[role] += count
    return {"roles": dict(roles), "turns": dict(turns)}


def _check_characters(example: Example, tokenizer: ChatTokenizer, max_tokens: int, too_long: list[int]) -> None:
    """Refuse by its characters what is too long for certain, before time goes into its tokens."""
    fewest = tokenizer.fewest_tokens(sum([len(turn.text) for turn in example.turns]))
    if fewest > max_tokens:
        too_long.append(fewest)
        raise RowFault("", f"more than {fewest:,} tokens", f"at most {max_tokens:,} tokens", TOO_LONG)


def _token_faults(gathered: Gathered, tokenizer: ChatTokenizer) -> dict[str, int]:
    """Rows whose tokens begin twice, or whose reply does not end with an end-of-turn token; both should be none."""
    ends = offsets(gathered.lengths)
    first, second, last = ends[:-1], ends[:-1] + 1, ends[1:] - 1
    double = 0
    if tokenizer.bos_id is not None:
        both = (gathered.tokens[first] == tokenizer.bos_id) & (gathered.tokens[second] == tokenizer.bos_id)
        double = int(both.sum())
    closing = np.array(sorted(tokenizer.end_of_turn_ids), dtype=np.uint32)
    return {"double_bos": double, "no_end_of_turn": int((~np.isin(gathered.tokens[last], closing)).sum())}


def _arrays(used: list[_Row], gathered: Gathered, too_long: list[int], options: Options) -> dict[str, Array]:
    """The columns of a block."""
    entries = np.array([len(row.open_rows) for row in used], dtype=np.int64)
    lasts = np.cumsum(entries) - 1
    turns = [row.example.turns for row in used]
    per_example = offsets(gathered.lengths)[np.concatenate([lasts + 1 - entries, lasts[-1:] + 1])]
    learned = offsets(gathered.learned)[np.concatenate([lasts + 1 - entries, lasts[-1:] + 1])]
    columns: dict[str, Any] = {
        "lines": [row.example.line for row in used],
        "entries": entries,
        "tokens_of": np.diff(per_example),
        "learned_of": np.diff(learned),
        "turns_of": [len(each) - (each[0].role == "system") for each in turns],
        "characters_of": [sum([len(turn.text) for turn in each]) for each in turns],
        "prompt_hash": gathered.prompt_hash[lasts],
        "row_hash": gathered.row_hash[lasts],
        "lengths": gathered.lengths,
        "span_counts": gathered.span_counts,
        "spans": gathered.spans.reshape(-1),
        "too_long": too_long,
    }
    arrays = {name: np.array(columns[name], dtype=kind) for name, kind in COLUMNS.items()}
    arrays["tokens"] = gathered.tokens.astype("<u2" if options.token_bytes == 2 else "<u4")
    return arrays


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
