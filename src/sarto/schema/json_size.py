"""The number of values and levels in a JSON text.

The time to parse a text grows with its values, not with its bytes, so they are counted first, in a few fast passes.
"""

from __future__ import annotations

from itertools import accumulate

MOST_VALUES = 100_000
MOST_DEPTH = 100
"""Most levels, as in Google's JSON parser."""
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_ALL_BUT_BRACKETS = bytes(set(range(256)) - _STEPS.keys())


def json_excess(text: bytes) -> str:
    """The excess of a text, as a phrase after its name; empty if it is within the limits."""
    too_many = f"has more than {MOST_VALUES} values"
    if count(text, b",[{") <= MOST_VALUES and count(text, b"[{") <= MOST_DEPTH:
        return ""
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MOST_VALUES:
        return too_many
    outside = b"".join(bare.split(b'"')[::2])
    if count(outside, b",[{") > MOST_VALUES:
        return too_many
    if max(accumulate(_STEPS[one] for one in outside.translate(None, _ALL_BUT_BRACKETS)), default=0) > MOST_DEPTH:
        return f"is nested deeper than {MOST_DEPTH} levels"
    return ""


def count(text: bytes, which: bytes) -> int:
    """Number of its bytes that are among those."""
    return len(text) - len(text.translate(None, which))
