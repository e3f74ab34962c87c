"""Convert one block of dataset lines into tokens, masks, faults and the facts of reports.

Pure: it takes bytes and returns arrays and counts, so any number of processes can run it.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any

import numpy as np

from sarto.conversations.examples import WITH_REPLY, DataFormat, Example, Role, RowFault, Turn, parse_examples
from sarto.conversations.gemini_rows import response_object
from sarto.engine.dataset.detectors import call_faults, find_secrets, guess_language, script_of
from sarto.engine.dataset.gather import TokenRows, gather
from sarto.engine.rendering.render import (
    OpenRow,
    render_fully,
    render_planned,
    render_prompt,
    render_question,
    replies,
)
from sarto.engine.rendering.tokenizer import ChatTokenizer

Array = np.ndarray[Any, np.dtype[Any]]
LABEL_CHARACTERS = 40
LABELS = 200
"""With more different short answers than this, a dataset is not counted as labels."""
PROVED_ROWS = 8
"""Rows of a block whose prompts are always rendered and encoded a second time by serving's function and compared. A row
that was rendered without a plan is always compared."""
SHOWN_SECRETS = 1000
LANGUAGE_ROWS, LANGUAGE_EVERY = 1000, 16
"""The language of the first rows, and of every sixteenth row after them, is guessed."""
PROVED_REPLIES = 4
"""In a conversation with more replies, only the last one is compared."""
SAMPLE_CHARACTERS = 400
UNLIKE_SERVING = (
    "a prompt that serving would send as other tokens",
    "the same tokens in training and serving",
    "report this row; it was not trained",
)
PROMPTS = ("prompts", "reinforcement")
"""Forms of data whose rows wait for the model."""
TOO_LONG = "shorten the row, or tune a model with a longer context; rows are never cut"
COLUMNS: dict[str, str] = {
    "lines": "<i8",  # 1-based line of each example; a pair is two examples of one line, the preferred one first
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
class RowCounts:
    """Counts over the rows of a block, or of a whole file once they are merged; plain JSON."""

    faults: list[list[Any]] = field(default_factory=list)
    """line, path, found, expected, remedy"""
    secrets: list[list[Any]] = field(default_factory=list)
    """line, kind, the first characters"""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, int] | None = field(default_factory=dict)
    """Frequency of each short answer, "" for long ones; None when there are too many to be labels."""

    def merge(self, other: RowCounts) -> None:
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
class TokeniseOptions:
    """Options for reading a block."""

    data_format: DataFormat
    max_tokens: int
    token_bytes: int
    """2 if every id of the vocabulary fits, else 4."""


@dataclass
class BlockResult:
    """The columns of COLUMNS, the `tokens` of all rows in one array, and the facts."""

    arrays: dict[str, Array]
    facts: RowCounts


@dataclass(frozen=True, slots=True)
class _Row:
    """A line that was parsed and rendered, with texts still to be encoded."""

    example: Example
    open_rows: list[OpenRow]
    is_planned: bool


def process_block(data: bytes, first_line: int, tokenizer: ChatTokenizer, options: TokeniseOptions) -> BlockResult:
    """Process every line of a block. An unusable line is a fault in the result, never an exception."""
    facts = RowCounts()
    rows: list[_Row] = []
    too_long: list[int] = []
    line = first_line - 1
    for raw in data.split(b"\n"):
        line += 1
        if not raw or raw.isspace():
            continue
        try:
            rows += _read(raw, line, tokenizer, options, too_long)
        except RowFault as fault:
            facts.faults.append(_listed(fault, line))
    gathered, used = _gather(rows, tokenizer, options, too_long, facts)
    facts.faults.sort(key=lambda fault: int(fault[0]))
    secrets = find_secrets(data, first_line)
    facts.secrets = secrets[:SHOWN_SECRETS]
    by_line = [[row.example for row in rows_of] for _, rows_of in groupby(used, key=lambda row: row.example.line)]
    _observe([examples[0] for examples in by_line], facts)
    facts.samples = [sample(*examples) for examples in by_line[:3]] if first_line == 1 else []
    facts.counts["secrets"] = dict(Counter(kind for _, kind, _ in secrets))
    if options.data_format in PROMPTS:
        with_reply = sum(row.example.format.endswith(WITH_REPLY) for row in used)
        facts.counts["prompts"], facts.counts["tokens"], facts.labels = {"with_reply": with_reply}, {}, None
    else:
        facts.counts["tokens"] = _token_faults(gathered, tokenizer)
    with_calls = (row.example for row in used if not row.is_planned)
    facts.counts["calls"] = dict(Counter(kind for example in with_calls for kind in call_faults(example)))
    return BlockResult(_arrays(used, gathered, too_long, options), facts)


def _read(raw: bytes, line: int, tokenizer: ChatTokenizer, options: TokeniseOptions, too_long: list[int]) -> list[_Row]:
    """All examples of one line, or RowFault."""
    rows = []
    for example in parse_examples(raw, line, data_format=options.data_format):
        _check_characters(example, tokenizer, options.max_tokens, too_long)
        if options.data_format in PROMPTS:  # these are serving's own tokens, which need no proof
            rows.append(_Row(example, render_question(example, tokenizer), True))
            continue
        planned = render_planned(example, tokenizer)
        rows.append(_Row(example, planned or render_fully(example, tokenizer), planned is not None))
    return rows


def _listed(fault: RowFault, line: int) -> list[Any]:
    return [line, fault.path, fault.seen, fault.expected, fault.fix]


def _gather(
    rows: list[_Row], tokenizer: ChatTokenizer, options: TokeniseOptions, too_long: list[int], facts: RowCounts
) -> tuple[TokenRows, list[_Row]]:
    """Tokens of the usable rows. A row that is too long or differs from serving becomes a fault, together with the
    other examples of its line."""
    gathered = gather([each for row in rows for each in row.open_rows], tokenizer.words)
    firsts = np.cumsum([0, *(len(row.open_rows) for row in rows)])
    ends = offsets(gathered.lengths)
    bad: set[int] = set()  # lines
    for number in np.unique(
        np.searchsorted(firsts, np.flatnonzero(gathered.lengths > options.max_tokens), "right") - 1
    ).tolist():
        line = rows[number].example.line
        if line in bad:
            continue
        longest = int(gathered.lengths[firsts[number] : firsts[number + 1]].max())
        too_long.append(longest)
        fault = RowFault("", f"{longest:,} tokens", f"at most {options.max_tokens:,} tokens", TOO_LONG)
        facts.faults.append(_listed(fault, line))
        bad.add(line)
    for number, row in enumerate(rows):
        if row.example.line in bad or (row.is_planned and (number >= PROVED_ROWS or options.data_format in PROMPTS)):
            continue
        first, last = int(firsts[number]), int(firsts[number + 1])
        tokens = [gathered.tokens[ends[entry] : ends[entry + 1]] for entry in range(first, last)]
        if not _is_proved(row.example, tokens, gathered, first, tokenizer):
            facts.faults.append(_listed(RowFault("", *UNLIKE_SERVING), row.example.line))
            bad.add(row.example.line)
    if not bad:
        return gathered, rows
    rows = [row for row in rows if row.example.line not in bad]
    return gather([each for row in rows for each in row.open_rows], tokenizer.words), rows


def _is_proved(
    example: Example, tokens: list[Array], gathered: TokenRows, first: int, tokenizer: ChatTokenizer
) -> bool:
    """Whether the tokens before each reply equal those that serving sends for the conversation up to there."""
    span_ends = np.cumsum(gathered.span_counts)
    starts = [
        (row, int(start))
        for entry, row in enumerate(tokens, first)
        for start in gathered.spans[span_ends[entry] - gathered.span_counts[entry] : span_ends[entry], 0]
    ]
    pairs = list(zip(replies(example), starts, strict=True))
    for (conversation, turn), (row, start) in pairs if len(pairs) <= PROVED_REPLIES else pairs[-1:]:
        prompt = render_prompt(conversation, tokenizer, thinking=tokenizer.template.thinks(turn))
        if row[:start].tolist() != prompt:
            return False
    return True


def _observe(examples: list[Example], facts: RowCounts) -> None:
    """Collect facts about the conversations and their texts at low cost; `examples` has one of each line."""
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
    facts.counts = {
        **_count_shapes(shapes),
        "formats": dict(Counter([example.format for example in examples])),
        "scripts": dict(scripts),
        "languages": dict(languages),
    }


def _count_shapes(shapes: Counter[tuple[Role, ...]]) -> dict[str, dict[str, int]]:
    """Count turns by role, and rows by their number of turns."""
    roles: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    for shape, count in shapes.items():
        turns[str(len(shape))] += count
        for role in shape:
            roles[role] += count
    return {"roles": dict(roles), "turns": dict(turns)}


def _check_characters(example: Example, tokenizer: ChatTokenizer, max_tokens: int, too_long: list[int]) -> None:
    """Refuse a row by its number of characters when it must be too long, before it is tokenised."""
    fewest = tokenizer.fewest_tokens(sum([len(turn.text) for turn in example.turns]))
    if fewest > max_tokens:
        too_long.append(fewest)
        raise RowFault("", f"more than {fewest:,} tokens", f"at most {max_tokens:,} tokens", TOO_LONG)


def _token_faults(gathered: TokenRows, tokenizer: ChatTokenizer) -> dict[str, int]:
    """Rows whose begin token occurs twice, or whose reply does not end with an end-of-turn token; a prompt has no
    reply. Both should be zero."""
    ends = offsets(gathered.lengths)
    first, second, last = ends[:-1], ends[:-1] + 1, ends[1:] - 1
    double = 0
    if tokenizer.bos_id is not None:
        both = (gathered.tokens[first] == tokenizer.bos_id) & (gathered.tokens[second] == tokenizer.bos_id)
        double = int(both.sum())
    closing = np.array(sorted(tokenizer.end_of_turn_ids), dtype=np.uint32)
    is_open = (gathered.learned > 0) & ~np.isin(gathered.tokens[last], closing)
    return {"double_bos": double, "no_end_of_turn": int(is_open.sum())}


def _arrays(used: list[_Row], gathered: TokenRows, too_long: list[int], options: TokeniseOptions) -> dict[str, Array]:
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


def sample(example: Example, *others: Example) -> dict[str, Any]:
    """The examples of a line in the API's form, each text cut near 400 characters: the contents of one, or the prompt
    of a pair and its scored completions."""
    if not others:
        return {"line": example.line, "contents": _contents(example.turns)}
    completions = [
        {"score": score, "completion": _contents(each.turns[-1:])[0]}
        for score, each in zip((1.0, 0.0), (example, *others), strict=True)
    ]
    return {"line": example.line, "contents": _contents(example.turns[:-1]), "completions": completions}


def _contents(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    contents: list[dict[str, Any]] = []
    for turn in turns:
        parts: list[dict[str, Any]] = []
        if turn.text:
            cut = turn.text if len(turn.text) <= SAMPLE_CHARACTERS else turn.text[:SAMPLE_CHARACTERS] + "…"
            parts.append({"text": cut})
        parts += [{"functionCall": {"name": call.name, "args": call.arguments}} for call in turn.calls]
        for response in turn.responses:
            content = response_object(response.content)
            parts.append({"functionResponse": {"name": response.name, "response": content}})
        contents.append({"role": "model" if turn.role == "model" else "user", "parts": parts})
        if turn.role == "system":
            contents.pop()
    return contents


def offsets(lengths: Array) -> Array:
    """The start of each of consecutive parts, and the end of the last."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
