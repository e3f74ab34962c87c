"""Render examples to tokens with their loss mask, and prompts to tokens, by the model's own chat template.

The only renderer: training, evaluation, token counting and serving call it, so a prompt has the same tokens in all of
them. Knows no files and no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sarto.conversations.examples import Example, Role, RowFault, Turn
from sarto.engine.rendering.spans import Piece, prompt_pieces, training_pieces, unmark
from sarto.engine.rendering.template_plans import Step, TemplatePlan, TextSlot, fill_step, make_plan, make_prompt_plan
from sarto.engine.rendering.tokenizer import ChatTokenizer, pack, to_list, unpack

RENDERER_VERSION = 3
"""Changes when the same row would have other tokens; part of the key of every token cache."""
Spans = tuple[tuple[int, int], ...]
OpenRow = list[tuple[list[bytes | str], bool]]
"""Pieces in order, each learned or not: known tokens (packed), and texts to encode independently."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Tokens of one conversation; `loss_mask` is true where a token is learned."""

    tokens: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Rendered in a small form: tokens as little-endian uint32 bytes, and the learned spans as (start, end) token
    positions."""

    tokens: bytes
    spans: Spans

    def rendered(self) -> Rendered:
        tokens = unpack(self.tokens)
        mask = np.zeros(len(tokens), dtype=bool)
        for start, end in self.spans:
            mask[start:end] = True
        return Rendered(tokens.tolist(), mask.tolist())


def render(example: Example, tokenizer: ChatTokenizer) -> list[Rendered]:
    """Render an example: one Rendered, or one per reply if the template rewrites earlier turns. Raises RowFault."""
    return [packed.rendered() for packed in render_packed(example, tokenizer)]


def render_packed(example: Example, tokenizer: ChatTokenizer) -> list[PackedTokens]:
    """`render` in the small form. Raises RowFault."""
    return [pack_row(row, tokenizer) for row in render_open(example, tokenizer)]


def render_open(example: Example, tokenizer: ChatTokenizer) -> list[OpenRow]:
    """`render` with texts still to be encoded, so that many can be encoded at once. Raises RowFault."""
    planned = render_planned(example, tokenizer)
    return render_fully(example, tokenizer) if planned is None else planned


def render_planned(example: Example, tokenizer: ChatTokenizer) -> list[OpenRow] | None:
    """`render_open` by a plan for the shape of the conversation; None if there is none. The tokens before each reply
    equal serving's for all texts: the plan was compared with serving's when it was made."""
    if example.tools:
        return None
    turns = example.turns
    roles = tuple([turn.role for turn in turns])
    try:
        plan: _CompiledPlan | None = tokenizer.plans[roles]
    except KeyError:
        plan = tokenizer.plans[roles] = _compiled(roles, tokenizer)
    if plan is not None and not any([turn.calls or turn.thought for turn in turns]):  # noqa: C419 (faster)
        texts = [turn.text for turn in turns]
        if plan.fits(texts):
            return _learned(example, plan.fill(texts))
    return None


def render_fully(example: Example, tokenizer: ChatTokenizer) -> list[OpenRow]:
    """`render_open` by the template itself, for any shape. Raises RowFault."""
    try:
        rows = training_pieces(tokenizer.template, example.turns, example.tools, tokenizer.special_pattern)
    except RowFault as fault:
        fault.line = example.line
        raise
    return _learned(example, [_open_row(pieces, tokenizer) for pieces in rows])


def render_question(example: Example, tokenizer: ChatTokenizer) -> list[OpenRow]:
    """A conversation that waits for the model as one open row without learned tokens: serving's prompt. Raises
    RowFault."""
    try:
        pieces = prompt_pieces(
            tokenizer.template, example.turns, example.tools, tokenizer.special_pattern, thinking=False
        )
    except RowFault as fault:
        fault.line = example.line
        raise
    return [_open_row(pieces, tokenizer)]


def render_prompt(conversation: Example, tokenizer: ChatTokenizer, *, thinking: bool = False) -> list[int]:
    """The tokens that serving uses for a conversation that waits for the model, generation prompt included.

    `thinking` opens the reasoning of models that have one; replies without a thought were trained with it closed.
    Raises RowFault when the template refuses the conversation."""
    return to_list(pack_row(_open_prompt(conversation, tokenizer, thinking=thinking), tokenizer).tokens)


def _open_prompt(conversation: Example, tokenizer: ChatTokenizer, *, thinking: bool = False) -> OpenRow:
    template, special = tokenizer.template, tokenizer.special_pattern
    pieces = prompt_pieces(template, conversation.turns, conversation.tools, special, thinking=thinking)
    return _open_row(pieces, tokenizer)


def replies(example: Example) -> list[tuple[Example, Turn]]:
    """Each learned reply of an example, with the conversation that precedes it."""
    spans = [
        (Example(example.turns[:index], example.tools, example.line, example.format), turn)
        for index, turn in enumerate(example.turns)
        if turn.role == "model"
    ]
    if example.last_reply_only:
        return spans[-1:]
    return [span for number, span in enumerate(spans) if number not in example.masked]


def _learned(example: Example, rows: list[OpenRow]) -> list[OpenRow]:
    """All rows as they are, without the marks of masked replies; of an example that learns its last reply only, the
    last row with that reply learned."""
    if example.masked:
        return _without(example.masked, rows)
    if not example.last_reply_only:
        return rows
    row = rows[-1]
    last = max(at for at, (_, learned) in enumerate(row) if learned)
    return [[(piece, at == last) for at, (piece, _) in enumerate(row)]]


def _without(masked: tuple[int, ...], rows: list[OpenRow]) -> list[OpenRow]:
    """The rows that still learn a reply. Each reply is one learned piece, in the order of the conversation."""
    kept, number = [], 0
    for row in rows:
        marked: OpenRow = []
        for piece, learned in row:
            marked.append((piece, learned and number not in masked))
            number += learned
        if any(learned for _, learned in marked):
            kept.append(marked)
    return kept


def pack_row(row: OpenRow, tokenizer: ChatTokenizer) -> PackedTokens:
    """Encode the texts of one open row."""
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
    return PackedTokens(b"".join(parts), tuple(spans))


def _open_row(pieces: list[Piece], tokenizer: ChatTokenizer) -> OpenRow:
    return [(_open_piece(text, tokenizer), learned) for text, learned in pieces]


def _open_piece(text: str, tokenizer: ChatTokenizer) -> list[bytes | str]:
    """Encode the template's special tokens by name, and the texts between them as plain text."""
    edges = [match.span() for match in tokenizer.special_pattern.finditer(text)]
    parts: list[bytes | str] = []
    for (_, end), (start, close) in pairwise([(0, 0), *edges, (len(text), len(text))]):
        if start > end:
            parts.append(unmark(text[end:start]))
        if close > start:
            parts.append(pack([tokenizer.special_ids[text[start:close]]]))
    return parts


@dataclass(frozen=True, slots=True)
class _CompiledPlan:
    """A plan whose literal parts are tokens already: each piece is packed tokens and texts still to be encoded."""

    plan: TemplatePlan
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


def _compiled(roles: tuple[Role, ...], tokenizer: ChatTokenizer) -> _CompiledPlan | None:
    plan = make_plan(tokenizer.template, roles, tokenizer.special_pattern)
    if plan is None:
        return None
    rows = [[(_compile_step(step, tokenizer), learned) for step, learned in row] for row in plan.rows]
    return _CompiledPlan(plan, rows) if is_served(plan, roles, tokenizer) else None


def is_served(plan: TemplatePlan, roles: tuple[Role, ...], tokenizer: ChatTokenizer) -> bool:
    """Whether, for all texts that fit the plan, the tokens before each reply equal serving's. Both must have the same
    literals, the same texts in the same positions with the same trims, and no condition that the plan lacks."""
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
    """Pieces in order, with consecutive tokens joined."""
    joined: list[bytes | Step] = []
    for part in (part for piece in pieces for part in piece):
        if isinstance(part, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _compile_step(step: Step, tokenizer: ChatTokenizer) -> list[bytes | Step]:
    """Split a piece at the special tokens of its literals, and encode the parts without a slot."""
    stretches: list[list[str | TextSlot] | bytes] = [[]]
    for part in step:
        if isinstance(part, TextSlot):
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
            if any(isinstance(part, TextSlot) for part in parts):
                done.append(parts)
                continue
            stretch = tokenizer.encode_packed(fill_step(parts, []))
        if done and isinstance(done[-1], bytes):
            done[-1] += stretch
        elif stretch:
            done.append(stretch)
    return done


def _open_stretch(stretches: list[list[str | TextSlot] | bytes]) -> list[str | TextSlot]:
    last = stretches[-1]
    if isinstance(last, bytes):
        last = []
        stretches.append(last)
    return last
