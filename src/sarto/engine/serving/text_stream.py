"""Converts tokens to text as they arrive. Text is held back while a stop sequence or a character is incomplete."""

from __future__ import annotations

from collections.abc import Sequence

from sarto.engine.rendering.tokenizer import Detokenizer
from sarto.engine.serving.reply_parser import overlap


class TextStream:
    """Text of one candidate. `is_stopped` is true after a stop sequence; it and the text after it are never
    returned."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Text that is now final."""
        return self._release(self._detokenizer.push(token))

    def finish(self) -> str:
        """The text that was held back, at the end of the tokens."""
        if self.is_stopped:
            return ""
        text = self._release(self._detokenizer.flush()) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        self._held += text
        positions = [position for stop in self._stops if (position := self._held.find(stop)) >= 0]
        if positions:
            self.is_stopped = True
            certain, self._held = self._held[: min(positions)], ""
            return certain
        held_back = max((overlap(self._held, stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - held_back], self._held[len(self._held) - held_back :]
        return certain
