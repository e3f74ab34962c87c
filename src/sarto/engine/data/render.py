"""Examples to tokens with their loss mask, and prompts to tokens, by the model's own chat template.

The one renderer: training, evaluation, token counting and serving call it, so a prompt has the same tokens in all of
them. Knows no files and no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sarto.engine.data.layout import Piece, prompt_pieces, training_pieces, unmark
from sarto.engine.data.plans import Plan, Slot, Step, fill_step, make_plan, make_prompt_plan
from sarto.engine.data.tokenizer import ChatTokenizer, pack, to_list, unpack
from sarto.errors import InvalidArgument
from sarto.schema.examples import Example, Role, RowFault, Turn, read_conversation
from sarto.schema.generation import Content, Tool

RENDERER_VERSION = 1
"""Changes when the same row would become other tokens; part of the name of every token cache."""
Spans = tuple[tuple[int, int], ...]
OpenRow = list[tuple[list[bytes | str], bool]]
"""Pieces in order, each learned or not: tokens that are known (packed), and texts to encode by themselves."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Tokens of one conversation; `loss_mask` is true where a token is learned."""

    tokens: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True, slots=True)
class Packed:
    """The same, small: tokens as little-endian uint32 bytes, and the learned spans as (start, end) token positions."""

    tokens: bytes
    spans: Spans

    def rendered(self) -> Rendered:
        tokens = unpack(self.tokens)
        mask = np.zeros(len(tokens), dtype=bool)
        for start, end in self.spans:
            mask[start:end] = True
        return Rendered(tokens.tolist(), mask.tolist())


def render(example: Example, tokenizer: ChatTokenizer) -> list[Rendered]:
    """One Rendered, or one for each reply where the template rewrites earlier turns. Raises RowFault."""
    return [packed.rendered() for packed in render_packed(example, tokenizer)]


def render_packed(example: Example, tokenizer: ChatTokenizer) -> list[Packed]:
    """`render` in the small form. Raises RowFault."""
    return [pack_row(row, tokenizer) for row in render_open(example, tokenizer)]


def render_open(example: Example, tokenizer: ChatTokenizer) -> list[OpenRow]:
    """`render` with texts still to be encoded, for whoever encodes many at once. Raises RowFault."""
    planned = render_planned(example, tokenizer)
    return render_fully(example, tokenizer) if planned is None else planned


def render_planned(example: Example, tokenizer: ChatTokenizer) -> list[OpenRow] | None:
    """`render_open` by a plan for the shape of the conversation, None where there is none. In front of each reply a
    planned row has what serving sends, whatever the texts: the plan was compared with serving's when it was made."""
    if example.tools:
        return None
    turns = example.turns
    roles = tuple([turn.role for turn in turns])
    try:
        plan: _Compiled | None = tokenizer.plans[roles]
    except KeyError:
        plan = tokenizer.plans[roles] = _compiled(roles, tokenizer)
    if plan is not None and not any([turn.calls or turn.thought for turn in turns]):  # noqa: C419 (faster)
        texts = [turn.text for turn in turns]
        if plan.fits(texts):
            return plan.fill(texts)
    return None


def render_fully(example: Example, tokenizer: ChatTokenizer) -> list[OpenRow]:
    """`render_open` through the template itself, whatever the shape. Raises RowFault."""
    try:
        rows = training_pieces(tokenizer.template, example.turns, example.tools, tokenizer.special_pattern)
    except RowFault as fault:
        fault.line = example.line
        raise
    return [_open_row(pieces, tokenizer) for pieces in rows]


def render_prompt(conversation: Example, tokenizer: ChatTokenizer, *, thinking: bool = False) -> list[int]:
    """What serving feeds for a conversation that waits for the model: its tokens, generation prompt included.

    `thinking` opens the reasoning of models that have one; replies without a thought were trained with it closed.
    Raises RowFault when the template refuses the conversation."""
    template, special = tokenizer.template, tokenizer.special_pattern
    pieces = prompt_pieces(template, conversation.turns, conversation.tools, special, thinking=thinking)
    return to_list(pack_row(_open_row(pieces, tokenizer), tokenizer).tokens)


def conversation_from_contents(
    contents: Sequence[Content], system_instruction: Content | None = None, tools: Sequence[Tool] = ()
) -> Example:
    """A request's contents as the example to continue. Raises InvalidArgument."""
    row: dict[str, Any] = {"contents": [content.to_json() for content in contents]}
    if system_instruction is not None and system_instruction.parts:
        row["systemInstruction"] = system_instruction.to_json()
    if tools:
        row["tools"] = [tool.to_json() for tool in tools]
    try:
        return read_conversation(row)
    except RowFault as fault:
        raise InvalidArgument(fault.reason) from None


def replies(example: Example) -> list[tuple[Example, Turn]]:
    """Each reply of an example, with the conversation that serving would be asked to continue with it."""
    return [
        (Example(example.turns[:index], example.tools, example.line, example.format), turn)
        for index, turn in enumerate(example.turns)
        if turn.role == "model"
    ]


def pack_row(row: OpenRow, tokenizer: ChatTokenizer) -> Packed:
    """One open row, its texts encoded one by one."""
    parts: list[bytes] = []
    spans: list[tuple[int, int]] = []
    length = 0
    for piece, learned in row:
        start = length
        for part in piece:
            packed = part if isinstance(part, bytes) else tokenizer.encode_packed(part)
            parts.append(packed)
            length += len(packed) // 4
        if learned:
            spans.append((start, length))
    return Packed(b"".join(parts), tuple(spans))


def _open_row(pieces: list[Piece], tokenizer: ChatTokenizer) -> OpenRow:
    return [(_open_piece(text, tokenizer), learned) for text, learned in pieces]


def _open_piece(text: str, tokenizer: ChatTokenizer) -> list[bytes | str]:
    """The template's special tokens by name, everything between them as plain text."""
    edges = [match.span() for match in tokenizer.special_pattern.finditer(text)]
    parts: list[bytes | str] = []
    for (_, end), (start, close) in pairwise([(0, 0), *edges, (len(text), len(text))]):
        if start > end:
            parts.append(unmark(text[end:start]))
        if close > start:
            parts.append(pack([tokenizer.special_ids[text[start:close]]]))
    return parts


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A plan whose literal stretches are tokens already: each piece is packed tokens and texts still to be encoded."""

    plan: Plan
    rows: list[list[tuple[list[bytes | Step], bool]]]

    def fits(self, texts: list[str]) -> bool:
        return self.plan.fits(texts)

    def fill(self, texts: list[str]) -> list[OpenRow]:
        rows: list[OpenRow] = []
        for row in self.rows:
            open_row: OpenRow = []
            for parts, learned in row:
                open_row.append(([p if isinstance(p, bytes) else fill_step(p, texts) for p in parts], learned))
            rows.append(open_row)
        return rows


def _compiled(roles: tuple[Role, ...], tokenizer: ChatTokenizer) -> _Compiled | None:
    plan = make_plan(tokenizer.template, roles, tokenizer.special_pattern)
    if plan is None:
        return None
    rows = [[(_compile_step(step, tokenizer), learned) for step, learned in row] for row in plan.rows]
    return _Compiled(plan, rows) if is_served(plan, roles, tokenizer) else None


def is_served(plan: Plan, roles: tuple[Role, ...], tokenizer: ChatTokenizer) -> bool:
    """Whether, for all texts that fit the plan, the tokens in front of each reply are those that serving sends: the
    same literals, the same texts in the same places, cut in the same way, and no question that the plan did not ask."""
    fronts = [
        _joined([_compile_step(step, tokenizer) for step, _ in row[:at]])
        for row in plan.rows
        for at, (_, learned) in enumerate(row)
        if learned
    ]
    replies_at = [index for index, role in enumerate(roles) if role == "model"]
    for index, front in zip(replies_at, fronts, strict=True):
        prompt = make_prompt_plan(tokenizer.template, roles[:index], tokenizer.special_pattern)
        if prompt is None or not set(prompt.questions) <= set(plan.questions):
            return False
        if _joined([_compile_step(step, tokenizer) for step, _ in prompt.rows[0]]) != front:
            return False
    return True


def _joined(pieces: list[list[bytes | Step]]) -> list[bytes | Step]:
    """Pieces one behind the other, tokens that follow tokens as one stretch."""
    joined: list[bytes | Step] = []
    for part in (part for piece in pieces for part in piece):
        if isinstance(part, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _compile_step(step: Step, tokenizer: ChatTokenizer) -> list[bytes | Step]:
    """Cut a piece at the special tokens of its literals; stretches without a slot become tokens here and now."""
    stretches: list[list[str | Slot] | bytes] = [[]]
    for part in step:
        if isinstance(part, Slot):
            _open_stretch(stretches).append(part)
            continue
        at = 0
        for match in tokenizer.special_pattern.finditer(part):
            _open_stretch(stretches).append(part[at : match.start()])
            stretches.append(pack([tokenizer.special_ids[match[0]]]))
            at = match.end()
        _open_stretch(stretches).append(part[at:])
    done: list[bytes | Step] = []
    for stretch in stretches:
        if not isinstance(stretch, bytes):
            parts = tuple(part for part in stretch if part != "")
            if any(isinstance(part, Slot) for part in parts):
                done.append(parts)
                continue
            stretch = tokenizer.encode_packed(fill_step(parts, []))
        if done and isinstance(done[-1], bytes):
            done[-1] += stretch
        elif stretch:
            done.append(stretch)
    return done


def _open_stretch(stretches: list[list[str | Slot] | bytes]) -> list[str | Slot]:
    last = stretches[-1]
    if isinstance(last, bytes):
        last = []
        stretches.append(last)
    return last
