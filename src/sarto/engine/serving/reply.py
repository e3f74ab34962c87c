"""A reply's text into parts as it streams: text as it comes, function calls once they are whole.

Reads calls the way the renderer writes them (`engine/data/tools.py`). Without declared functions all text is text.
Loads no tokenizer and no torch: the client of vLLM reads replies with it too.
"""

from __future__ import annotations

from typing import Any

from sarto.engine.data.tools import split_calls

CALL_BEGINS = "<tool_call>"


class Reply:
    """Parts of one candidate. Text that may turn out to be a call is held back until that is clear."""

    def __init__(self, functions: frozenset[str]) -> None:
        self._functions = functions
        self._held = ""
        self._has_sent = False

    def push(self, text: str) -> list[dict[str, Any]]:
        """Parts that are now certain."""
        if not self._functions:
            return _text_parts(text)
        self._held += text
        if not self._has_sent and self._held.lstrip()[:1] in ("", "{"):
            return []  # nothing yet, or what may be a bare JSON call
        begins = self._held.find(CALL_BEGINS)
        certain = len(self._held) - overlap(self._held, CALL_BEGINS) if begins < 0 else begins
        sent, self._held = self._held[:certain], self._held[certain:]
        self._has_sent = self._has_sent or bool(sent)
        return _text_parts(sent)

    def finish(self) -> list[dict[str, Any]]:
        """What was held back: calls, or text that was none after all."""
        text, calls = split_calls(self._held, self._functions)
        self._held = ""
        parts = _text_parts(text)
        return parts + [{"functionCall": {"name": call.name, "args": call.arguments}} for call in calls]


def _text_parts(text: str) -> list[dict[str, Any]]:
    return [{"text": text}] if text else []


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
