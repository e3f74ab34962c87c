"""Page sizes and page tokens. A token holds the last key of a page and is bound to the list it came from: it is stable
under inserts, and one that was cut, altered or taken to another list is refused."""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b

from sarto.errors import InvalidArgument

DEFAULT_SIZE = 100
MOST = 1000
_CHECK_BYTES = 8


def page_size(asked: int) -> int:
    """0 means the default; more than the most is the most. Raises InvalidArgument for a negative number."""
    if asked < 0:
        raise InvalidArgument.field("page_size", f"{asked} is negative; use 0 for the default or at most {MOST}.")
    return min(asked or DEFAULT_SIZE, MOST)


def token(last: str, *scope: str) -> str:
    """The token behind `last`, for the list that `scope` (parent, filter, …) names."""
    return base64.urlsafe_b64encode(_check(last, scope) + last.encode()).decode().rstrip("=")


def start(text: str, *scope: str) -> str:
    """The key to go on behind; empty for an empty token. Raises InvalidArgument for one not made by `token`."""
    if not text:
        return ""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        last = raw[_CHECK_BYTES:].decode()
    except (binascii.Error, ValueError):
        raw, last = b"", ""
    if not last or raw[:_CHECK_BYTES] != _check(last, scope):
        raise InvalidArgument.field(
            "page_token",
            "The page token is not one this list gave; repeat the request with the same parent and filter, or drop it.",
        )
    return last


def _check(last: str, scope: tuple[str, ...]) -> bytes:
    return blake2b("\0".join((*scope, last)).encode(), digest_size=_CHECK_BYTES, person=b"sarto-page").digest()
