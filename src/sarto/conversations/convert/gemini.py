"""Conversations as rows of Gemini's form, which the readers of datasets turn into the same conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sarto.conversations.conversation import FunctionCall, FunctionResponse, Turn
from sarto.conversations.gemini_rows import response_object

Tools = tuple[dict[str, Any], ...]


def gemini_row(turns: Sequence[Turn], tools: Tools = ()) -> dict[str, Any]:
    """A row with these turns; a system turn is the first."""
    row: dict[str, Any] = {}
    if turns[0].role == "system":
        row["systemInstruction"] = {"parts": [{"text": turns[0].text}]}
        turns = turns[1:]
    if tools:
        row["tools"] = [{"functionDeclarations": list(tools)}]
    row["contents"] = [content(turn) for turn in turns]
    return row


def preference_row(turns: Sequence[Turn], tools: Tools, chosen: Turn, rejected: Turn) -> dict[str, Any]:
    """A prompt with the better and the worse reply."""
    scored = [{"score": score, "completion": content(turn)} for score, turn in ((1, chosen), (0, rejected))]
    return {**gemini_row(turns, tools), "completions": scored}


def content(turn: Turn) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if turn.thought:
        parts.append({"text": turn.thought, "thought": True})
    if turn.text or not (turn.calls or turn.responses):
        parts.append({"text": turn.text})
    parts += [{"functionCall": _call(call)} for call in turn.calls]
    parts += [{"functionResponse": _response(response)} for response in turn.responses]
    return {"role": "model" if turn.role == "model" else "user", "parts": parts}


def _call(call: FunctionCall) -> dict[str, Any]:
    return {"name": call.name, "args": call.arguments, **({"id": call.id} if call.id else {})}


def _response(response: FunctionResponse) -> dict[str, Any]:
    written = {"name": response.name, "response": response_object(response.content)}
    return {**written, **({"id": response.id} if response.id else {})}
