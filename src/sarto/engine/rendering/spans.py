"""A conversation as pieces of rendered text, each learned or not: the only place that separates prompt and reply.

A reply starts at the end of the template's own generation prompt and ends with the template's end-of-turn token. So the
text before a reply is by construction the prompt of serving. Training and serving both use this module; tokens come
later.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, NamedTuple

from sarto.conversations.conversation import FunctionCall, FunctionResponse, RowFault, Turn
from sarto.engine.rendering.chat_template import ChatTemplate, Message, split_thought

MARK = "\ufdd0"
"""A code point that is not a character. Inside the spelling of a special token in a text it prevents its recognition.
"""
Tools = tuple[dict[str, Any], ...]


class Piece(NamedTuple):
    """A part of rendered text that is encoded independently."""

    text: str
    learned: bool


class _Conversation:
    """Renderings of the growing prefixes of one conversation, each made once."""

    def __init__(self, template: ChatTemplate, turns: tuple[Turn, ...], tools: Tools) -> None:
        if template.takes_thought:
            turns = tuple(map(split_thought, turns))
        self._template = template
        self._messages, self._starts = template.messages(turns, tools)
        self._tools: list[Message] = template.tool_messages(tools)
        self.turns = turns[1:] if turns[0].role == "system" else turns
        self.replies = [index for index, turn in enumerate(self.turns) if turn.role == "model"]
        self._prompts: dict[int, str] = {}

    def prompt(self, index: int) -> str:
        """The prompt of serving for turn `index`: everything before it, and the generation prompt."""
        if index not in self._prompts:
            thinking = bool(self.turns[index].thought)
            messages = self._messages[: self._starts[index]]
            self._prompts[index] = self._template.render(messages, self._tools, prompt=True, thinking=thinking)
        return self._prompts[index]

    def open_prompt(self, thinking: bool) -> str:
        """The prompt of serving to continue the whole conversation."""
        return self._template.render(self._messages, self._tools, prompt=True, thinking=thinking)

    def through(self, index: int) -> str:
        """The conversation up to and including the reply `index`."""
        messages = self._messages[: self._starts[index] + 1]
        thinking = bool(self.turns[index].thought)
        return self._template.render(messages, self._tools, prompt=False, thinking=thinking)

    def cuts(self, text: str, before: int) -> list[int]:
        """Starts in `text` of the replies before turn `before`; only of those whose prompt is a prefix of the text."""
        prompts = (self.prompt(index) for index in self.replies if index < before)
        return [len(prompt) for prompt in prompts if text.startswith(prompt)]


def prompt_pieces(
    template: ChatTemplate, turns: tuple[Turn, ...], tools: Tools, special: re.Pattern[str], *, thinking: bool
) -> list[Piece]:
    """The pieces of serving's prompt for a conversation that ends with a turn of a user or a tool. Raises RowFault."""
    conversation = _Conversation(template, protect(turns, special), protect_tools(tools, special))
    text = conversation.open_prompt(thinking)
    return _cut(text, conversation.cuts(text, len(conversation.turns)))


def training_pieces(
    template: ChatTemplate, turns: tuple[Turn, ...], tools: Tools, special: re.Pattern[str]
) -> list[list[Piece]]:
    """One list for the whole conversation; one per reply if the template rewrites earlier turns when later ones follow
    (as reasoning models' templates do). Raises RowFault when a reply cannot be separated exactly."""
    conversation = _Conversation(template, protect(turns, special), protect_tools(tools, special))
    replies = [(index, _reply(conversation, index, special)) for index in conversation.replies]
    if len(replies) > 1:
        last, reply = replies[-1]
        whole = conversation.prompt(last) + reply
        if all(whole.startswith(conversation.prompt(index) + text) for index, text in replies):
            return [_cut_learned([(len(conversation.prompt(index)), text) for index, text in replies], whole)]
    rows = []
    for index, text in replies:
        prompt = conversation.prompt(index)
        rows.append([*_cut(prompt, conversation.cuts(prompt, index)), Piece(text, True)])
    return rows


def protect(turns: tuple[Turn, ...], special: re.Pattern[str]) -> tuple[Turn, ...]:
    """The turns with every spelling of a special token interrupted by MARK; `unmark` restores it when the text is
    encoded."""
    return tuple(_protect_turn(turn, special) if _spells_special(turn, special) else turn for turn in turns)


def protect_tools(tools: Tools, special: re.Pattern[str]) -> Tools:
    """The same for declarations, which may come from others: names, descriptions, parameters and their values."""
    return tuple(_broken_up(tool, special) for tool in tools)


def unmark(text: str) -> str:
    return text.replace(MARK, "") if MARK in text else text


def _reply(conversation: _Conversation, index: int, special: re.Pattern[str]) -> str:
    """The text to learn: from the end of the prompt to the end-of-turn token, which contains the turn's text."""
    prompt, through = conversation.prompt(index), conversation.through(index)
    if not through.startswith(prompt):
        seen = "a reply that does not start where the template's generation prompt ends"
        raise RowFault("", seen, "a reply that continues its prompt", "change the reply or drop the row")
    tail = through[len(prompt) :]
    ends = [match.end() for match in special.finditer(tail)]
    if not ends or tail[ends[-1] :].strip():
        expected = "an end-of-turn token after the reply"
        raise RowFault("", "a reply without end", expected, "use a base model whose template closes the model's turn")
    text = tail[: ends[-1]]
    words = str.strip(conversation.turns[index].text)[-32:]
    if words not in text:
        raise RowFault(
            "", "a reply the chat template leaves out", "a reply it shows", "change the reply or drop the row"
        )
    return text


def _cut(text: str, cuts: list[int]) -> list[Piece]:
    edges = [0, *cuts, len(text)]
    return [Piece(text[start:end], False) for start, end in pairwise(edges) if end > start]


def _cut_learned(replies: list[tuple[int, str]], whole: str) -> list[Piece]:
    pieces, at = [], 0
    for start, text in replies:
        pieces += [Piece(whole[at:start], False), Piece(text, True)]
        at = start + len(text)
    return pieces


def _spells_special(turn: Turn, special: re.Pattern[str]) -> bool:
    if turn.calls or turn.responses:
        return True
    for text in (turn.text, turn.thought):
        _refuse_mark(text)
        if special.search(text):
            return True
    return False


def _protect_turn(turn: Turn, special: re.Pattern[str]) -> Turn:
    def safe(value: Any) -> Any:
        return _broken_up(value, special)

    calls = tuple(FunctionCall(safe(call.name), safe(call.arguments), safe(call.id)) for call in turn.calls)
    responses = tuple(FunctionResponse(safe(each.name), safe(each.content), safe(each.id)) for each in turn.responses)
    return Turn(turn.role, safe(turn.text), calls, responses, safe(turn.thought))


def _broken_up(value: Any, special: re.Pattern[str]) -> Any:
    """A copy of a JSON value without a special token in any of its texts and keys. Raises RowFault for MARK in a
    text."""
    if isinstance(value, str):
        _refuse_mark(value)
        return special.sub(lambda match: match[0][0] + MARK + match[0][1:], value)
    if isinstance(value, list):
        return [_broken_up(inner, special) for inner in value]
    if isinstance(value, dict):
        return {_broken_up(key, special): _broken_up(inner, special) for key, inner in value.items()}
    return value


def _refuse_mark(text: str) -> None:
    if MARK in text:
        raise RowFault("", "the code point U+FDD0, which is no character", "text without it", "remove it")
