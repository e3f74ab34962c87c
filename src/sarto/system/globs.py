"""Patterns with stars from callers, matched in linear time. A caller's pattern never becomes a regular expression,
whose time can be exponential."""

from __future__ import annotations


def star_matches(pattern: str, text: str) -> bool:
    """Whether the whole text matches the pattern, in which `*` is any text and every other character itself."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    last = rest.pop()
    end = len(text) - len(last)
    if len(first) > end or not text.startswith(first) or not text.endswith(last):
        return False
    at = len(first)
    for piece in rest:  # the leftmost place of each piece leaves the most room for those that follow
        position = text.find(piece, at, end)
        if position < 0:
            return False
        at = position + len(piece)
    return True
