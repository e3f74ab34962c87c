"""Regular expressions of callers, matched by RE2 in time linear in the text. Python's `re` can take exponential time
and holds the GIL meanwhile; RE2 releases it. The syntax is RE2's: no look-around and no back-references."""

from __future__ import annotations

import time

import re2

from sarto.errors import DeadlineExceeded

MOST_PATTERN, MOST_TEXT_BYTES = 10_000, 256 << 10
"""Most characters of a pattern, and most bytes of a text. RE2 matches this text against a bad pattern in 3 seconds."""
MOST_PROGRAM = 1_000
"""Most instructions of a compiled pattern; time is proportional to them in the worst case."""
MOST_MEMORY = 1 << 20
MATCHES_SECONDS = 2.0
"""Time for all matches of a text. Each takes linear time, and there can be as many as characters."""


class PatternError(ValueError):
    """A pattern that RE2 does not compile, or that is too large; the message is the reason."""


class LinearPattern:
    """A compiled pattern. Thread-safe."""

    def __init__(self, pattern: str) -> None:
        """Raises PatternError."""
        if len(pattern) > MOST_PATTERN:
            raise PatternError(f"it has {len(pattern):,} characters, more than {MOST_PATTERN:,}")
        options = re2.Options()
        options.log_errors, options.max_mem = False, MOST_MEMORY
        try:
            self._compiled = re2.compile(pattern, options)
        except re2.error as error:
            reason = error.args[0]
            raise PatternError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from None
        except UnicodeEncodeError:
            raise PatternError("it has half of a surrogate pair") from None
        if self._compiled.programsize > MOST_PROGRAM:
            raise PatternError("it is too large; write smaller counts in braces")

    @property
    def groups(self) -> int:
        return int(self._compiled.groups)

    def is_in(self, text: str) -> bool:
        """Whether it matches anywhere in the text. Raises DeadlineExceeded for a text that is too long."""
        return self._compiled.search(_encoded(text)) is not None

    def last(self, text: str) -> str | None:
        """The first group of the last match (the whole match if there is no group); None without a match. Matches do
        not overlap and are found from the left. Raises DeadlineExceeded for a text that is too long, and when there are
        too many matches."""
        until, last = time.monotonic() + MATCHES_SECONDS, None
        for match in self._compiled.finditer(_encoded(text)):
            last = match
            if time.monotonic() > until:
                raise DeadlineExceeded(f"The pattern took over {MATCHES_SECONDS:g} seconds; it matches too often.")
        if last is None:
            return None
        group = last.group(1 if self.groups else 0)
        return str(group.decode(errors="replace")) if group is not None else ""


def _encoded(text: str) -> bytes:
    encoded = text.encode(errors="replace")
    if len(encoded) > MOST_TEXT_BYTES:
        raise DeadlineExceeded(f"A text for a pattern has at most {MOST_TEXT_BYTES >> 10} KiB.")
    return encoded
