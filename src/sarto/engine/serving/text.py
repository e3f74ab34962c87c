"""Tokens into text as they come, held back where a stop sequence or a character is not yet whole."""

from __future__ import annotations

from collections.abc import Sequence

from sarto.engine.data.tokenizer import Detokenizer
from sarto.engine.serving.reply import overlap


class TextStream:
    """Text of one candidate. `is_stopped` once a stop sequence was met; it and what follows are never given out."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Text that is now certain."""
        return self._release(self._detokenizer.push(token))

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        if self.is_stopped:
            return ""
        text = self._release(self._detokenizer.flush()) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        kept = max((overlap(self._held, stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return certain
