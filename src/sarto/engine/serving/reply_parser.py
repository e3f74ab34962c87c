"""Parses a reply's text into parts as it streams: text at once, function calls when they are complete.

Parses calls in the renderer's form (`engine/rendering/tool_text.py`). Without declared functions everything is text.
Loads no tokenizer and no torch, so that the client of vLLM can use it.
"""

from __future__ import annotations

from typing import Any

from sarto.engine.rendering.tool_text import may_be_bare_call, split_calls

CALL_BEGINS = "<tool_call>"


class Reply:
    """Parts of one candidate. Text that may become a call is held back until that is decided."""

    def __init__(self, functions: frozenset[str]) -> None:
        self._functions = functions
        self._held = ""
        self._has_sent = False

    def push(self, text: str) -> list[dict[str, Any]]:
        """Parts that are now final."""
        if not self._functions:
            return _text_parts(text)
        self._held += text
        if not self._has_sent and may_be_bare_call(self._held, self._functions):
            return []
        begins = self._held.find(CALL_BEGINS)
        certain = len(self._held) - overlap(self._held, CALL_BEGINS) if begins < 0 else begins
        sent, self._held = self._held[:certain], self._held[certain:]
        self._has_sent = self._has_sent or bool(sent)
        return _text_parts(sent)

    def finish(self) -> list[dict[str, Any]]:
        """The remaining parts at the end: calls, or text that is no call."""
        text, calls = split_calls(self._held, self._functions)
        self._held = ""
        parts = _text_parts(text)
        return parts + [{"functionCall": {"name": call.name, "args": call.arguments}} for call in calls]


def _text_parts(text: str) -> list[dict[str, Any]]:
    return [{"text": text}] if text else []


def overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
